"""Block-sparse attention: every kernel against the formula in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse import as_run, block_sparse_attention
from attention_kernels.block_sparse.table import BACKENDS
from attention_kernels.dense import dense_attention
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.oracle import CASES, COARSE, Case, attention, cases, error

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
GPU = pytest.mark.gpu
RUNS = [
    ("reference", "cpu", torch.float64),
    ("reference", "cpu", torch.float32),
    ("reference", "cpu", torch.float16),
    ("sdpa", "cpu", torch.float64),
    ("sdpa", "cpu", torch.float32),
    ("sdpa", "cpu", torch.bfloat16),
    ("triton", "cpu", torch.float32),
    ("triton", "cpu", torch.float16),
    *(
        pytest.param(kernel, "cuda", dtype, marks=GPU)
        for kernel, dtypes in {
            "triton": (torch.bfloat16, torch.float16, torch.float32),
            "reference": (torch.float32,),
            "sdpa": (torch.bfloat16,),
            "hopper": (torch.bfloat16, torch.float16),
            "flash4": (torch.bfloat16, torch.float16),
            "flex": (torch.bfloat16, torch.float32),
        }.items()
        for dtype in dtypes
    ),
]
COARSE_ONLY = ("hopper", "flash4")
"""Kernels whose tiles are 64 or 128 query rows; finer blocks of hopper need a shared index, see test_hopper."""
FINE_RUNS = [run for run in RUNS if getattr(run, "values", run)[0] not in COARSE_ONLY]
COARSE_RUNS = [run for run in RUNS if getattr(run, "values", run)[:2] != ("triton", "cpu")]


def crossed(kernels: list[Any], cases: list[Case]) -> list[Any]:
    """(kernel, device, dtype, case): all of them, but a second type of a kernel that compiles, or is interpreted, in three."""
    rows, seen = [], set()
    for run in kernels:
        kernel, device, dtype = getattr(run, "values", run)
        slow = kernel in ("triton", "hopper", "flash4", "flex") and (kernel, device) in seen
        seen.add((kernel, device))
        marks = getattr(run, "marks", ())
        rows += [pytest.param(kernel, device, dtype, case, marks=marks) for case in (cases[:3] if slow else cases)]
    return rows


EVERY = ["reference", "sdpa", "triton", *(pytest.param(name, marks=GPU) for name in ("hopper", "flash4", "flex"))]


def home(kernel: str) -> tuple[str, torch.dtype, int]:
    """Device, type and block size at which a kernel is tested here; skips where it can't run."""
    if kernel in ("reference", "sdpa"):
        return "cpu", torch.float32, 16
    if kernel == "triton":
        return "cuda" if torch.cuda.is_available() else "cpu", torch.float32, 16
    block = 128 if kernel in COARSE_ONLY else 16
    skip_where_it_cannot_run(kernel, torch.bfloat16, Case(1, 2, 1, 1, 1, 64, block, block, 2))
    return "cuda", torch.bfloat16, block


def skip_where_it_cannot_run(kernel: str, dtype: torch.dtype, case: Case, device: str = "cuda") -> None:
    reason = BACKENDS[kernel].reason(
        device=torch.device(device),
        dtype=dtype,
        head_dim=case.dim,
        q_block=case.q_block,
        k_block=case.k_block,
        shared=case.heads // case.index_heads,
    )
    if reason is not None:
        pytest.skip(f"{kernel}: {reason}")


def check(kernel: str, device: str, dtype: torch.dtype, case: Case, share: float = 0.4, seed: int = 1) -> None:
    q, k, v = case.tensors(dtype, device)
    index = case.index(device, share=share, seed=seed)
    out = block_sparse_attention(q, k, v, index, kernel=kernel)
    assert out.dtype == dtype and out.shape == q.shape and out.device == q.device
    assert error(out, attention(q, k, v, index)) < TOLERANCE[dtype]


@pytest.mark.parametrize(("kernel", "device", "dtype", "case"), crossed(FINE_RUNS, CASES), ids=str)
def test_equals_the_formula(kernel: str, device: str, dtype: torch.dtype, case: Case) -> None:
    if kernel == "triton" and device == "cpu" and torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    if device == "cuda":
        skip_where_it_cannot_run(kernel, dtype, case)
    check(kernel, device, dtype, case)


