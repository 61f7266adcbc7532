"""Batches of rows, drawn by worker processes while the device trains."""

from __future__ import annotations

import multiprocessing as mp
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import count

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from harness.training.gates.rows import Rows

WORKER_SEEDS = 100_000_000
"""Seeds from one worker's rows to the next one's."""
PREFETCHED = 4
"""Batches that each worker draws ahead."""


def batches(rows: Rows, lengths: Sequence[int], tokens: int, *, first: int = 0, step: int = 1) -> Iterator[Tensor]:
    """Yield endless [B,N] token batches, number `first` and every `step`-th after it, N going round `lengths` and B · N about
    `tokens`."""
    for number in count(first, step):
        length = lengths[number % len(lengths)]
        yield torch.stack([rows(length) for _ in range(max(1, tokens // length))])


def drawn_by_workers(
    source: Callable[[int], Rows], lengths: Sequence[int], tokens: int, *, workers: int, seed: int
) -> Iterator[Tensor]:
    """Yield the batches that `workers` processes draw in turn, each from a source of its own seed: source(seed) returns rows.

    Which rows come depends on the number of workers, so it is part of what a training is of.
    """
    stream = _Stream(source, lengths, tokens, seed)
    return iter(
        DataLoader(
            stream,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=PREFETCHED,
            multiprocessing_context=mp.get_context("fork"),  # the tokenizer and the text are there already
        )
    )


class _Stream(IterableDataset):  # type: ignore[type-arg]
    """The batches of one worker."""

    def __init__(self, source: Callable[[int], Rows], lengths: Sequence[int], tokens: int, seed: int) -> None:
        self.source, self.lengths, self.tokens, self.seed = source, lengths, tokens, seed

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        assert worker is not None
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads don't outlive a fork
        rows = self.source(self.seed + WORKER_SEEDS * worker.id)
        yield from batches(rows, self.lengths, self.tokens, first=worker.id, step=worker.num_workers)
