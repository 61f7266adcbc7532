"""Blocks that diagonals cross, against every (query, key) pair."""

from __future__ import annotations

import pytest
import torch
from attention_kernels.block_index import causal_mask
from attention_kernels.diagonal_blocks import diagonal_blocks
from torch import Tensor

SHAPES = [(100, 100), (96, 96), (70, 131), (33, 161), (1, 40), (5, 5), (64, 80)]
"""(queries, keys): odd lengths, whole blocks, chunks of a prompt that start inside a block."""


def crossed(diagonals: Tensor, q_len: int, k_len: int, block: int) -> Tensor:
    """bool [B,H,Mq,Nk] by definition, rows taken whole as a release's kernel takes them: the last may be short."""
    rows, cols = -(-q_len // block), -(-k_len // block)
    query = torch.arange(rows * block)[:, None] + k_len - q_len
    distance = query - torch.arange(cols * block)
    seen = (distance >= 0) & (distance < k_len)
    pairs = diagonals[..., distance.clamp(0, k_len - 1)] & seen
    blocks = pairs.unflatten(-1, (cols, block)).unflatten(-3, (rows, block)).any(-1).any(-2)
    return blocks & causal_mask(q_len, k_len, block, block)


@pytest.mark.parametrize("kernel", ["reference", "triton"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("most", [1, 3, 40])
def test_holds_every_block_that_is_crossed(kernel: str, shape: tuple[int, int], most: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q_len, k_len = shape
    order = torch.rand(2, 3, k_len, generator=torch.Generator().manual_seed(most)).argsort(-1)
    diagonals = order < most - 1
    diagonals[..., 0] = True
    index = diagonal_blocks(diagonals.to(device), block=16, q_len=q_len, k_len=k_len, most=most, kernel=kernel)
    index.validate()
    assert torch.equal(index.to_mask().cpu(), crossed(diagonals, q_len, k_len, 16))
    wide = diagonal_blocks(diagonals.to(device), block=16, q_len=q_len, k_len=k_len, kernel=kernel)
    assert torch.equal(wide.to_mask(), index.to_mask())


def test_bad_input_is_one_clear_line() -> None:
    with pytest.raises(ValueError, match=r"diagonals must be bool \[B, H, 40\], not torch.int64"):
        diagonal_blocks(torch.ones(1, 1, 40, dtype=torch.int64), block=16, q_len=40, k_len=40)
