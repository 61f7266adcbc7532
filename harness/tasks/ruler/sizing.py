"""Samples of a given length: the largest haystack whose text and answer fit, by the real tokenizer."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from harness.core.errors import UserError
from harness.core.sizing import FULL
from harness.tasks.chat_template import wrap
from harness.tasks.haystack import Haystack
from harness.tasks.ruler.builders import Builder, smallest_size
from harness.tasks.ruler.qa import DocumentQA
from harness.tasks.ruler.word_counts import CommonWords
from harness.tasks.sample import Sample
from harness.tasks.tokens import encode


def stream(seed: int, task: str, length: int, index: int | str) -> random.Random:
    """Return the sample's own random stream, the same on every machine and Python version."""
    digest = hashlib.sha256(f"{seed}:{task}:{length}:{index}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


class Sizer:
    """Finds how large the haystack of one task at one length may be, once, and builds samples of that size."""

    sizing = FULL

    def __init__(
        self,
        task: str,
        builder: Builder | DocumentQA,
        tokenizer: Any,
        length: int,
        seed: int,
        prose: Haystack | None,
        chat: bool,
    ) -> None:
        self.task, self.builder, self.tokenizer, self.length, self.seed = task, builder, tokenizer, length, seed
        self.prose, self.chat = prose, chat
        self.room, self.smallest = length - builder.max_new_tokens, smallest_size(task)
        self.most: int | None = getattr(builder, "most", None)
        self._size: int | None = None

    def builder_of(self, index: int | str) -> Builder:
        """Return the builder of sample `index`: one for all, or that of the sample's own question."""
        return self.builder.one_question(self.seed, index) if isinstance(self.builder, DocumentQA) else self.builder

    def tokens(self, size: int, index: int | str) -> tuple[int, str, list[str]]:
        """Return (tokens, prompt, answers) of sample `index` with a haystack of `size`."""
        rng = stream(self.seed, self.task, self.length, index)
        builder = self.builder_of(index)
        examples = builder.examples(rng) if isinstance(builder, CommonWords) else ()
        text, prefix, answers = builder.build(rng, size, self.prose)
        prompt = "".join(wrap(self.tokenizer, *turn, self.chat) for turn in (*examples, (text, prefix)))
        return len(encode(self.tokenizer, prompt)), prompt, answers

    @property
    def size(self) -> int:
        """Return `find_size()`, found once."""
        if self._size is None:
            self._size = self.find_size()
        return self._size

    def find_size(self) -> int:
        """Return the largest size at which a sizing sample fits: a false-position search, since tokens grow almost linearly.

        Raises UserError where not even the smallest fits.
        """
        return self._narrow(*self._bracket())

    def smaller(self, size: int, tokens: int) -> int:
        """Return the size that follows where a sample of `size` has more tokens than fit: as much smaller as it is too long."""
        over = (tokens - self.room) / tokens
        return min(size - 1, int(size * (1 - 1.2 * over)))

    def _bracket(self) -> tuple[int, int, int, int]:
        """Return (size that fits, its tokens, size that doesn't, its tokens); both sizes the same where the largest fits."""
        smallest = self.smallest
        low, at_low = smallest, self.tokens(smallest, "sizing")[0]
        if at_low > self.room:
            shortest = at_low + self.builder.max_new_tokens
            raise UserError(f"length={self.length} is too short for {self.task}: the smallest that works here is {shortest}")
        high, at_high = low, at_low
        while at_high <= self.room:
            low, at_low = high, at_high
            if self.most is not None and high >= self.most:
                break
            per_unit = max(0.5, at_high / high if high > 4 * smallest else at_high / high / 2)
            high = max(high + 1, int(high + 1.1 * (self.room - at_high) / per_unit) + 1)
            if self.most is not None:
                high = min(high, self.most)
            at_high = self.tokens(high, "sizing")[0]
        return low, at_low, high, at_high

    def _narrow(self, low: int, at_low: int, high: int, at_high: int) -> int:
        """Return the largest size that fits, to within 0.2 %."""
        while high - low > max(1, low // 500):
            guess = low + int((high - low) * (self.room - at_low) / max(1, at_high - at_low))
            guess = min(max(guess, low + 1), high - 1)
            at = self.tokens(guess, "sizing")[0]
            if at <= self.room:
                low, at_low = guess, at
                # one probe just above it: without, false position closes in from one side only
                nearer = min(high - 1, guess + max(1, (high - guess) // 8))
                if nearer > low and (near := self.tokens(nearer, "sizing")[0]) > self.room:
                    high, at_high = nearer, near
                elif nearer > low:
                    low, at_low = nearer, near
            else:
                high, at_high = guess, at
        return low

    def sample(self, index: int) -> Sample:
        """Return sample `index`: of the common size, or a little less where its own words have more tokens.

        Raises UserError where it doesn't fit at the smallest size.
        """
        size, smallest = self.size, self.smallest
        while True:
            tokens, prompt, answers = self.tokens(size, index)
            if tokens <= self.room:
                break
            if size <= smallest:
                shortest = tokens + self.builder.max_new_tokens
                raise UserError(f"length={self.length} is too short for {self.task}: sample {index} needs {shortest}")
            size = max(smallest, self.smaller(size, tokens))
        haystack = self.prose.name if self.prose is not None else getattr(self.builder, "source", "synthetic")
        if self.most is not None and size >= self.most:
            haystack = getattr(self.builder, "capped", haystack)
        if self.sizing != FULL:
            haystack += f" sizing={self.sizing}"
        return Sample(
            self.task,
            self.length,
            index,
            prompt,
            tuple(answers),
            self.builder.max_new_tokens,
            haystack,
            tokens,
            self.seed,
            evidence=getattr(self.builder_of(index), "evidence", ()),
            turns=2 if self.chat and isinstance(self.builder, CommonWords) else 1,
        )
