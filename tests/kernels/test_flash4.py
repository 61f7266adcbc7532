"""The adapter to FlashAttention-4, against a stand-in that reads its arguments as the library does, in float64."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from attention_kernels.block_sparse import flash4, flash4_gradient
from attention_kernels.block_sparse.flash4 import block_sparse_flash4, flash4_reason, pack_heads, packed_heads, unpack_heads
from attention_kernels.block_sparse.flash4_gradient import block_sparse_flash4_with_gradient, flash4_gradient_reason
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.oracle import COARSE, Case, attention, cases, error, gradients


class Blocks(NamedTuple):
    """The library's BlockSparseTensorsTorch."""

    mask_block_cnt: Tensor
    mask_block_idx: Tensor
    full_block_cnt: Tensor | None = None
    full_block_idx: Tensor | None = None
    cu_total_m_blocks: Tensor | None = None
    cu_block_idx_offsets: Tensor | None = None
    block_size: tuple[int, int] | None = None


def library(
    q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask_mod: Any, block_sparse_tensors: Blocks, pack_gqa: bool
) -> tuple[Tensor, None]:
    """Attention of [B, N, H, D] over two lists of blocks; the mask only on those of the first."""
    assert pack_gqa is False, "left to itself the library packs heads whose lists differ where one list is shared"
    blocks, (batch, q_len, heads, _), k_len = block_sparse_tensors, q.shape, k.shape[1]
    assert blocks.block_size is not None and blocks.full_block_idx is not None and blocks.full_block_cnt is not None
    rows, cols = blocks.block_size
    assert rows % 64 == 0 and cols in (64, 128)
    lead = (batch, heads, -(-q_len // rows))
    for counts, indices in (blocks[:2], blocks[2:4]):
        assert counts.shape == lead and indices.shape[:3] == lead and indices.shape[3] <= -(-k_len // cols)
        assert counts.dtype == indices.dtype == torch.int32 and counts.is_contiguous() and indices.is_contiguous()
    lengths = SimpleNamespace(seqlen_q=q_len, seqlen_k=k_len)
    sees = torch.zeros(batch, heads, q_len, k_len, dtype=torch.bool)
    query, key = torch.arange(q_len)[:, None], torch.arange(k_len)
    causal = mask_mod(None, None, query, key, lengths, None)
    for b, h, row in ((b, h, row) for b in range(batch) for h in range(heads) for row in range(lead[2])):
        rows_of_block = slice(row * rows, (row + 1) * rows)
        for block in blocks.mask_block_idx[b, h, row, : blocks.mask_block_cnt[b, h, row]].tolist():
            part = slice(block * cols, (block + 1) * cols)
            sees[b, h, rows_of_block, part] = causal[rows_of_block, part]
        for block in blocks.full_block_idx[b, h, row, : blocks.full_block_cnt[b, h, row]].tolist():
            sees[b, h, rows_of_block, block * cols : (block + 1) * cols] = True
    group = heads // k.shape[2]
    keys, values = (x.transpose(1, 2).double().repeat_interleave(group, 1) for x in (k, v))
    scores = (q.transpose(1, 2).double() @ keys.mT * softmax_scale).masked_fill(~sees, float("-inf"))
    return (torch.softmax(scores, -1) @ values).transpose(1, 2).contiguous().to(q.dtype), None


def seen(blocks: Blocks, rows: Tensor, lead: tuple[int, ...], lengths: tuple[int, int], *, by_key: bool) -> Tensor:
    """bool [B, H, Q, K] of two lists: by query block which key blocks, or by key block which query blocks. `rows` is the mask
    of the blocks in the first list."""
    assert blocks.block_size is not None and blocks.full_block_idx is not None and blocks.full_block_cnt is not None
    sees = torch.zeros(*lead, *lengths, dtype=torch.bool)
    sizes = blocks.block_size[::-1] if by_key else blocks.block_size
    for counts, indices, mask in ((*blocks[:2], rows), (*blocks[2:4], torch.ones_like(rows))):
        assert counts.dtype == indices.dtype == torch.int32 and counts.is_contiguous() and indices.is_contiguous()
        assert counts.shape == (*lead, -(-lengths[by_key] // sizes[0])) == indices.shape[:3]
        assert indices.shape[3] <= -(-lengths[not by_key] // sizes[1])
        for b, h, one in torch.cartesian_prod(*(torch.arange(n) for n in counts.shape)).tolist():
            for other in indices[b, h, one, : counts[b, h, one]].tolist():
                pair = [slice(n * size, (n + 1) * size) for n, size in zip((one, other), sizes, strict=True)]
                where = (pair[1], pair[0]) if by_key else (pair[0], pair[1])
                assert not sees[b, h][where].any(), "a block twice"
                sees[b, h][where] = mask[where]
    return sees


class Differentiated(torch.autograd.Function):
    """Attention whose forward pass reads one pair of lists and whose backward pass reads the other."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, by_query: Tensor, by_key: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.by_key, ctx.scale = by_key, scale
        return masked(q, k, v, by_query, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            return (*torch.autograd.grad(masked(*leaves, ctx.by_key, ctx.scale), leaves, grad), None, None, None)


def masked(q: Tensor, k: Tensor, v: Tensor, sees: Tensor, scale: float) -> Tensor:
    """Attention of [B, N, H, D] under a mask."""
    group = q.shape[2] // k.shape[2]
    keys, values = (x.transpose(1, 2).repeat_interleave(group, 1) for x in (k, v))
    scores = (q.transpose(1, 2) @ keys.mT * scale).masked_fill(~sees, float("-inf"))
    return (torch.softmax(scores, -1) @ values).transpose(1, 2)


def library_with_gradient(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    softmax_scale: float,
    mask_mod: Any,
    block_sparse_tensors: Blocks,
    block_sparse_tensors_bwd: Blocks,
    pack_gqa: bool,
) -> tuple[Tensor, None]:
    """The library's function under autograd."""
    assert pack_gqa is False and block_sparse_tensors_bwd.block_size == block_sparse_tensors.block_size
    (batch, q_len, heads, _), k_len = q.shape, k.shape[1]
    lengths = SimpleNamespace(seqlen_q=q_len, seqlen_k=k_len)
    causal = mask_mod(None, None, torch.arange(q_len)[:, None], torch.arange(k_len), lengths, None)
    by_query, by_key = (
        seen(blocks, causal, (batch, heads), (q_len, k_len), by_key=by_key)
        for blocks, by_key in ((block_sparse_tensors, False), (block_sparse_tensors_bwd, True))
    )
    return Differentiated.apply(q, k, v, by_query, by_key, softmax_scale), None


def module(name: str, **names: Any) -> ModuleType:
    stand_in = ModuleType(name)
    stand_in.__dict__.update(names)
    return stand_in


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Hopper GPU with the library on it."""
    cute = SimpleNamespace(jit=lambda function: function)
    for stand_in in (
        module("flash_attn"),
        module("flash_attn.cute"),
        module("flash_attn.cute.interface", _flash_attn_fwd=library, flash_attn_func=library_with_gradient),
        module("flash_attn.cute.block_sparsity", BlockSparseTensorsTorch=Blocks),
        module("flash_attn.cute.utils", cute=cute, Int32=int, scalar_to_ssa=lambda x, kind: torch.tensor(kind(x))),
    ):
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.delitem(sys.modules, "attention_kernels.block_sparse.flash4_mask", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(flash4, "_installed", lambda: True)
    yield
    sys.modules.pop("attention_kernels.block_sparse.flash4_mask", None)  # it holds the stand-in


def check(case: Case, share: float = 0.4) -> None:
    q, k, v = case.tensors(torch.float64, "cpu")
    index = case.index("cpu", share=share)
    out = block_sparse_flash4(q, k, v, index, scale=case.dim**-0.5)
    assert out.shape == q.shape and out.dtype == q.dtype
    assert error(out, attention(q, k, v, index)) < 1e-12


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("case", COARSE, ids=str)
def test_equals_the_formula(case: Case) -> None:
    check(case)


@pytest.mark.usefixtures("hopper")
@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(cases((64, 128), (8,), 400), st.sampled_from([0.0, 0.3, 1.0]))
def test_any_shape(case: Case, share: float) -> None:
    check(case, share)


@pytest.mark.usefixtures("hopper")
def test_full_rows_are_left_to_others() -> None:
    """They have no blocks here, and all other rows are as without them."""
    case = COARSE[0]
    q, k, v = case.tensors(torch.float64, "cpu")
    index = case.index("cpu").with_last_rows(1)
    listed = slice(0, index.listed_queries)
    out = block_sparse_flash4(q, k, v, index, scale=case.dim**-0.5)[:, :, listed]
    assert 0 < index.listed_queries < case.q_len
    assert error(out, attention(q, k, v, index)[:, :, listed]) < 1e-12


@pytest.mark.usefixtures("hopper")
def test_heads_are_packed_where_they_share_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Size, tuple[int, int] | None]] = []

    def spy(q: Tensor, *args: Any, block_sparse_tensors: Blocks, **kwargs: Any) -> tuple[Tensor, None]:
        seen.append((q.shape, block_sparse_tensors.block_size))
        return library(q, *args, block_sparse_tensors=block_sparse_tensors, **kwargs)

    monkeypatch.setattr(sys.modules["flash_attn.cute.interface"], "_flash_attn_fwd", spy)
    for block, index_heads in ((64, 2), (64, 8), (128, 2)):
        check(Case(2, 8, 2, 100, 300, 16, block, block, index_heads))
    assert seen == [
        (torch.Size((2, 400, 2, 16)), (256, 64)),  # four heads of 64 rows: two tiles
        (torch.Size((2, 100, 8, 16)), (64, 64)),  # each head its own list
        (torch.Size((2, 100, 8, 16)), (128, 128)),  # a tile is full without
    ]


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("layout", ["bhnd", "bnhd"])
def test_packing_is_undone(group: int, layout: str) -> None:
    q = torch.randn(2, 2 * group, 5, 4)
    q = q if layout == "bhnd" else q.transpose(1, 2).contiguous().transpose(1, 2)
    packed = pack_heads(q, group)
    assert packed.shape == (2, 5 * group, 2, 4)
    for token, head in ((t, h) for t in range(5) for h in range(2 * group)):
        assert torch.equal(packed[:, token * group + head % group, head // group], q[:, head, token])
    assert torch.equal(unpack_heads(packed, group), q)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(
    ("case", "full"), [(COARSE[0], 0), (COARSE[1], 1), (COARSE[5], 0), (COARSE[7], 9), (COARSE[8], 0)], ids=str
)
def test_its_gradient_equals_the_formula(case: Case, full: int) -> None:
    """Lists in the query direction, against float64: chunks, blocks of 64 queries, heads that share a list, full rows."""
    q, k, v = case.tensors(torch.float64, "cpu")
    index, grad = (
        case.index("cpu").with_last_rows(full),
        torch.randn(q.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
    )
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = block_sparse_flash4_with_gradient(*leaves, index, scale=case.dim**-0.5)
    assert error(out.detach(), attention(q.detach(), k.detach(), v.detach(), index)) < 1e-12
    for result, true in zip(torch.autograd.grad(out, leaves, grad), gradients(q, k, v, index, grad), strict=True):
        assert error(result, true) < 1e-12


def test_heads_that_fill_a_tile() -> None:
    assert [packed_heads(9, 64, shared) for shared in (1, 2, 3, 4, 7, 8)] == [1, 2, 1, 4, 1, 8]
    assert [packed_heads(9, 128, shared) for shared in (1, 4)] == [1, 1]
    assert [packed_heads(10, block, 4) for block in (64, 128)] == [4, 4]


WHERE = {
    "device": torch.device("cuda", 0),
    "dtype": torch.bfloat16,
    "head_dim": 128,
    "q_block": 128,
    "k_block": 128,
    "shared": 1,
}


@pytest.mark.parametrize(
    ("capability", "change", "says"),
    [
        (9, {}, None),
        (9, {"q_block": 64, "k_block": 64}, None),
        (9, {"q_block": 64, "k_block": 128, "head_dim": 64}, None),
        (9, {"head_dim": 256, "k_block": 64}, None),
        (9, {"head_dim": 256}, "at head dim 256 it takes key blocks of 64, not 128"),
        (9, {"head_dim": 100}, "multiples of 8 up to 256, not 100"),
        (9, {"k_block": 32}, "key blocks of 64 and 128, not 32"),
        (9, {"q_block": 32}, "query blocks of 64 and 128, not 32"),
        (9, {"dtype": torch.float32}, "float16 and bfloat16, not torch.float32"),
        (8, {}, "compute capability 9.x and 10.x only"),
        (12, {}, "compute capability 9.x and 10.x only"),
        (10, {"shared": 4}, None),
        (10, {}, "a tile is 256 query rows"),
        (10, {"shared": 4, "k_block": 64}, "key blocks of 128, not 64"),
        (10, {"shared": 4, "head_dim": 256}, "up to 128, not 256"),
    ],
)
def test_reasons(monkeypatch: pytest.MonkeyPatch, capability: int, change: dict[str, Any], says: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (capability, 0))
    monkeypatch.setattr(flash4, "_installed", lambda: True)
    reason = flash4_reason(**{**WHERE, **change})
    assert (reason is None) if says is None else (reason is not None and says in reason)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(flash4, "_installed", lambda: False)
    assert "pip install 'sparse-attention-harness[cuda]'" in str(flash4_reason(**WHERE))


@pytest.mark.parametrize(
    ("capability", "release", "change", "says"),
    [
        (9, "4.0.0b36", {}, None),
        (9, "4.0.0b27", {"head_dim": 64}, None),
        (9, "4.0.0", {"q_block": 64}, None),
        (9, "4.1.0b1", {}, None),
        (9, "4.0.0b26", {}, "needs flash-attn-4 4.0.0b27 or later, not 4.0.0b26"),
        (9, "unknown", {}, "needs flash-attn-4 4.0.0b27 or later, not unknown"),
        (9, None, {}, "needs flash-attn-4 4.0.0b27 or later, not one of another name"),
        (9, "4.0.0b36", {"k_block": 64}, "its backward pass takes key blocks of 128, not 64"),
        (9, "4.0.0b36", {"head_dim": 192, "k_block": 128}, "head dims up to 128, not 192"),
        (
            9,
            "4.0.0b36",
            {"head_dim": 64, "q_block": 64},
            "at head dim 64 its backward pass takes query blocks that are multiples of 128",
        ),
        (10, "4.0.0b36", {}, "its backward pass runs on GPUs of compute capability 9.x only"),
    ],
)
@pytest.mark.usefixtures("hopper")
def test_reasons_of_the_gradient(
    monkeypatch: pytest.MonkeyPatch, capability: int, release: str | None, change: dict[str, Any], says: str | None
) -> None:
    def version(package: str) -> str:
        if release is None:
            raise PackageNotFoundError(package)
        return release

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (capability, 0))
    monkeypatch.setattr(flash4_gradient, "version", version)
    flash4_gradient._release_problem.cache_clear()
    reason = flash4_gradient_reason(**{**WHERE, **change})
    flash4_gradient._release_problem.cache_clear()
    assert (reason is None) if says is None else (reason is not None and says in reason)
