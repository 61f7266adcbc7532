"""The transpose of an index: which query blocks list a key block, against the mask that the index stands for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_kernels.block_index import BlockIndex, diagonal_mask
from attention_kernels.transposed_index import ROW_BITS, query_lists, transpose_index

from tests.kernels.oracle import CASES, Case

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LONG = Case(1, 4, 2, 1500, 1530, 16, 16, 16, 4)
"""More query blocks than a program of the Triton kernel takes at a time, and a chunk."""
FULL = [(CASES[0], 2), (CASES[1], 1), (CASES[4], 99)]


def strict_mask(index: BlockIndex) -> torch.Tensor:
    """The kept blocks, bool [B, H, Mq, Nk], without those over their own tokens, on the CPU."""
    return index.to_mask().cpu() & ~diagonal_mask(index.q_len, index.k_len, index.q_block, index.k_block)


def check(index: BlockIndex, kv_heads: int, kernel: str) -> None:
    mask = strict_mask(index)
    lists = index.heads // kv_heads
    transposed = transpose_index(index, kv_heads, kernel=kernel)
    starts, entries = transposed.starts.cpu(), transposed.entries.cpu()
    counts, rows = (x.cpu() for x in query_lists(index, kernel=kernel))
    assert starts.dtype == entries.dtype == counts.dtype == rows.dtype == torch.int32
    assert starts.shape == (mask.shape[0], kv_heads, mask.shape[3] * lists + 1)
    for b, head, col in torch.cartesian_prod(*(torch.arange(n) for n in (mask.shape[0], index.heads, mask.shape[3]))).tolist():
        expected = mask[b, head, :, col].nonzero()[:, 0].tolist()
        place, group, number = col * lists + head % lists, head // lists, head % lists
        begin, end = starts[b, group, place : place + 2].tolist()
        assert entries[b, group, begin:end].tolist() == [number << ROW_BITS | row for row in expected]
        assert rows[b, head, col, : counts[b, head, col]].tolist() == expected


@pytest.mark.parametrize("kernel", ["reference", "triton"])
@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[3], CASES[6], LONG], ids=str)
def test_lists_the_rows_of_every_key_block(kernel: str, case: Case) -> None:
    check(case.index(DEVICE), case.kv_heads, kernel)


@pytest.mark.parametrize("kernel", ["reference", "triton"])
@pytest.mark.parametrize(("case", "rows"), FULL, ids=str)
def test_full_rows_list_all_blocks(kernel: str, case: Case, rows: int) -> None:
    index = case.index(DEVICE, share=0.2).with_last_rows(rows)
    listed = replace(
        index, indices=index.indices[..., : int(index.counts[..., : index.listed_rows].amax()) if index.listed_rows else 1]
    )
    check(listed, case.kv_heads, kernel)


@pytest.mark.parametrize("kernel", ["reference", "triton"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_rows_of_the_diagonal_alone_and_of_all_blocks(kernel: str, share: float) -> None:
    check(CASES[0].index(DEVICE, share=share), 2, kernel)


def test_two_runs_are_equal_and_strides_do_not_matter() -> None:
    index = CASES[0].index(DEVICE)
    turned = replace(index, counts=index.counts.mT.contiguous().mT, indices=index.indices.mT.contiguous().mT)
    one, two = (transpose_index(x, 2, kernel="triton") for x in (index, turned))
    filled = torch.arange(one.entries.shape[-1], device=DEVICE) < one.starts[..., -1:]
    assert torch.equal(one.starts, two.starts) and torch.equal(one.entries[filled], two.entries[filled])


def test_more_rows_than_an_entry_holds_are_refused() -> None:
    index = CASES[0].index("cpu")
    many = replace(index, counts=index.counts[..., :1].expand(-1, -1, 1 << ROW_BITS))
    with pytest.raises(ValueError, match="use larger blocks"):
        transpose_index(many, 2)
