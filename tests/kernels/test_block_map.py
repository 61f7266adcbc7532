"""The pooled attention map against the whole map in float64."""

from __future__ import annotations

import pytest
import torch

from kernels.block_index import BlockIndex, causal_mask
from kernels.block_map import block_map
from tests.kernels.oracle import CASES, Case, probabilities, token_mask

GPU = pytest.mark.gpu


def pooled(case: Case, q: torch.Tensor, k: torch.Tensor, pool: str) -> torch.Tensor:
    full = BlockIndex.full(case.batch, case.heads, **case.grid)
    probs = probabilities(q, k, token_mask(full, case.heads))
    rows, cols = -(-case.q_len // case.q_block), -(-case.k_len // case.k_block)
    out = torch.zeros(case.batch, case.heads, rows, cols, dtype=torch.float64)
    for i in range(rows):
        for j in range(cols):
            tile = probs[:, :, i * case.q_block : (i + 1) * case.q_block, j * case.k_block : (j + 1) * case.k_block]
            out[:, :, i, j] = tile.amax((2, 3)) if pool == "max" else tile.sum((2, 3)) / tile.shape[2]
    return out


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("pool", ["max", "mass"])
@pytest.mark.parametrize(
    ("kernel", "device", "dtype"),
    [
        ("reference", "cpu", torch.float64), ("reference", "cpu", torch.float32), ("triton", "cpu", torch.float32),
        pytest.param("triton", "cuda", torch.bfloat16, marks=GPU), pytest.param("triton", "cuda", torch.float32, marks=GPU),
    ],
)  # fmt: skip
def test_equals_the_whole_map_pooled(kernel: str, device: str, dtype: torch.dtype, pool: str, case: Case) -> None:
    if kernel == "triton" and device == "cpu" and torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    q, k, _ = case.tensors(dtype, device)
    if (kernel, dtype, case.dim) == ("triton", torch.float32, 256):
        with pytest.raises(ValueError, match="shared memory"):
            block_map(q, k, q_block=case.q_block, k_block=case.k_block, pool=pool, kernel=kernel)
        return
    found = block_map(q, k, q_block=case.q_block, k_block=case.k_block, pool=pool, kernel=kernel)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu().double(), pooled(case, q, k, pool), rtol=1e-4, atol=1e-6)
    assert (found[:, :, ~causal_mask(**case.grid, device=device)] == 0).all()
    if pool == "mass":
        torch.testing.assert_close(found.sum(-1).cpu(), torch.ones(found.shape[:-1]), rtol=1e-4, atol=1e-5)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(1, 2, 1, 300, 340, 32, 32, 16, 2)
    q, k, _ = case.tensors(torch.float32, "cpu")
    whole = block_map(q, k, q_block=32, k_block=16, kernel="reference")
    monkeypatch.setattr("kernels.block_map.reference.CHUNK_BYTES", 1)
    torch.testing.assert_close(block_map(q, k, q_block=32, k_block=16, kernel="reference"), whole)


def test_bad_input_is_one_clear_line() -> None:
    q = torch.randn(1, 1, 32, 16)
    with pytest.raises(ValueError, match="choose one of: max, mass"):
        block_map(q, q, q_block=16, k_block=16, pool="median")
    with pytest.raises(ValueError, match="choose one of: auto, reference, triton"):
        block_map(q, q, q_block=16, k_block=16, kernel="cuda")
