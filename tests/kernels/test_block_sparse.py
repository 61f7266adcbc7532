"""Block-sparse attention: every kernel against the formula in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.block_index import BlockIndex
from kernels.block_sparse import block_sparse_attention, resolve_kernel
from kernels.dense import dense_attention
from tests.kernels.oracle import CASES, Case, attention, error

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
GPU = pytest.mark.gpu
RUNS = [
    ("reference", "cpu", torch.float64), ("reference", "cpu", torch.float32), ("reference", "cpu", torch.float16),
    ("sdpa", "cpu", torch.float64), ("sdpa", "cpu", torch.float32), ("sdpa", "cpu", torch.bfloat16),
    ("triton", "cpu", torch.float32), ("triton", "cpu", torch.float16),
    pytest.param("triton", "cuda", torch.bfloat16, marks=GPU), pytest.param("triton", "cuda", torch.float16, marks=GPU),
    pytest.param("triton", "cuda", torch.float32, marks=GPU), pytest.param("reference", "cuda", torch.float32, marks=GPU),
    pytest.param("sdpa", "cuda", torch.bfloat16, marks=GPU),
]  # fmt: skip


def skip_interpreter_on_gpu(kernel: str, device: str) -> None:
    if kernel == "triton" and device == "cpu" and torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("kernel", "device", "dtype"), RUNS)
def test_equals_the_formula(kernel: str, device: str, dtype: torch.dtype, case: Case) -> None:
    skip_interpreter_on_gpu(kernel, device)
    q, k, v = case.tensors(dtype, device)
    index = case.index(device)
    if (kernel, dtype, case.dim) == ("triton", torch.float32, 256):
        with pytest.raises(ValueError, match="shared memory"):
            block_sparse_attention(q, k, v, index, kernel=kernel)
        return
    out = block_sparse_attention(q, k, v, index, kernel=kernel)
    assert out.dtype == dtype and out.shape == q.shape
    assert error(out, attention(q, k, v, index)) < TOLERANCE[dtype]


@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("kernel", ["reference", "sdpa", "triton"])
def test_every_block_size(kernel: str, block: int) -> None:
    device = "cuda" if torch.cuda.is_available() and kernel == "triton" else "cpu"
    case = Case(1, 2, 1, 2 * block + 3, 3 * block + 1, 64, block, block, 2)
    q, k, v = case.tensors(torch.float32, device)
    index = case.index(device)
    assert error(block_sparse_attention(q, k, v, index, kernel=kernel), attention(q, k, v, index)) < 1e-5


@pytest.mark.parametrize("kernel", ["reference", "sdpa", "triton"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_rows_of_one_block_and_full_rows(kernel: str, share: float) -> None:
    device = "cuda" if torch.cuda.is_available() and kernel == "triton" else "cpu"
    case = Case(1, 2, 2, 75, 75, 64, 16, 16, 2)
    q, k, v = case.tensors(torch.float32, device)
    index = case.index(device, share=share)
    assert index.counts.max() == (1 if share == 0 else 5)
    assert error(block_sparse_attention(q, k, v, index, kernel=kernel), attention(q, k, v, index)) < 1e-5


@pytest.mark.parametrize("kernel", ["reference", "sdpa", "triton"])
def test_what_is_not_selected_is_not_read(kernel: str) -> None:
    device = "cuda" if torch.cuda.is_available() and kernel == "triton" else "cpu"
    case = Case(1, 2, 1, 96, 96, 64, 16, 16, 1)
    q, k, v = case.tensors(torch.float32, device)
    index = case.index(device, share=0.3)
    unused = ~index.to_mask().any(2)[0, 0]
    assert unused.sum() == 0, "the diagonal uses every block somewhere; poison the future of one row instead"
    row = 2  # queries 32 … 47
    outside = ~index.to_mask()[0, 0, row].repeat_interleave(16)
    k[:, :, outside], v[:, :, outside] = float("nan"), float("nan")
    out = block_sparse_attention(q, k, v, index, kernel=kernel)
    assert torch.isfinite(out[:, :, row * 16 : row * 16 + 16]).all()


@pytest.mark.parametrize("kernel", ["reference", "sdpa", "triton"])
def test_every_element_is_written(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = "cuda" if torch.cuda.is_available() and kernel == "triton" else "cpu"
    case = Case(2, 4, 2, 67, 90, 32, 32, 16, 4)
    q, k, v = case.tensors(torch.float32, device)
    monkeypatch.setattr(torch, "empty_like", lambda x, **kw: torch.full_like(x, float("nan"), **kw))
    assert torch.isfinite(block_sparse_attention(q, k, v, case.index(device), kernel=kernel)).all()


@pytest.mark.parametrize("kernel", ["reference", "sdpa", "triton"])
def test_strided_inputs(kernel: str) -> None:
    device = "cuda" if torch.cuda.is_available() and kernel == "triton" else "cpu"
    case = Case(1, 4, 2, 80, 80, 64, 16, 16, 4)
    q, k, v = case.tensors(torch.float32, device)
    index = case.index(device)
    wanted = block_sparse_attention(q, k, v, index, kernel=kernel)
    bnhd = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    torch.testing.assert_close(block_sparse_attention(*bnhd, index, kernel=kernel), wanted)
    transposed = [x.mT.contiguous().mT for x in (q, k, v)]
    torch.testing.assert_close(block_sparse_attention(*transposed, index, kernel=kernel), wanted)


def test_scale_is_applied() -> None:
    case = CASES[0]
    q, k, v = case.tensors(torch.float64, "cpu")
    index = case.index("cpu")
    scaled = block_sparse_attention(q, k, v, index, scale=0.05)
    torch.testing.assert_close(scaled, block_sparse_attention(q * (0.05 * 8), k, v, index))


def test_full_index_is_dense() -> None:
    case = Case(2, 4, 2, 130, 170, 64, 32, 16, 4)
    q, k, v = case.tensors(torch.float32, "cpu")
    full = BlockIndex.full(2, 4, **case.grid)
    for kernel in ("reference", "sdpa", "triton") if not torch.cuda.is_available() else ("reference", "sdpa"):
        torch.testing.assert_close(
            block_sparse_attention(q, k, v, full, kernel=kernel),
            dense_attention(q, k, v, kernel="reference"),
            rtol=1e-4,
            atol=1e-5,
        )


@GPU
@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("dim", [64, 128])
def test_long_on_a_gpu(block: int, dim: int) -> None:
    case = Case(1, 4, 2, 8000, 8000, dim, block, block, 4)
    q, k, v = case.tensors(torch.bfloat16, "cuda")
    index = case.index("cuda", share=0.1)
    exact = block_sparse_attention(q.double(), k.double(), v.double(), index, kernel="reference").cpu()
    assert error(block_sparse_attention(q, k, v, index, kernel="triton"), exact) < 1e-2


def test_bad_input_is_one_clear_line() -> None:
    case = CASES[0]
    q, k, v = case.tensors(torch.float32, "cpu")
    index = case.index("cpu")
    with pytest.raises(ValueError, match="no multiple of"):
        block_sparse_attention(q[:, :3], k, v, index)
    with pytest.raises(ValueError, match="the index is for 100 queries"):
        block_sparse_attention(q[:, :, :90], k, v, index)
    with pytest.raises(ValueError, match="batch and heads"):
        block_sparse_attention(q, k, v, replace(index, counts=index.counts[:, :3], indices=index.indices[:, :3]))
    with pytest.raises(ValueError, match="types"):
        block_sparse_attention(q.half(), k, v, index)
    shape = {"device": torch.device("cpu"), "dtype": torch.float32, "head_dim": 64, "q_block": 64, "k_block": 64}
    with pytest.raises(ValueError, match="choose one of: auto, reference, sdpa, triton"):
        resolve_kernel("cutlass", **shape)
    with pytest.raises(ValueError, match="48 is not supported"):
        resolve_kernel("triton", **shape | {"q_block": 48})
    with pytest.raises(ValueError, match="float64"):
        resolve_kernel("triton", **shape | {"dtype": torch.float64})
    assert resolve_kernel("auto", **shape) == "sdpa"