@pytest.mark.parametrize(("kernel", "device", "dtype", "case"), crossed(COARSE_RUNS, COARSE), ids=str)
def test_equals_the_formula_on_coarse_blocks(kernel: str, device: str, dtype: torch.dtype, case: Case) -> None:
    if device == "cuda":
        skip_where_it_cannot_run(kernel, dtype, case)
    check(kernel, device, dtype, case)


def examples(count: int) -> Callable[[Any], Any]:
    return settings(derandomize=True, deadline=None, max_examples=count, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("kernel", ["reference", "sdpa"])
@examples(60)
@given(cases(blocks=(8, 16, 48, 64), dims=(8, 40)), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 99))
def test_any_shape(kernel: str, case: Case, share: float, seed: int) -> None:
    check(kernel, "cpu", torch.float64, case, share, seed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
@examples(8)
@given(cases(blocks=(16, 32), longest=60), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 99))
def test_any_shape_in_the_interpreter(case: Case, share: float, seed: int) -> None:
    check("triton", "cpu", torch.float32, case, share, seed)


COMPILED = [
    # head dim, query block, key block, heads, KV heads, heads of the index
    (64, 128, 128, 2, 2, 2),
    (128, 128, 128, 4, 1, 4),
    (128, 64, 64, 4, 2, 2),
    (128, 64, 128, 3, 1, 3),
    (64, 128, 64, 6, 2, 2),
]
"""What a kernel is compiled for. Hypothesis draws lengths, batches and lists for these few: what it drew for all that may be
combined, FlashAttention-4 would compile, for seconds each."""


