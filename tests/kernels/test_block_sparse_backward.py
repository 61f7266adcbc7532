"""The gradient of block-sparse attention: every kernel that has one against float64 autograd of dense masked attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attention_kernels.block_sparse as front
import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse import block_sparse_attention, resolve_kernel
from attention_kernels.block_sparse.table import BACKENDS
from attention_kernels.column_sparse import column_sparse_attention
from attention_kernels.decode import sparse_decode
from attention_kernels.open_columns import with_columns
from attention_kernels.skip_softmax import SkipRule, skip_softmax_attention
from attention_kernels.sparse_attention import resolve_kernel as resolve_choice
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.oracle import CASES, COARSE, Case, cases, error, gradients, token_mask
from tests.kernels.test_block_sparse import COMPILED as SHAPES
from tests.kernels.test_block_sparse import examples, skip_where_it_cannot_run
from tests.kernels.test_column_sparse import index_of, true_mask

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
GPU = pytest.mark.gpu
HAVE_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAVE_GPU else "cpu"
COMPILED = ("triton", "flash4")
BATCHES = Case(2, 4, 2, 21, 40, 64, 16, 16, 2)
RUNS = [
    *(("reference", "cpu", torch.float64, case) for case in CASES),
    *(("sdpa", "cpu", torch.float32, case) for case in CASES[:4]),
    ("reference", "cpu", torch.bfloat16, CASES[0]),
    *(("triton", DEVICE, torch.float32, case) for case in (BATCHES, CASES[3], CASES[8])),
    *(("triton", DEVICE, torch.float16, CASES[i]) for i in (2, 4, 5, 9)),
    *(
        pytest.param(kernel, "cuda", dtype, case, marks=GPU)
        for kernel, dtype, tried in (
            ("triton", torch.bfloat16, CASES + COARSE),
            ("triton", torch.float16, COARSE),
            ("triton", torch.float32, COARSE[:4]),
            ("flash4", torch.bfloat16, COARSE),
            ("flash4", torch.float16, COARSE[:3]),
            ("sdpa", torch.float32, CASES[:3]),
        )
        for case in tried
    ),
]
OWN = ["reference", "triton"]


def upstream(q: Tensor, seed: int = 5) -> Tensor:
    """A gradient of the output."""
    return torch.randn(q.shape, generator=torch.Generator().manual_seed(seed)).to(q.device, q.dtype)


def derive(kernel: str, q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, grad: Tensor) -> tuple[Tensor, ...]:
    """The output, dQ, dK and dV by a kernel."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = block_sparse_attention(*leaves, index, kernel=kernel)
    return (out.detach(), *torch.autograd.grad(out, leaves, grad))


def check(kernel: str, case: Case, dtype: torch.dtype, index: BlockIndex, device: str) -> None:
    q, k, v = case.tensors(dtype, device)
    grad = upstream(q)
    results = derive(kernel, q, k, v, index, grad)[1:]
    for result, like, true in zip(results, (q, k, v), gradients(q, k, v, index, grad), strict=True):
        assert result.shape == like.shape and result.dtype == dtype and result.device == q.device
        # a row of one key has a gradient of zero: errors are relative to numbers of the size of the inputs
        assert float((result.cpu().double() - true).norm()) < TOLERANCE[dtype] * max(1.0, float(true.norm()))


def device_of(kernel: str) -> str:
    return DEVICE if kernel == "triton" else "cpu"


@pytest.mark.parametrize(("kernel", "device", "dtype", "case"), RUNS, ids=str)
def test_equals_the_formula(kernel: str, device: str, dtype: torch.dtype, case: Case) -> None:
    if device == "cuda":
        skip_where_it_cannot_run(kernel, dtype, case)
        site = {"dtype": dtype, "head_dim": case.dim, "q_block": case.q_block, "k_block": case.k_block}
        gradient, shared = BACKENDS[kernel].gradient, case.heads // case.index_heads
        assert gradient is not None
        if reason := gradient.reason(device=torch.device(device), shared=shared, **site):
            pytest.skip(reason)
    check(kernel, case, dtype, case.index(device), device)


@pytest.mark.parametrize("kernel", ["reference", "sdpa"])
@examples(20)
@given(cases(blocks=(8, 16, 48, 64), dims=(8, 40)), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 99), st.integers(0, 3))
def test_any_shape(kernel: str, case: Case, share: float, seed: int, full: int) -> None:
    check(kernel, case, torch.float64, case.index("cpu", share, seed).with_last_rows(full), "cpu")


@pytest.mark.skipif(HAVE_GPU, reason="the interpreter is for machines without a GPU")
@examples(4)
@given(
    cases(blocks=(16, 32), dims=(16, 32), longest=50), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 99), st.integers(0, 2)
)
def test_any_shape_in_the_interpreter(case: Case, share: float, seed: int, full: int) -> None:
    check("triton", case, torch.float32, case.index("cpu", share, seed).with_last_rows(full), "cpu")


