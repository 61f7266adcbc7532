"""Shapes of selections, the kernels that run them, and their ranking in plain Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from attention_kernels.block_index import BlockIndex, causal_blocks, diagonal_start
from attention_kernels.selection import select_from_pooled
from torch import Tensor

GPU = pytest.mark.gpu
CPU_TRITON = pytest.mark.skipif(torch.cuda.is_available(), reason="interpreter")
KERNELS = [
    ("reference", "cpu", torch.float32),
    pytest.param("triton", "cpu", torch.float32, marks=CPU_TRITON),
    pytest.param("triton", "cpu", torch.float16, marks=CPU_TRITON),
    pytest.param("triton", "cuda", torch.float32, marks=GPU),
    pytest.param("triton", "cuda", torch.bfloat16, marks=GPU),
]


@dataclass(frozen=True)
class Case:
    """Shapes of one selection; share: query heads with one index, combine: how their scores become one."""

    batch: int
    heads: int
    key_heads: int
    q_len: int
    k_len: int
    q_block: int
    k_block: int
    dim: int
    share: int = 1
    combine: str = "mean"

    @property
    def grid(self) -> dict[str, int]:
        return {"q_block": self.q_block, "k_block": self.k_block, "q_len": self.q_len, "k_len": self.k_len}

    def vectors(self, dtype: torch.dtype, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        rows, cols = -(-self.q_len // self.q_block), -(-self.k_len // self.k_block)
        q = torch.randn(self.batch, self.heads, rows, self.dim, generator=generator)
        k = torch.randn(self.batch, self.key_heads, cols, self.dim, generator=generator)
        return q.to(device, dtype), k.to(device, dtype)

    def select(self, q: Tensor, k: Tensor, kernel: str, **rule: object) -> BlockIndex:
        index = select_from_pooled(
            q, k, scale=self.dim**-0.5, share=self.share, combine=self.combine, kernel=kernel, **self.grid, **rule
        )  # type: ignore[arg-type]
        index.validate()
        assert index.counts.shape[1] == self.heads // self.share
        width = index.indices.shape[-1]
        assert not index.indices[torch.arange(width, device=q.device) >= index.counts[..., None]].any(), "the tail is zero"
        return index


CASES = [
    Case(1, 2, 1, 400, 400, 16, 16, 32),
    Case(2, 1, 1, 205, 845, 16, 16, 24),  # a chunk of a prompt, off the blocks
    Case(1, 4, 2, 500, 500, 32, 16, 16, 2),  # unequal blocks: two columns on the diagonal, or three
    Case(1, 4, 4, 300, 437, 16, 32, 16, 2, "max"),
    Case(1, 4, 4, 300, 300, 16, 16, 16, 4),  # a shared index of keys of their own, and of more heads than read the same keys
    Case(1, 4, 2, 300, 300, 16, 16, 16, 4),
    Case(2, 8, 2, 205, 300, 16, 16, 24, 4),  # of heads that read the same keys
    Case(1, 6, 2, 205, 205, 16, 16, 16, 3),
    Case(1, 14, 2, 205, 210, 16, 16, 64, 7),
    Case(1, 7, 1, 205, 300, 16, 16, 16, 7, "max"),
    Case(1, 3, 3, 205, 300, 16, 16, 64),  # a gate's keys: one vector for each query head
    Case(1, 1, 1, 1, 40, 16, 16, 16),
    Case(1, 1, 1, 7, 7, 16, 16, 16),
]


HALVES = [CASES[i] for i in (0, 3, 4, 6)]
"""One of each way to make scores: of single heads, the largest, the mean of heads with keys of their own, of a folded mean."""


def runs(*rules: dict[str, Any]) -> list[Any]:
    """(kernel, device, dtype, case, rule): every rule in every case for the reference. For Triton, where a run takes a second
    in the interpreter and a compilation on a GPU, the cases take the rules in turn: a rule reads scores and does not know how
    they were made. What float16 and bfloat16 change is how they are made: one case of each way."""
    kernels = [
        ("reference", "cpu", torch.float32, CASES, len(rules), ()),
        ("triton", "cpu", torch.float32, CASES, 1, CPU_TRITON),
        ("triton", "cpu", torch.float16, HALVES, 1, CPU_TRITON),
        ("triton", "cuda", torch.float32, CASES, 1, GPU),
        ("triton", "cuda", torch.bfloat16, HALVES, 1, GPU),
    ]
    return [
        pytest.param(kernel, device, dtype, case, rules[(i + turn) % len(rules)], marks=marks)
        for kernel, device, dtype, cases, turns, marks in kernels
        for i, case in enumerate(cases)
        for turn in range(turns)
    ]


def true_scores(case: Case, q: Tensor, k: Tensor) -> Tensor:
    """float64 [B, H, Mq, Nk]."""
    keys = k.cpu().double().repeat_interleave(case.heads // case.key_heads, 1)
    scores = (q.cpu().double() @ keys.mT * case.dim**-0.5).unflatten(1, (-1, case.share))
    return scores.mean(2) if case.combine == "mean" else scores.amax(2)


def ranked(case: Case, scores: Tensor) -> list[tuple[Tensor, int, list[int]]]:
    """Of each row: its causal scores, how many blocks are forced, and the columns best first after the diagonal."""
    causal, own = causal_blocks(**case.grid).tolist(), diagonal_start(**case.grid).tolist()
    rows = []
    for head in scores.flatten(0, 1):
        for row, (end, start) in enumerate(zip(causal, own, strict=True)):
            order = sorted(range(start), key=lambda c, line=head[row]: (-line[c].item(), c))
            rows.append((head[row, :end], end - start, [*range(start, end), *order]))
    return rows


def selected_sets(index: BlockIndex) -> list[set[int]]:
    return [set(row.nonzero().flatten().tolist()) for row in index.to_mask().cpu().flatten(0, 2)]
