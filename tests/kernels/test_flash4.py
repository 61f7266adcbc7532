"""The adapter to FlashAttention-4, against a stand-in that reads its arguments as the library does, in float64."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from attention_kernels.block_sparse import flash4
from attention_kernels.block_sparse.flash4 import block_sparse_flash4, flash4_reason, pack_heads, packed_heads, unpack_heads
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.oracle import COARSE, Case, attention, cases, error


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
        module("flash_attn.cute.interface", _flash_attn_fwd=library),
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
