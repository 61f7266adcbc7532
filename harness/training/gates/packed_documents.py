"""Rows of documents joined by the end-of-text token and cut to length, the text that SeerAttention's gates learn from."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.core.errors import UserError
from harness.core.hub import find_hub, hub_error
from harness.core.input_files import read_text
from harness.tasks.tokens import sets_bos
from harness.training.gates.text_folder import HELD_OUT, held_out, text_folder

PIECE = 100_000
"""Characters that are tokenised as one text, and"""
PIECES = 8
"""so many of these at once, by several threads."""

SHUFFLED = 10_000
"""Documents of the hub among which the next one is drawn."""

Document = tuple[bool, str | Path]
"""Whether a document is held out from training, and its text or the file that holds it."""


def from_folder(folder: str | Path, seed: int) -> Iterator[Document]:
    """Yield every .txt below `folder` as it is, in an order drawn from the seed, those held out first.

    The last of them in that order are held out, one byte in HELD_OUT; a file in which that begins is cut in two. Raises
    UserError where there is none.
    """
    text = text_folder(folder, seed)
    cut = held_out(text)[0].stop
    begins = (0, *text.ends[:-1])
    spans = list(zip(text.paths, begins, text.ends, strict=True))
    halves: tuple[str, str] | None = None
    for path, begin, end in spans:
        if begin < cut < end:
            words = read_text(path)
            place = len(words) * (cut - begin) // (end - begin)
            halves = words[:place], words[place:]
            yield True, halves[1]
    yield from ((True, path) for path, begin, _ in spans if begin >= cut)
    yield from ((False, path) for path, _, end in spans if end <= cut)
    if halves is not None:
        yield False, halves[0]


def from_hub(name: str, seed: int) -> Iterator[Document]:
    """Yield the documents of a data set of the hub that has a column "text", streamed: no more is downloaded than is used.

    One in HELD_OUT is held out.
    """
    offline = find_hub()
    try:
        from datasets import load_dataset

        rows = load_dataset(name, split="train", streaming=True).shuffle(seed=seed, buffer_size=SHUFFLED)
        for number, row in enumerate(rows, 1):
            yield number % HELD_OUT == 0, row["text"]
    except Exception as error:
        raise UserError(
            f"job.hub={name}: can't be read: {hub_error(error, offline)}; it needs the network and a column "
            "named text. Or give a folder of .txt files: job.rows=documents data.text_dir=FOLDER"
        ) from None


def pack(documents: Iterable[Document], tokenizer: Any, train_tokens: int, test_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the token ids of the documents to train on, and of those held out, int32 [N], the end-of-text token after each.

    Reads, and tokenises, no more than gives so many tokens of either kind. Raises UserError for a tokenizer without that token.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError(
            "job.rows: documents are joined by the end-of-text token, and the tokenizer has none; use job.rows=books"
        )
    ids, needed = {True: array("i"), False: array("i")}, {True: test_tokens, False: train_tokens}
    for is_held_out, document in documents:
        part, enough = ids[is_held_out], needed[is_held_out]
        if len(part) < enough:
            text = document if isinstance(document, str) else document.read_text(encoding="utf-8", errors="replace")
            if text and _add_tokens(part, text, tokenizer, enough):
                part.append(end)
        if all(len(ids[kind]) >= needed[kind] for kind in ids):
            break
    return np.frombuffer(ids[False], dtype=np.int32), np.frombuffer(ids[True], dtype=np.int32)


def _add_tokens(ids: array[int], text: str, tokenizer: Any, enough: int) -> bool:
    """Append the tokens of a text until there are `enough` of all; return whether it was added whole."""
    pieces = (text[i : i + PIECE] for i in range(0, len(text), PIECE))
    while batch := list(islice(pieces, PIECES)):
        if len(ids) >= enough:
            return False
        for part in tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]:
            ids.extend(part)
    return True


class Chunks:
    """A source of rows, int64 [length] each: the stretches of `tokens` [N] in an order drawn from the seed.

    Of one length none comes twice before all have come. The first token is BOS where the tokenizer sets one.
    """

    def __init__(self, tokens: np.ndarray, tokenizer: Any, seed: int) -> None:
        self.tokens = tokens
        self.first = tokenizer.bos_token_id if sets_bos(tokenizer) else None
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._order: dict[int, list[int]] = {}

    def __call__(self, length: int) -> Tensor:
        order = self._order.setdefault(length, [])
        if not order:
            count = len(self.tokens) // length
            if not count:
                raise UserError(
                    f"the text holds {len(self.tokens)} tokens here (one part in {HELD_OUT} is held out), too few for rows of "
                    f"{length}: give more text, or shorter job.lengths"
                )
            order.extend(self._rng.permutation(count).tolist())
        start = order.pop() * length
        row = torch.from_numpy(self.tokens[start : start + length].astype(np.int64))
        if self.first is not None:
            row[0] = self.first
        return row


def chunk_sources(
    documents: Iterable[Document], tokenizer: Any, seeds: tuple[int, int], train_tokens: int, test_tokens: int
) -> tuple[Chunks, Chunks]:
    """Return a source to train on, of about `train_tokens` tokens, and one of other text to measure recall on."""
    train, test = pack(documents, tokenizer, train_tokens, test_tokens)
    return Chunks(train, tokenizer, seeds[0]), Chunks(test, tokenizer, seeds[1])
