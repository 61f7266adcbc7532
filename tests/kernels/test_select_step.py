"""Choosing blocks for one step: both kernels against a plain loop, sequences of different lengths, ties and NaN."""

from __future__ import annotations

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.selection import select_step
from torch import Tensor

BATCH, HEADS, LENGTH, BLOCK = 3, 2, 330, 16
STARTS = (0, 17, 250)
KERNELS = ["reference", "triton"]


def where(kernel: str) -> str:
    return "cuda" if torch.cuda.is_available() and kernel == "triton" else "cpu"


def scores(device: str = "cpu", seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(BATCH, HEADS, -(-LENGTH // BLOCK), generator=generator)).to(device)


def lists(index: BlockIndex) -> list[list[list[int]]]:
    """The chosen blocks of every sequence and head; entries past the count must be 0."""
    counts, indices = index.counts[..., 0].cpu(), index.indices[:, :, 0].cpu()
    assert bool((indices.masked_fill(torch.arange(indices.shape[-1]) < counts[..., None], 0) == 0).all())
    return [[row[:n].tolist() for row, n in zip(r, c, strict=True)] for r, c in zip(indices, counts.tolist(), strict=True)]


def best(row: list[float], blocks: int, count: int) -> list[int]:
    """The newest block, and the best of the others; of equal ones the earlier."""
    order = sorted(range(blocks - 1), key=lambda j: (-row[j], j))
    return sorted([blocks - 1, *order[: count - 1]])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_counts(kernel: str, padded: bool) -> None:
    device = where(kernel)
    values = scores(device)
    starts = torch.tensor(STARTS, dtype=torch.int32, device=device) if padded else None
    blocks = [-(-(LENGTH - s) // BLOCK) for s in (STARTS if padded else (0, 0, 0))]
    for expected in ([1, 1, 1], [7, 2, 5], blocks):
        counts = torch.tensor(expected, dtype=torch.int32, device=device)
        index = select_step(
            values, k_block=BLOCK, k_len=LENGTH, counts=counts, width=max(expected), starts=starts, kernel=kernel
        )
        assert index.indices.shape == (BATCH, HEADS, 1, max(expected)) and (index.q_len, index.k_len) == (1, LENGTH)
        for b in range(BATCH):
            for h in range(HEADS):
                assert lists(index)[b][h] == best(values[b, h].tolist(), blocks[b], expected[b])
        if not padded:
            index.validate()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_threshold(kernel: str, padded: bool) -> None:
    device = where(kernel)
    values = scores(device)
    starts = torch.tensor(STARTS, dtype=torch.int32, device=device) if padded else None
    index = select_step(values, k_block=BLOCK, k_len=LENGTH, threshold=0.03, starts=starts, kernel=kernel)
    sizes = set()
    for b in range(BATCH):
        blocks = -(-(LENGTH - (STARTS[b] if padded else 0)) // BLOCK)
        for h in range(HEADS):
            probs = values[b, h, :blocks].double().softmax(-1).tolist()
            expected = [j for j in range(blocks) if probs[j] > 0.03 or j == blocks - 1]
            assert lists(index)[b][h] == expected
            sizes.add(len(expected))
    assert len(sizes) > 1, "a threshold spends as much as each list needs"


@pytest.mark.parametrize("kernel", KERNELS)
def test_ties_go_to_the_earlier_and_nan_ranks_last(kernel: str) -> None:
    values = torch.zeros(1, 2, 10, device=where(kernel))
    values[0, 1, 2] = float("nan")
    values[0, 1, 5:7] = 1.0
    counts = torch.tensor([4], dtype=torch.int32, device=values.device)
    index = select_step(values, k_block=16, k_len=160, counts=counts, width=4, kernel=kernel)
    assert lists(index)[0] == [[0, 1, 2, 9], [0, 5, 6, 9]]
    everything = torch.tensor([9], dtype=torch.int32, device=values.device)
    index = select_step(values, k_block=16, k_len=160, counts=everything, width=9, kernel=kernel)
    assert lists(index)[0] == [[0, 1, 2, 3, 4, 5, 6, 7, 9], [0, 1, 3, 4, 5, 6, 7, 8, 9]]


def test_strided_scores() -> None:
    values = scores()
    wide = torch.nn.functional.pad(values, (0, 5), value=float("inf"))[..., : values.shape[-1]]
    counts = torch.tensor([4, 4, 4], dtype=torch.int32)
    for kernel in [k for k in KERNELS if where(k) == "cpu"]:
        one, two = (select_step(v, k_block=BLOCK, k_len=LENGTH, counts=counts, width=4, kernel=kernel) for v in (values, wide))
        assert torch.equal(one.indices, two.indices)


def test_bad_input_is_one_clear_line() -> None:
    counts = torch.ones(BATCH, dtype=torch.int32)
    for change, message in (
        ({"threshold": 0.1}, "give one rule"),
        ({"width": None}, "give one rule"),
        ({"k_len": 500}, "500 keys in blocks of 16 make 32"),
        ({"counts": counts.long()}, r"must be int32 \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            select_step(scores(), **{"k_block": BLOCK, "k_len": LENGTH, "counts": counts, "width": 1, **change})


@pytest.mark.gpu
def test_long_rows_on_a_gpu() -> None:
    values = torch.randn(4, 8, 8192, device="cuda")
    counts = torch.tensor([64, 1, 8192, 500], dtype=torch.int32, device="cuda")
    both = [select_step(values, k_block=16, k_len=131072, counts=counts, width=8192, kernel=kernel) for kernel in KERNELS]
    assert torch.equal(both[0].indices, both[1].indices) and torch.equal(both[0].counts, both[1].counts)
