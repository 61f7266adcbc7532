"""Lists made of a mask in one launch against those of plain PyTorch."""

from __future__ import annotations

import attention_kernels.mask_lists.triton_kernel as kernel_file
import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.mask_lists import mask_lists

CPU_TRITON = pytest.mark.skipif(torch.cuda.is_available(), reason="interpreter")
DEVICES = [pytest.param("cpu", marks=CPU_TRITON), pytest.param("cuda", marks=pytest.mark.gpu)]
GRIDS = [
    {"q_block": 16, "k_block": 16, "q_len": 80, "k_len": 80},
    {"q_block": 32, "k_block": 16, "q_len": 93, "k_len": 205},  # a chunk of a prompt, off the blocks
    {"q_block": 16, "k_block": 64, "q_len": 40, "k_len": 600},
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("grid", "columns"), list(zip(GRIDS, [1024, 4, 4], strict=True)))  # a row at once, and in parts
def test_lists_are_those_of_the_reference(
    grid: dict[str, int], columns: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_file, "MOST_COLUMNS", columns)
    rows, cols = -(-grid["q_len"] // grid["q_block"]), -(-grid["k_len"] // grid["k_block"])
    mask = torch.rand(1, cols, 3, rows, generator=torch.Generator().manual_seed(cols)) < 0.4
    mask[:, :, 0], mask[:, :, 1] = False, True
    for strided in (mask.permute(0, 2, 3, 1).to(device), mask.permute(0, 2, 3, 1)[:, 2:].contiguous().expand(2, -1, -1, -1)):
        longest = int(mask_lists(strided, width=None, **grid)[0].max())
        counts, indices = mask_lists(strided.to(device), width=longest, kernel="triton", **grid)
        expected = mask_lists(strided.to(device), width=longest, kernel="reference", **grid)
        assert torch.equal(counts, expected[0]) and torch.equal(indices, expected[1])
        BlockIndex(counts, indices, **grid).validate()


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [4096, 65536])
def test_lists_at_the_lengths_of_prompts(tokens: int) -> None:
    grid = {"q_block": 64, "k_block": 64, "q_len": tokens, "k_len": tokens}
    mask = torch.rand(1, 8, tokens // 64, tokens // 64, device="cuda") < 0.1
    lists, expected = (mask_lists(mask, width=grid["k_len"] // 64, kernel=kernel, **grid) for kernel in ("auto", "reference"))
    assert all(torch.equal(one, other) for one, other in zip(lists, expected, strict=True))


def test_an_unknown_kernel_is_one_line() -> None:
    with pytest.raises(ValueError, match="kernel=tritn is not known; choose one of: auto, reference, triton"):
        mask_lists(torch.ones(1, 1, 10, 10, dtype=torch.bool), width=None, kernel="tritn", **GRIDS[0])
