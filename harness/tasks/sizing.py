"""Samples of a given length: the largest haystack whose text and answer fit, by the real tokenizer."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from harness.core.errors import UserError
from harness.tasks.haystack import Haystack
from harness.tasks.ruler import Builder, smallest
from harness.tasks.ruler.qa import DocumentQA
from harness.tasks.sample import Sample


def stream(seed: int, task: str, length: int, index: int | str) -> random.Random:
    """The sample's own random stream, the same on every machine and Python version."""
    digest = hashlib.sha256(f"{seed}:{task}:{length}:{index}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text`, with BOS once where the tokenizer has one."""
    ids = list(tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"])
    return without_second_bos(ids, tokenizer.bos_token_id)


def without_second_bos(ids: list[int], bos: int | None) -> list[int]:
    """`ids` less the second of two BOS at the start: the text, a chat template's, brought one of its own."""
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def wrap(tokenizer: Any, text: str, prefix: str, chat: bool) -> str:
    """The prompt: text and answer prefix, inside the model's chat template if asked for."""
    if not chat:
        return text + prefix
    if not getattr(tokenizer, "chat_template", None):
        raise UserError("chat_template=true, but this model's tokenizer has no chat template")
    message = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)) + prefix.lstrip()


class Sizer:
    """Finds how large the haystack of one task at one length may be, once, and makes samples of that size."""

    def __init__(
        self, task: str, made: Builder | DocumentQA, tokenizer: Any, length: int, seed: int, hay: Haystack | None, chat: bool
    ) -> None:
        self.task, self.made, self.tokenizer, self.length, self.seed = task, made, tokenizer, length, seed
        self.hay, self.chat = hay, chat
        self.room = length - made.max_new_tokens
        self.most = getattr(made, "most", None)
        self._size: int | None = None

    def builder(self, index: int | str) -> Builder:
        """The builder of sample `index`: one for all, or that of the sample's own question."""
        return self.made.asked(self.seed, index) if isinstance(self.made, DocumentQA) else self.made

    def tokens(self, size: int, index: int | str) -> tuple[int, str, list[str]]:
        """(tokens, prompt, answers) of sample `index` with a haystack of `size`."""
        text, prefix, answers = self.builder(index).build(stream(self.seed, self.task, self.length, index), size, self.hay)
        prompt = wrap(self.tokenizer, text, prefix, self.chat)
        return len(encode(self.tokenizer, prompt)), prompt, answers

    @property
    def size(self) -> int:
        """The largest size at which a sizing sample fits: a false-position search, since tokens grow almost linearly."""
        if self._size is None:
            low = smallest(self.task)
            at_low = self.tokens(low, "sizing")[0]
            if at_low > self.room:
                need = at_low + self.made.max_new_tokens
                raise UserError(f"length={self.length} is too short for {self.task}: the smallest that works here is {need}")
            high = low
            at_high = at_low
            while at_high <= self.room:
                low, at_low = high, at_high
                if self.most is not None and high >= self.most:
                    break
                per_unit = max(0.5, at_high / high if high > 4 * smallest(self.task) else at_high / high / 2)
                high = max(high + 1, int(high + 1.1 * (self.room - at_high) / per_unit) + 1)
                if self.most is not None:
                    high = min(high, self.most)
                at_high = self.tokens(high, "sizing")[0]
            while high - low > max(1, low // 500):
                guess = low + int((high - low) * (self.room - at_low) / max(1, at_high - at_low))
                guess = min(max(guess, low + 1), high - 1)
                at = self.tokens(guess, "sizing")[0]
                if at <= self.room:
                    low, at_low = guess, at
                    nearer = min(high - 1, guess + max(1, (high - guess) // 8))
                    if nearer > low and (near := self.tokens(nearer, "sizing")[0]) > self.room:
                        high, at_high = nearer, near
                    elif nearer > low:
                        low, at_low = nearer, near
                else:
                    high, at_high = guess, at
            self._size = low
        return self._size

    def sample(self, index: int) -> Sample:
        """Sample `index`: of the common size, or a little less where its own words have more tokens."""
        size = self.size
        while True:
            tokens, prompt, answers = self.tokens(size, index)
            if tokens <= self.room:
                break
            if size <= smallest(self.task):
                need = tokens + self.made.max_new_tokens
                raise UserError(f"length={self.length} is too short for {self.task}: sample {index} needs {need}")
            over = (tokens - self.room) / tokens
            size = max(smallest(self.task), min(size - 1, int(size * (1 - 1.2 * over))))
        note = self.hay.name if self.hay is not None else getattr(self.made, "source", "synthetic")
        if self.most is not None and size >= self.most:
            note = "wonderwords-capped"
        return Sample(
            self.task,
            self.length,
            index,
            prompt,
            tuple(answers),
            self.made.max_new_tokens,
            note,
            tokens,
            self.seed,
            evidence=getattr(self.builder(index), "evidence", ()),
        )
