"""Rows of documents joined by the end-of-text token and cut to length, the text that SeerAttention's gates learn from."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.core.errors import UserError
from harness.tasks.tokens import sets_bos

PIECE = 100_000
"""Characters that are tokenised at once."""

HELD_OUT = 20
"""One part in so many, the last, is held out from training to measure recall on."""

SHUFFLED = 10_000
"""Documents of the hub among which the next one is drawn."""


def from_folder(folder: str | Path, seed: int) -> Iterator[str]:
    """Yield every .txt below `folder` as it is, in an order drawn from the seed. Raises UserError where there is none."""
    paths = sorted(Path(folder).expanduser().rglob("*.txt"))
    if not paths:
        raise UserError(f"data.text_dir={folder}: no .txt file there; name a folder of plain-text documents")
    random.Random(seed).shuffle(paths)
    for path in paths:
        yield path.read_text(encoding="utf-8", errors="replace")


def from_hub(name: str, seed: int) -> Iterator[str]:
    """Yield the documents of a data set of the hub that has a column "text", streamed: no more is downloaded than is used."""
    try:
        from datasets import load_dataset

        rows = load_dataset(name, split="train", streaming=True).shuffle(seed=seed, buffer_size=SHUFFLED)
        for row in rows:
            yield row["text"]
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(
            f"job.hub={name}: can't be read from the hub ({type(error).__name__}: {first}); it needs the network and a column "
            "named text. Or give a folder of .txt files: job.rows=documents data.text_dir=FOLDER"
        ) from None


def pack(texts: Iterable[str], tokenizer: Any, train_tokens: int) -> np.ndarray:
    """Return the documents' token ids, int32 [N], the end-of-text token after each.

    Stops once there are `train_tokens` to train on, beside those held out. Raises UserError for a tokenizer without that token.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError(
            "job.rows: documents are joined by the end-of-text token, and the tokenizer has none; use job.rows=books"
        )
    ids = array("i")
    for text in texts:
        pieces = [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
        if pieces:
            for part in tokenizer(pieces, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]:
                ids.extend(part)
            ids.append(end)
        if len(ids) * (HELD_OUT - 1) >= train_tokens * HELD_OUT:
            break
    return np.frombuffer(ids, dtype=np.int32)


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


def held_out(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens to train on, and the last part, to measure recall on."""
    cut = len(tokens) - len(tokens) // HELD_OUT
    return tokens[:cut], tokens[cut:]


def chunk_sources(texts: Iterable[str], tokenizer: Any, seeds: tuple[int, int], train_tokens: int) -> tuple[Chunks, Chunks]:
    """Return a source to train on, of about `train_tokens` tokens, and one of other text to measure recall on."""
    train, test = held_out(pack(texts, tokenizer, train_tokens))
    return Chunks(train, tokenizer, seeds[0]), Chunks(test, tokenizer, seeds[1])