@GPU
@pytest.mark.timeout(300)
@examples(60)
@given(
    st.sampled_from(SHAPES),
    st.integers(1, 2),
    st.integers(1, 700),
    st.integers(0, 700),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 99),
    st.integers(0, 2),
)
def test_any_shape_on_a_gpu(
    shape: tuple[int, ...], batch: int, q_len: int, past: int, share: float, seed: int, full: int
) -> None:
    dim, q_block, k_block, heads, kv_heads, index_heads = shape
    case = Case(batch, heads, kv_heads, q_len, q_len + past, dim, q_block, k_block, index_heads)
    check("triton", case, torch.bfloat16, case.index("cuda", share, seed).with_last_rows(full), "cuda")


@pytest.mark.parametrize("kernel", OWN)
@pytest.mark.parametrize(("share", "rows"), [(0.0, 0), (0.3, 2), (0.3, 99)])
def test_rows_of_one_block_and_full_rows(kernel: str, share: float, rows: int) -> None:
    case = Case(1, 2, 1, 75, 75, 32, 16, 16, 2)
    check(kernel, case, torch.float32, case.index(device_of(kernel), share=share).with_last_rows(rows), device_of(kernel))


def test_the_reference_passes_gradcheck() -> None:
    case = Case(1, 2, 1, 5, 7, 2, 2, 2, 2)
    index = case.index("cpu").with_last_rows(1)
    leaves = [x.requires_grad_() for x in case.tensors(torch.float64, "cpu")]
    for kernel in ("reference", "sdpa"):
        assert torch.autograd.gradcheck(lambda *x, kernel=kernel: block_sparse_attention(*x, index, kernel=kernel), leaves)


@pytest.mark.parametrize("kernel", OWN)
def test_every_element_is_written(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(1, 4, 2, 37, 55, 16, 16, 32, 4)
    q, k, v = case.tensors(torch.float32, device_of(kernel))
    index, grad = case.index(device_of(kernel)), upstream(q)
    expected = derive(kernel, q, k, v, index, grad)
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)

        def poisoned(*args: Any, make: Callable[..., Tensor] = make, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else 0x3FFFFFFF)

        monkeypatch.setattr(torch, name, poisoned)
    for result, before in zip(derive(kernel, q, k, v, index, grad), expected, strict=True):
        assert torch.equal(result, before), "two runs give the same bits, whatever lay in memory"


@pytest.mark.parametrize("kernel", OWN)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of the row that sees the poison
def test_what_is_not_selected_is_not_read(kernel: str) -> None:
    case = Case(1, 2, 1, 96, 96, 16, 16, 16, 2)
    q, k, v = case.tensors(torch.float32, device_of(kernel))
    mask = torch.ones(1, 2, 6, 6, dtype=torch.bool, device=q.device)
    mask[..., 1] = False  # kept by its own row alone
    k[:, :, 16:32], v[:, :, 16:32] = float("nan"), float("nan")
    _, dq, dk, dv = derive(kernel, q, k, v, BlockIndex.from_mask(mask, **case.grid), upstream(q))
    own = torch.zeros(96, dtype=torch.bool, device=q.device)
    own[16:32] = True
    assert torch.isfinite(dq[:, :, ~own]).all() and torch.isnan(dq[:, :, own]).all()
    assert torch.isfinite(dk[:, :, 32:]).all() and torch.isfinite(dv[:, :, 32:]).all(), "no row that sees the poison sees them"


@pytest.mark.parametrize("kernel", OWN)
def test_one_list_for_a_group_is_that_list_for_each(kernel: str) -> None:
    shared = Case(1, 4, 2, 40, 40, 16, 16, 16, 2)
    q, k, v = shared.tensors(torch.float32, device_of(kernel))
    index, grad = shared.index(device_of(kernel)), upstream(q)
    mask = index.to_mask().repeat_interleave(2, 1)
    each = derive(kernel, q, k, v, BlockIndex.from_mask(mask, **shared.grid), grad)
    for one, other in zip(derive(kernel, q, k, v, index, grad), each, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", OWN)
def test_strides_and_scale(kernel: str) -> None:
    case = Case(1, 2, 1, 40, 40, 16, 16, 16, 2)
    q, k, v = case.tensors(torch.float32, device_of(kernel))
    index = case.index(device_of(kernel))
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (q, k, v)]
    # of a sum: a gradient whose strides are all zero; a scale of twice the usual one is that of q · 2
    block_sparse_attention(*turned, index, kernel=kernel, scale=0.5).sum().backward()
    _, dq, dk, dv = derive(kernel, q * 2, k, v, index, torch.ones_like(q))
    for leaf, expected in zip(turned, (dq * 2, dk, dv), strict=True):
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-4, atol=1e-5)


def test_only_what_requires_a_gradient_gets_one() -> None:
    case = Case(1, 2, 1, 40, 40, 16, 16, 16, 2)
    q, k, v = case.tensors(torch.float32, DEVICE)
    index = case.index(DEVICE)
    for kernel in ("sdpa", "triton"):
        key = k.detach().clone().requires_grad_()
        block_sparse_attention(q, key, v, index, kernel=kernel).sum().backward()
        assert key.grad is not None and q.grad is v.grad is None
        with torch.no_grad():
            assert block_sparse_attention(q, key, v, index, kernel=kernel).grad_fn is None


