"""Rows of tokens that gates learn from: the bundled model's training mixture, books, or generated RULER samples."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.core.errors import UserError
from harness.models.loading import LoadedModel
from harness.tasks.haystack import haystack_source
from harness.tasks.names import expand_tasks
from harness.tasks.ruler.samples import get_samples
from harness.tasks.tokens import encode, sets_bos
from harness.training.bundled_model.corpus import build_corpus, read_texts
from harness.training.bundled_model.mixture import Mixture, fits_mixture
from harness.training.gates.packed_documents import HELD_OUT, chunk_sources, from_folder, from_hub, held_out

TRAINING_SEED = 1_000_003
"""Added to the seed of generated samples, so that no gate learns from a sample that a method is tested on."""

Rows = Callable[[int], Tensor]
KINDS = ("auto", "mixture", "books", "documents", "hub", "samples")


def row_sources(
    loaded: LoadedModel, data: dict[str, Any], seed: int, *, kind: str = "auto", train_tokens: int = 0, hub: str | None = None
) -> tuple[Rows, Rows]:
    """Return two sources of rows, int64 [length] each: one to train on, and one to measure recall on.

    The second is of text held out, or where rows are generated (mixture, samples) of other draws.

    kind: "mixture" (the bundled model's, of data.text_dir), "books" (stretches of data.text_dir from anywhere), "documents"
    (its files joined by EOS and cut), "hub" (so the data set `hub`; both read about `train_tokens` tokens), "samples"
    (generated), or "auto": the mixture where the tokenizer allows it, else books; samples without a text_dir.
    Raises UserError for an unknown kind, and where the text is missing or the tokenizer doesn't suit it.
    """
    kind = row_kind(loaded, data, kind)
    seeds = (TRAINING_SEED + seed, 2 * TRAINING_SEED + seed)
    if kind == "samples":
        first, second = (partial(from_samples, loaded, data, count(s)) for s in seeds)
        return first, second
    if kind == "hub":
        if not hub:
            raise UserError("job.rows=hub needs a data set: job.hub=OWNER/NAME")
        return chunk_sources(from_hub(hub, seed), loaded.tokenizer, seeds, train_tokens)
    if not data.get("text_dir"):
        raise UserError(f"job.rows={kind} needs text: name a folder of .txt files, data.text_dir=FOLDER")
    if kind == "documents":
        return chunk_sources(from_folder(data["text_dir"], seed), loaded.tokenizer, seeds, train_tokens)
    texts = read_texts(str(data["text_dir"]))
    if kind == "mixture":
        if not fits_mixture(loaded.tokenizer):
            raise UserError(f"job.rows=mixture: the tokenizer of {loaded.name} doesn't suit it; use job.rows=books")
        corpus = build_corpus(texts, loaded.tokenizer)
        first, second = (partial(from_mixture, Mixture(loaded.tokenizer, corpus, seed=s)) for s in seeds)
    else:
        parts = zip(held_out(book_tokens(texts, loaded.tokenizer)), seeds, strict=True)
        first, second = (partial(from_books, loaded.tokenizer, part, random.Random(s)) for part, s in parts)
    return first, second


def row_kind(loaded: LoadedModel, data: dict[str, Any], kind: str) -> str:
    """Return what "auto" means here, or another kind as it is. Raises UserError for an unknown one."""
    if kind not in KINDS:
        raise UserError(f"job.rows={kind}: must be one of {', '.join(KINDS)}")
    if kind != "auto":
        return kind
    return "samples" if not data.get("text_dir") else "mixture" if fits_mixture(loaded.tokenizer) else "books"


def text_id(folder: str) -> str:
    """Return a hash of the names and sizes of a folder's .txt files: it tells the same text without reading it.

    It guards a checkpoint against another folder, and is no identity of rows: reading gigabytes of text would take minutes.
    """
    root = Path(folder).expanduser()
    names_and_sizes = sorted((path.relative_to(root).as_posix(), path.stat().st_size) for path in root.rglob("*.txt"))
    return hashlib.sha256(repr(names_and_sizes).encode()).hexdigest()[:16]


def from_mixture(mixture: Mixture, length: int) -> Tensor:
    """Return a row of the bundled model's training mixture: of words and needles that no test has."""
    return torch.from_numpy(mixture.row(length)[0].astype("int64"))


def book_tokens(texts: dict[str, str], tokenizer: Any) -> np.ndarray:
    """Return all texts as one array of token ids, int64 [N], for any tokenizer."""
    chunks = [text[i : i + 100_000] for text in texts.values() for i in range(0, len(text), 100_000)]
    encoded = tokenizer(chunks, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return np.fromiter((token for ids in encoded for token in ids), dtype=np.int64)


def from_books(tokenizer: Any, tokens: np.ndarray, rng: random.Random, length: int) -> Tensor:
    """Return a stretch of the books, from a random place on, with BOS first where the tokenizer sets one."""
    if len(tokens) < length:
        raise UserError(
            f"data.text_dir holds {len(tokens)} tokens here (one part in {HELD_OUT} is held out), too few for rows of "
            f"{length}: give more text, or shorter job.lengths"
        )
    start = rng.randrange(len(tokens) - length + 1)
    row = torch.from_numpy(tokens[start : start + length].copy())
    if sets_bos(tokenizer):
        row[0] = tokenizer.bos_token_id
    return row


def from_samples(loaded: LoadedModel, data: dict[str, Any], seeds: Iterator[int], length: int) -> Tensor:
    """Return generated RULER samples of seeds that no test uses, joined and cut to the length; of the tasks that fit in it."""
    ids: list[int] = []
    names = expand_tasks("ruler_core")
    unfit: set[str] = set()
    while len(ids) < length:
        seed = next(seeds)
        name = random.Random(seed).choice(names)
        if name in unfit:
            continue
        try:
            sample = get_samples(name, loaded.tokenizer, length, 1, seed=seed, haystack=haystack_source(data))[0]
        except UserError as error:
            if "too short" not in str(error):
                raise
            unfit.add(name)
            if len(unfit) == len(names):
                raise UserError(f"job.lengths: {length} tokens are too few for every task; use longer rows") from error
            continue
        sample_ids = encode(loaded.tokenizer, f"{sample.prompt} {', '.join(sample.answers)}")
        # one BOS in a row, at its start
        ids += sample_ids[1:] if ids and sample_ids[0] == loaded.tokenizer.bos_token_id else sample_ids
    return torch.tensor(ids[:length])
