"""Training batches of mixed lengths, drawn by worker processes while the GPU works."""

from __future__ import annotations

import multiprocessing as mp
import random
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from harness.training.bundled_model.corpus import Corpus
from harness.training.bundled_model.mixture import Mixture

LENGTHS = [256 << i for i in range(10)]  # 256 … 131072


@dataclass
class Batch:
    """One training step.

    ids: int64 [B, L]. positions: int64 [1, L]. where: int64 [M], into the flattened [B * L] tokens, those whose *next* token is
    scored. targets: int64 [M]. weights: float32 [M].
    """

    ids: torch.Tensor
    positions: torch.Tensor
    where: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor

    def to(self, device: str) -> Batch:
        """Return the batch on a device."""
        tensors = (self.ids, self.positions, self.where, self.targets, self.weights)
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in tensors))


def longest(progress: float, final: int) -> int:
    """Return the longest length at this point of training: 512 at first, 16k after a fifth, `final` from just past half on."""
    stages = [
        (0.05, 512),
        (0.07, 1024),
        (0.10, 2048),
        (0.14, 4096),
        (0.20, 8192),
        (0.32, 16384),
        (0.44, 32768),
        (0.55, 65536),
    ]
    return min(final, next((length for until, length in stages if progress < until), 131072))


def draw_length(rng: random.Random, progress: float, final: int) -> int:
    """Draw a length up to `longest`; its share of the time grows with its fourth root, and the longest gets half more."""
    top = longest(progress, final)
    choices = [n for n in LENGTHS if n <= top]
    weights = [(n / 1024) ** 0.25 * (1.5 if n == top else 1.0) / ((1 if n <= 65536 else 2) * (8 + n / 1024)) for n in choices]
    return rng.choices(choices, weights)[0]


def skipping_positions(rng: random.Random, length: int, final: int) -> np.ndarray:
    """Draw positions 0 … `final` with a few random jumps (PoSE, arXiv 2309.10400): long distances seen in short rows."""
    jumps = np.zeros(length, dtype=np.int64)
    total = int((final - length) * rng.random())
    cuts = sorted(rng.randrange(1, length) for _ in range(rng.randint(1, 8)))
    shares = sorted(rng.randrange(total + 1) for _ in range(len(cuts) - 1))
    for cut, jump in zip(cuts, np.diff([0, *shares, total]), strict=True):
        jumps[cut] += int(jump)
    return np.arange(length) + np.cumsum(jumps)


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Endless batches of about `tokens` tokens, of lengths up to `final` that `progress` (0 … 1, shared with the loop) sets."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        corpus: Corpus,
        progress: Synchronized[float],
        *,
        seed: int,
        tokens: int,
        final: int,
    ) -> None:
        self.tokenizer, self.corpus, self.progress, self.seed = tokenizer, corpus, progress, seed
        self.tokens, self.final = tokens, final

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        seed = self.seed * 1000 + (info.id if info else 0)
        rng, mixture = random.Random(seed + 1), Mixture(self.tokenizer, self.corpus, seed)
        while True:
            progress = float(self.progress.value)
            length = draw_length(rng, progress, self.final)
            rows = [mixture.row(length) for _ in range(max(1, self.tokens // length))]
            skip = length <= 16384 and progress > 0.25 and rng.random() < 0.3
            positions = skipping_positions(rng, length, self.final) if skip else np.arange(length)
            yield collate(rows, positions, rng)


def collate(rows: list[tuple[np.ndarray, np.ndarray]], positions: np.ndarray, rng: random.Random) -> Batch:
    """Return rows as one batch; score every answer token and as many context tokens as make a quarter of the batch.

    The context as a whole weighs as much as the answers, so that a long row with few answers still trains on them.
    """
    ids = torch.from_numpy(np.stack([r[0] for r in rows]).astype(np.int64))
    answer = np.stack([r[1] for r in rows])
    scored = np.zeros_like(answer)
    scored[:, :-1] = answer[:, 1:]
    usable = np.ones_like(answer)
    usable[:, -1] = False
    budget = answer.size // 4
    draw = np.random.Generator(np.random.PCG64(rng.getrandbits(63)))
    order = np.where(scored, 2.0, np.where(usable, draw.random(answer.shape), -1.0)).ravel()
    where = np.sort(np.argpartition(-order, budget - 1)[:budget])
    is_answer = scored.ravel()[where]
    context_weight = min(0.3, is_answer.sum() / max(1, (~is_answer).sum())) or 0.1
    weights = np.where(is_answer, 1.0, context_weight).astype(np.float32)
    flat = ids.ravel()
    scored_places = torch.from_numpy(where)
    targets = flat[scored_places + 1]
    return Batch(ids, torch.from_numpy(positions)[None], scored_places, targets, torch.from_numpy(weights))


def loader(stream: Stream, workers: int) -> Iterator[Batch]:
    """Return batches from `workers` processes (0: from this one)."""
    kwargs: dict[str, Any] = {}
    if workers:
        kwargs = {"prefetch_factor": 2, "multiprocessing_context": mp.get_context("fork")}
    pin = torch.cuda.is_available()
    return iter(DataLoader(stream, batch_size=None, num_workers=workers, pin_memory=pin, **kwargs))