@pytest.mark.parametrize("kernel", ["sdpa", "triton"])
def test_nothing_to_do(kernel: str) -> None:
    case = Case(1, 4, 2, 0, 48, 16, 16, 16, 4)
    leaves = [x.requires_grad_() for x in case.tensors(torch.float32, device_of(kernel))]
    block_sparse_attention(
        *leaves, BlockIndex.full(1, 4, **case.grid, device=device_of(kernel)), kernel=kernel
    ).sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in leaves)


def test_a_kernel_without_a_backward_pass_refuses() -> None:
    case = CASES[2]
    q, k, v = case.tensors(torch.float32, "cpu")
    with pytest.raises(
        ValueError, match="kernel=flex can't run here: it has no backward pass, and an input requires a gradient"
    ):
        block_sparse_attention(q.requires_grad_(), k, v, case.index("cpu"), kernel="flex")


@pytest.mark.parametrize("major", [8, 9, 12])
def test_auto_takes_a_kernel_that_has_one(monkeypatch: pytest.MonkeyPatch, major: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, 0))
    front._resolve.cache_clear()
    site = {"dtype": torch.bfloat16, "head_dim": 128, "q_block": 128, "k_block": 128}
    assert resolve_kernel("auto", device=torch.device("cuda", 0), **site, grad=True) == "triton"
    assert resolve_kernel("auto", device=torch.device("cpu"), **site, grad=True) == "sdpa"
    front._resolve.cache_clear()


@GPU
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kernel", COMPILED)
@pytest.mark.parametrize(
    ("block", "dim", "index_heads"), [(128, 64, 4), (128, 128, 4), (128, 128, 1), (64, 128, 4), (64, 64, 1)]
)
def test_long_on_a_gpu(kernel: str, block: int, dim: int, index_heads: int) -> None:
    case = Case(1, 4, 1, 4000, 4000, dim, block, block, index_heads)
    skip_where_it_cannot_run(kernel, torch.bfloat16, case)
    q, k, v = case.tensors(torch.bfloat16, "cuda")
    index, grad = case.index("cuda", share=0.1), upstream(q)
    site = {"head_dim": dim, "q_block": block, "k_block": block, "shared": 4 // index_heads}
    try:
        resolve_kernel(kernel, device=q.device, dtype=q.dtype, **site, grad=True)
    except ValueError as reason:
        pytest.skip(str(reason))
    exact = derive("reference", q.double(), k.double(), v.double(), index, grad.double())
    results, again = (derive(kernel, q, k, v, index, grad) for _ in range(2))
    for result, same, true in zip(results, again, exact, strict=True):
        assert error(result, true.cpu()) < TOLERANCE[torch.bfloat16]
        assert kernel == "flash4" or torch.equal(result, same), "triton is deterministic"


def test_columns_and_skipped_tiles_have_a_gradient_in_plain_pytorch() -> None:
    case = Case(1, 4, 2, 60, 90, 16, 16, 16, 4)
    q, k, v = case.tensors(torch.float64, "cpu")
    leaves, grad, columns = [x.clone().requires_grad_() for x in (q, k, v)], upstream(q), index_of(case)
    skipped, ran = skip_softmax_attention(*leaves, SkipRule(0.5, 16, 16), kernel="reference")
    opened = column_sparse_attention(*leaves, columns, kernel="reference")
    for out, mask in ((skipped, token_mask(ran, 4)), (opened, true_mask(columns, 4))):
        for result, true in zip(torch.autograd.grad(out, leaves, grad), gradients(q, k, v, mask, grad), strict=True):
            assert error(result, true) < 1e-12


def test_other_kernels_refuse_rather_than_leave_a_gradient_out() -> None:
    case = Case(1, 2, 1, 4, 48, 16, 16, 16, 1)
    q, k, v = case.tensors(torch.float32, DEVICE)
    index, rule = case.index(DEVICE), SkipRule(0.0, 16, 16)
    nothing = torch.zeros(1, 1, 0, dtype=torch.int32, device=DEVICE)
    columns = with_columns(index, nothing, nothing.sum(-1, dtype=torch.int32))
    calls: list[Callable[..., object]] = [
        lambda *x: column_sparse_attention(*x, columns, kernel="triton"),
        lambda *x: skip_softmax_attention(*x, rule, kernel="triton"),
        lambda *x: sparse_decode(*x, index, kernel="triton"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="kernel=triton has no backward pass, and an input requires a gradient"):
            call(q, k, v.clone().requires_grad_())
    for choice in (columns, rule):
        site = {"device": q.device, "dtype": q.dtype, "head_dim": 16, "heads": 2, "grad": True}
        assert resolve_choice("auto", choice, **site) == "reference"
        with pytest.raises(ValueError, match="kernel=triton has no backward pass for single columns or skipped tiles"):
            resolve_choice("triton", choice, **site)