@GPU
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kernel", ["triton", "hopper", "flash4"])
def test_any_shape_on_a_gpu(kernel: str) -> None:
    home(kernel)

    @examples(60)
    @given(
        st.sampled_from(COMPILED),
        st.integers(1, 2),
        st.integers(1, 700),
        st.integers(0, 700),
        st.sampled_from([0.0, 0.3, 1.0]),
        st.integers(0, 99),
    )
    def run(shape: tuple[int, ...], batch: int, q_len: int, past: int, share: float, seed: int) -> None:
        dim, q_block, k_block, heads, kv_heads, index_heads = shape
        case = Case(batch, heads, kv_heads, q_len, q_len + past, dim, q_block, k_block, index_heads)
        where = {"q_block": case.q_block, "k_block": case.k_block, "shared": case.heads // case.index_heads}
        reason = BACKENDS[kernel].reason(device=torch.device("cuda"), dtype=torch.bfloat16, head_dim=case.dim, **where)
        if reason is None:
            check(kernel, "cuda", torch.bfloat16, case, share, seed)

    run()


@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("kernel", EVERY)
def test_every_block_size(kernel: str, block: int) -> None:
    device, dtype, _ = home(kernel)
    case = Case(1, 2, 1, 2 * block + 3, 3 * block + 1, 64, block, block, 2)
    if kernel in COARSE_ONLY:
        skip_where_it_cannot_run(kernel, dtype, case)
    check(kernel, device, dtype, case)


@pytest.mark.parametrize("kernel", EVERY)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_rows_of_one_block_and_full_rows(kernel: str, share: float) -> None:
    device, dtype, block = home(kernel)
    case = Case(1, 2, 2, 5 * block - 5, 5 * block - 5, 64, block, block, 2)
    assert case.index(device, share=share).counts.max() == (1 if share == 0 else 5)
    check(kernel, device, dtype, case, share)


@pytest.mark.parametrize("kernel", EVERY)
def test_what_is_not_selected_is_not_read(kernel: str) -> None:
    device, dtype, block = home(kernel)
    case = Case(1, 2, 1, 6 * block, 6 * block, 64, block, block, 1)
    q, k, v = case.tensors(dtype, device)
    index = case.index(device, share=0.3)
    row = 2  # every block is kept in some row; what is poisoned is the rest and the future of one row
    outside = ~index.to_mask()[0, 0, row].repeat_interleave(block)
    k[:, :, outside], v[:, :, outside] = float("nan"), float("nan")
    out = block_sparse_attention(q, k, v, index, kernel=kernel)
    assert torch.isfinite(out[:, :, row * block : (row + 1) * block]).all()


@pytest.mark.parametrize("kernel", EVERY)
def test_every_element_is_written(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device, dtype, block = home(kernel)
    case = Case(2, 4, 2, 4 * block + 3, 5 * block + 10, 64, block, block, 4)
    q, k, v = case.tensors(dtype, device)
    index = case.index(device)
    for name in ("empty", "empty_like"):  # what our kernels and FlashAttention-4 make their outputs with
        make = getattr(torch, name)

        def poisoned(*args: Any, make: Callable[..., torch.Tensor] = make, **kwargs: Any) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        monkeypatch.setattr(torch, name, poisoned)
    assert torch.isfinite(block_sparse_attention(q, k, v, index, kernel=kernel)).all()


@pytest.mark.parametrize("kernel", EVERY)
def test_strided_inputs(kernel: str) -> None:
    device, dtype, block = home(kernel)
    case = Case(1, 4, 2, 5 * block, 5 * block, 64, block, block, 4)
    q, k, v = case.tensors(dtype, device)
    index = case.index(device)
    expected = block_sparse_attention(q, k, v, index, kernel=kernel)
    bnhd = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    torch.testing.assert_close(block_sparse_attention(*bnhd, index, kernel=kernel), expected)
    transposed = [x.mT.contiguous().mT for x in (q, k, v)]
    torch.testing.assert_close(block_sparse_attention(*transposed, index, kernel=kernel), expected)


@pytest.mark.parametrize("kernel", EVERY)
def test_scale_is_applied(kernel: str) -> None:
    device, dtype, block = home(kernel)
    case = Case(1, 4, 2, 2 * block + 3, 2 * block + 3, 64, block, block, 4)
    q, k, v = case.tensors(dtype, device)
    index = case.index(device)
    scaled = block_sparse_attention(q, k, v, index, scale=0.25, kernel=kernel)  # of a power of two, q · 2 is exact
    torch.testing.assert_close(scaled, block_sparse_attention(q * 2, k, v, index, kernel=kernel))


@pytest.mark.parametrize("kernel", EVERY)
@pytest.mark.parametrize(("batch", "q_len"), [(0, 200), (1, 0)])
def test_nothing_to_do(kernel: str, batch: int, q_len: int) -> None:
    device, dtype, block = home(kernel)
    case = Case(batch, 4, 2, q_len, 200, 64, block, block, 4)
    index = BlockIndex.full(batch, 4, **case.grid, device=device)
    assert block_sparse_attention(*case.tensors(dtype, device), index, kernel=kernel).shape == (batch, 4, q_len, 64)


def test_full_index_is_dense() -> None:
    case = Case(2, 2, 1, 70, 110, 64, 32, 16, 2)
    q, k, v = case.tensors(torch.float32, "cpu")
    full = BlockIndex.full(2, 2, **case.grid)
    for kernel in ("reference", "sdpa", "triton") if not torch.cuda.is_available() else ("reference", "sdpa"):
        torch.testing.assert_close(
            block_sparse_attention(q, k, v, full, kernel=kernel),
            dense_attention(q, k, v, kernel="reference"),
            rtol=1e-4,
            atol=1e-5,
        )


@GPU
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kernel", ["triton", "hopper", "flash4", "flex"])
@pytest.mark.parametrize(("block", "dim", "index_heads"), [(64, 64, 4), (64, 128, 1), (128, 64, 1), (128, 128, 4)])
def test_long_on_a_gpu(kernel: str, block: int, dim: int, index_heads: int) -> None:
    case = Case(1, 4, 1, 8000, 8000, dim, block, block, index_heads)
    skip_where_it_cannot_run(kernel, torch.bfloat16, case)
    q, k, v = case.tensors(torch.bfloat16, "cuda")
    index = case.index("cuda", share=0.1)
    exact = block_sparse_attention(q.double(), k.double(), v.double(), index, kernel="reference").cpu()
    assert error(block_sparse_attention(q, k, v, index, kernel=kernel), exact) < 1e-2


@GPU
@pytest.mark.parametrize("index_heads", [8, 2])
def test_merged_blocks_on_a_gpu(index_heads: int) -> None:
    case = Case(1, 8, 2, 1000, 1200, 128, 64, 64, index_heads)
    skip_where_it_cannot_run("flash4_merged", torch.bfloat16, case)
    q, k, v = case.tensors(torch.bfloat16, "cuda")
    index = case.index("cuda", share=0.1)
    out = block_sparse_attention(q, k, v, index, kernel="flash4_merged")
    assert error(out, attention(q, k, v, as_run(index, "flash4_merged"))) < 1e-2


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
    with pytest.raises(ValueError, match=r"q is on cpu and the index on meta; move it with index.to\(q.device\)"):
        block_sparse_attention(q, k, v, index.to("meta"))
