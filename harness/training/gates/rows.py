"""Rows of tokens that gates learn from: the bundled model's training mixture, books, or generated RULER samples."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import UserError
from harness.core.input_files import text_files
from harness.models.loading import LoadedModel
from harness.tasks.haystack import haystack_source
from harness.tasks.names import expand_tasks
from harness.tasks.ruler.samples import get_samples
from harness.tasks.tokens import encode, sets_bos
from harness.training.bundled_model.corpus import Corpus, build_corpus
from harness.training.bundled_model.mixture import Mixture, fits_mixture
from harness.training.gates.packed_documents import chunk_sources, from_folder, from_hub
from harness.training.gates.text_folder import HELD_OUT, TextPart, held_out, text_folder

TRAINING_SEED = 1_000_003
"""Added to the seed of generated samples, so that no gate learns from a sample that a method is tested on."""

TOKEN_BYTES = 6
"""Bytes of text that are read at first for every token that is needed."""
CORPUS_BYTES = 1 << 20
"""Bytes at least that prose and words of a mixture are drawn from."""
STRETCH_BYTES = 100_000
"""Bytes of a stretch of that text."""

Rows = Callable[[int], Tensor]
KINDS = ("auto", "mixture", "books", "documents", "hub", "samples")
DRAWN = ("mixture", "books", "samples")
"""The kinds whose rows are made one by one; the others are tokenised as a whole."""
BY_NEED = ("mixture", "documents", "hub")
"""The kinds of which no more text is read than is needed, and whose rows are drawn from all that was read."""


@dataclass(frozen=True)
class TextNeeds:
    """How much text is read: tokens to train on, and the lengths of the rows that recall is measured on."""

    train_tokens: int
    test_lengths: Sequence[int]

    @property
    def test_tokens(self) -> int:
        """Return how many tokens the held-out rows have."""
        return sum(self.test_lengths)


def row_sources(
    loaded: LoadedModel, data: dict[str, Any], seed: int, *, needs: TextNeeds, kind: str = "auto", hub: str | None = None
) -> tuple[Rows, Rows]:
    """Return two sources of rows, int64 [length] each: one to train on, and one to measure recall on.

    The second is of text held out, or where rows are generated (mixture, samples) of other draws. Which rows it gives does not
    depend on how much is trained. Of the text, no more is tokenised than `needs` says.

    kind: "mixture" (the bundled model's, of data.text_dir), "books" (stretches of data.text_dir from anywhere), "documents"
    (its files joined by EOS and cut), "hub" (so the data set `hub`), "samples" (generated), or "auto": the mixture where the
    tokenizer allows it, else books; samples without a text_dir.
    Raises UserError for an unknown kind, and where the text is missing or the tokenizer doesn't suit it.
    """
    kind = check_text(loaded, data, kind, hub)
    seeds, tokenizer = (TRAINING_SEED + seed, 2 * TRAINING_SEED + seed), loaded.tokenizer
    if kind == "samples":
        first, second = (partial(from_samples, loaded, data, count(s)) for s in seeds)
        return first, second
    if kind in ("hub", "documents"):
        documents = from_hub(str(hub), seed) if kind == "hub" else from_folder(data["text_dir"], seed)
        return chunk_sources(documents, tokenizer, seeds, needs.train_tokens, needs.test_tokens)
    text = text_folder(data["text_dir"])
    if kind == "mixture":
        corpora = corpora_of(text, tokenizer, (needs.train_tokens, needs.test_tokens), seeds)
        first, second = (
            partial(from_mixture, Mixture(tokenizer, corpus, seed=s)) for corpus, s in zip(corpora, seeds, strict=True)
        )
    else:
        parts = zip(held_out(text), seeds, strict=True)
        first, second = (partial(from_books, tokenizer, part, random.Random(s)) for part, s in parts)
    return first, second


def row_kind(loaded: LoadedModel, data: dict[str, Any], kind: str) -> str:
    """Return what "auto" means here, or another kind as it is. Raises UserError for an unknown one."""
    if kind not in KINDS:
        raise UserError(f"job.rows={kind}: must be one of {', '.join(KINDS)}")
    if kind != "auto":
        return kind
    return "samples" if not data.get("text_dir") else "mixture" if fits_mixture(loaded.tokenizer) else "books"


def check_text(loaded: LoadedModel, data: dict[str, Any], kind: str, hub: str | None) -> str:
    """Return `row_kind` where there is text for it, as far as that shows without reading it. Raises UserError otherwise."""
    kind = row_kind(loaded, data, kind)
    if kind == "hub" and not hub:
        raise UserError("job.rows=hub needs a data set: job.hub=OWNER/NAME")
    if kind == "mixture" and not fits_mixture(loaded.tokenizer):
        raise UserError(f"job.rows=mixture: the tokenizer of {loaded.name} doesn't suit it; use job.rows=books")
    if kind in ("mixture", "books", "documents"):
        if not data.get("text_dir"):
            raise UserError(f"job.rows={kind} needs text: name a folder of .txt files, data.text_dir=FOLDER")
        text_files("data.text_dir", data["text_dir"], "name a folder of plain-text documents")
    return kind


def text_id(folder: str) -> str:
    """Return a hash of the names and sizes of a folder's .txt files: it tells the same text without reading it.

    It guards a checkpoint against another folder, and is no identity of rows: reading gigabytes of text would take minutes.
    """
    root = Path(folder).expanduser()
    paths = text_files("data.text_dir", folder, "name a folder of plain-text books")
    names_and_sizes = sorted((path.relative_to(root).as_posix(), path.stat().st_size) for path in paths)
    return hashlib.sha256(repr(names_and_sizes).encode()).hexdigest()[:16]


def from_mixture(mixture: Mixture, length: int) -> Tensor:
    """Return a row of the bundled model's training mixture: of words and needles that no test has.

    Raises UserError where the text is shorter than a row, or holds no sentence.
    """
    corpus = mixture.pieces.corpus
    if len(corpus.tokens) <= length or not len(corpus.starts):
        raise UserError(
            f"data.text_dir holds {len(corpus.tokens)} tokens and begins {len(corpus.starts)} sentences, too few for rows of "
            f"{length}: give more text, or shorter job.lengths"
        )
    return torch.from_numpy(mixture.row(length)[0].astype("int64"))


def corpora_of(text: TextPart, tokenizer: Any, tokens: tuple[int, int], seeds: tuple[int, int]) -> list[Corpus]:
    """Return what two mixtures of so many tokens draw their prose and words from: all of the text, or stretches of it."""
    sizes = [max(CORPUS_BYTES, TOKEN_BYTES * count) for count in tokens]
    if text.size <= min(sizes):
        return [_whole_corpus(text, tokenizer)] * 2
    return [
        _whole_corpus(text, tokenizer)
        if text.size <= size
        else build_corpus(text.stretches(size, STRETCH_BYTES, random.Random(seed)), tokenizer)
        for size, seed in zip(sizes, seeds, strict=True)
    ]


@lru_cache(maxsize=1)  # the worker processes of a training are forked with it
def _whole_corpus(text: TextPart, tokenizer: Any) -> Corpus:
    """Return all of a text, tokenised."""
    return build_corpus(text.stretches(text.size, STRETCH_BYTES, random.Random()), tokenizer)


def from_books(tokenizer: Any, text: TextPart, rng: random.Random, length: int) -> Tensor:
    """Return a stretch of the books, from a random place on, with BOS first where the tokenizer sets one.

    Raises UserError where the text has too few tokens.
    """
    place, size, ids = rng.randrange(max(1, text.size)), TOKEN_BYTES * length, list[int]()
    while len(ids) < length:
        words = text.read(place, size)
        if size < text.size:  # a place is rarely where a word begins
            words = words.partition(" ")[2]
        ids = tokenizer(words, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        if len(ids) < length and size >= text.size:
            raise UserError(
                f"data.text_dir holds {len(ids)} tokens here (one part in {HELD_OUT} is held out), too few for rows of "
                f"{length}: give more text, or shorter job.lengths"
            )
        size *= 2
    row = torch.tensor(ids[:length])
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
