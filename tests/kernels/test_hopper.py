"""The kernel for Hopper: what it refuses, what it can address; on a GPU every block size, packed heads and odd strides."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import product
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse import hopper
from attention_kernels.block_sparse.hopper import (
    _addressable,
    _bundle,
    block_sparse_hopper,
    full_row_splits,
    hopper_reason,
)
from torch import Tensor

from tests.kernels.oracle import Case, attention, error

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2}
GPU = pytest.mark.gpu
CASES = [
    Case(1, 4, 1, 700, 1333, 128, 64, 64, 1),  # two heads in a tile, the last query block short
    Case(1, 4, 2, 900, 900, 128, 128, 64, 4),
    Case(2, 4, 2, 640, 640, 128, 128, 32, 4),
    Case(1, 8, 1, 300, 1001, 128, 16, 16, 1),  # eight heads in a tile
    Case(1, 4, 1, 777, 777, 64, 32, 32, 1),
    Case(2, 32, 2, 333, 500, 64, 16, 128, 2),  # two tiles of heads for a list
    Case(1, 4, 2, 500, 900, 256, 128, 64, 4),
    Case(1, 2, 1, 300, 300, 256, 64, 64, 1),
    Case(1, 8, 1, 100, 420, 256, 16, 16, 1),
    Case(1, 8, 2, 1, 129, 128, 32, 64, 2),
    Case(1, 1, 1, 128, 128, 64, 128, 128, 1),  # one tile
    Case(1, 14, 2, 300, 433, 64, 128, 128, 14),  # groups of seven and three: each head its own list, one list,
    Case(2, 9, 3, 270, 270, 64, 128, 64, 3),
    Case(1, 6, 1, 200, 330, 64, 64, 64, 1),  # and three tiles of two heads for a list
    Case(1, 7, 1, 140, 300, 256, 128, 64, 1),
]
WHERE = {
    "device": torch.device("cuda", 0),
    "dtype": torch.bfloat16,
    "head_dim": 128,
    "q_block": 128,
    "k_block": 128,
    "shared": 1,
}


@pytest.fixture
def on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"q_block": 64, "k_block": 16, "shared": 2}, None),
        ({"q_block": 16, "shared": 8, "dtype": torch.float16}, None),
        ({"head_dim": 256, "k_block": 64}, None),
        ({"device": torch.device("cpu")}, "runs on Hopper GPUs"),
        ({"dtype": torch.float32}, "float16 and bfloat16, not torch.float32"),
        ({"head_dim": 96}, "head dims 64, 128, 256, not 96"),
        ({"head_dim": 256}, "at head dim 256 it takes key blocks of 16, 32, 64, not 128"),
        ({"k_block": 48}, "key blocks of 16, 32, 64 and 128, not 48"),
        ({"q_block": 48, "shared": 8}, "query blocks of 16, 32, 64, 128, not 48"),
        ({"q_block": 64}, "query blocks of 64 need an index that a multiple of 2 query heads share"),
        ({"q_block": 16, "shared": 4}, "a multiple of 8 query heads"),
    ],
)
def test_reasons(change: dict[str, Any], says: str | None) -> None:
    reason = hopper_reason(**{**WHERE, **change})
    assert (reason is None) if says is None else (reason is not None and says in reason)


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize(
    ("triton", "runs"),
    [(None, False), (SimpleNamespace(__version__="3.5.1"), False), (SimpleNamespace(__version__="3.10.0+git1"), True)],
)
def test_triton_must_be_new_enough(monkeypatch: pytest.MonkeyPatch, triton: Any, runs: bool) -> None:
    monkeypatch.setitem(sys.modules, "triton", triton)  # None: not installed
    hopper._has_gluon.cache_clear()
    reason = hopper_reason(**WHERE)
    hopper._has_gluon.cache_clear()
    assert (reason is None) if runs else (reason is not None and "3.6 or newer" in reason)


def awkward(x: Tensor) -> dict[str, Tensor]:
    """x in memory as TMA does not take it."""
    _, heads, length, dim = x.shape
    shifted = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)  # contiguous, but starts two bytes late
    wide = torch.cat([x, x[..., :1]], -1)[..., :dim]  # rows of an odd number of elements
    single = x[:1].contiguous().as_strided((1, heads, length, dim), (heads * length * dim + 3, length * dim, dim, 1))
    return {
        "shifted": shifted,
        "wide": wide,
        "transposed": x.mT.contiguous().mT,
        "odd stride of one": single,
        "expanded": x[:, :1].expand(x.shape),
        "repeated": x[:, :, :1].expand(x.shape),
    }


def test_what_cannot_be_addressed_is_copied() -> None:
    x = torch.randn(1, 4, 40, 64, dtype=torch.float16)
    for name, view in awkward(x).items():
        addressable = _addressable(view)
        assert torch.equal(addressable, view) and addressable.data_ptr() != view.data_ptr(), name
        for y in (addressable, torch.empty_like(addressable)):  # the output is made like the queries
            assert y.data_ptr() % 16 == 0 and y.stride(-1) == 1, name
            assert all(stride > 0 and stride % 8 == 0 for stride in y.stride()[:-1]), name
    heads_last = x.transpose(1, 2).contiguous().transpose(1, 2)
    for view in (x, heads_last, x[:, ::2], x[:, :, 3:]):
        assert _addressable(view) is view, "copies cost time: none where none is needed"


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_must_be_positive(scale: float) -> None:
    case = Case(1, 2, 2, 128, 128, 64, 128, 128, 2)
    with pytest.raises(ValueError, match=r"must be positive.*use kernel=sdpa"):
        block_sparse_hopper(*case.tensors(torch.float16, "cpu"), case.index("cpu"), scale=scale)


def run(case: Case, dtype: torch.dtype, tensors: tuple[Tensor, Tensor, Tensor], share: float = 0.4) -> None:
    reason = hopper_reason(
        device=torch.device("cuda"),
        dtype=dtype,
        head_dim=case.dim,
        q_block=case.q_block,
        k_block=case.k_block,
        shared=case.heads // case.index_heads,
    )
    if reason is not None and "Hopper" in reason:
        pytest.skip(reason)
    assert reason is None
    index = case.index("cuda", share=share)
    out = block_sparse_hopper(*tensors, index, scale=case.dim**-0.5)
    assert error(out, attention(*tensors, index)) < TOLERANCE[dtype]


@GPU
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_equals_the_formula(case: Case, dtype: torch.dtype, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = case.tensors(dtype, "cuda")
    monkeypatch.setattr(torch, "empty_like", lambda x, **kw: torch.full_like(x, float("nan"), **kw))
    run(case, dtype, tensors, share)


@pytest.mark.parametrize(
    ("batch", "heads", "length", "bundle"),
    [(1, 8, 4096, 8), (2, 8, 8192, 8), (1, 8, 131072, 1), (1, 6, 20000, 3), (1, 1, 10**6, 1)],
)
def test_as_many_heads_at_a_time_as_fit_and_divide(batch: int, heads: int, length: int, bundle: int) -> None:
    assert _bundle(torch.empty(batch, heads, length, 128, dtype=torch.float16, device="meta")) == bundle


@pytest.mark.parametrize(
    ("batch", "heads_kv", "units", "pack"), [(1, 8, 4, 1), (2, 3, 1, 4), (3, 2, 2, 2), (1, 2, 7, 1), (1, 3, 3, 1)]
)
@pytest.mark.parametrize("programs", [1, 7, 16, 132])
def test_every_tile_is_dealt_once(batch: int, heads_kv: int, units: int, pack: int, programs: int) -> None:
    """The kernel's own functions, run on tensors."""
    pytest.importorskip("triton")
    from attention_kernels.block_sparse import hopper_producer_kernel

    me = torch.arange(programs)
    language = SimpleNamespace(
        program_id=lambda axis: me, num_programs=lambda axis: torch.tensor(programs), where=torch.where, int32=torch.int32
    )
    turns_of, tile_of = (
        FunctionType(f.fn.__code__, {"gl": language})
        for f in (hopper_producer_kernel.program_turns, hopper_producer_kernel.tile_at)
    )
    for rows in (1, 9, 40):
        for bundle in (n for n in range(1, batch * heads_kv + 1) if batch * heads_kv % n == 0):
            tiles = batch * heads_kv * units * rows
            turns = turns_of(torch.tensor(tiles))
            turn = torch.arange(int(turns.max()))[:, None]
            tile = torch.stack(torch.broadcast_tensors(*tile_of(turn, rows, units, heads_kv, bundle, pack)))
            dealt = tile[:, turn < turns].T.tolist()
            assert len(dealt) == tiles
            expected = product(range(batch), range(heads_kv), range(units), range(rows))
            assert {tuple(tile) for tile in dealt} == {
                (b, kv, (kv * units + unit) * pack, row) for b, kv, unit, row in expected
            }


FULL_ROWS = [
    (Case(1, 2, 1, 300, 333, 128, 128, 128, 2), 1, 2),  # a chunk; the last block is short
    (Case(1, 4, 2, 150, 277, 64, 64, 64, 2), 2, 3),  # an index for each KV head: two heads in a tile
    (Case(1, 8, 1, 70, 133, 64, 16, 16, 1), 99, 1),  # nothing but full rows, not cut
    (Case(1, 1, 1, 130, 130, 256, 128, 16, 1), 2, 5),  # two queries in the last block; some parts are of their future alone
    (Case(1, 1, 1, 1, 300, 64, 128, 16, 1), 1, 3),
]
"""Shapes, full rows, and parts that each is cut into."""


def with_full_rows(case: Case, rows: int, device: str) -> BlockIndex:
    """An index whose last rows are full, with nonsense where others have their list."""
    index = case.index(device, share=0.3).with_last_rows(rows)
    indices = index.indices.clone()
    indices[..., index.listed_rows :, :] = 1 << 20
    return replace(index, indices=indices)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-in is for machines without a GPU")
@pytest.mark.parametrize(("case", "rows", "splits"), [(FULL_ROWS[0][0], 0, 1), *FULL_ROWS], ids=str)
def test_the_source_equals_the_formula(case: Case, rows: int, splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel as it is written, its warp groups in threads: tiles, parts, masks and barriers."""
    pytest.importorskip("triton.experimental.gluon")
    from attention_kernels.block_sparse import hopper_consumer_kernel, hopper_kernel, hopper_producer_kernel

    from tests.kernels.gluon_stand_in import Kernel

    name = "block_sparse_hopper_kernel"
    monkeypatch.setattr(hopper_kernel, name, Kernel(name, hopper_producer_kernel, hopper_consumer_kernel, hopper_kernel))
    monkeypatch.setattr(hopper, "_processors", lambda device: 5)
    monkeypatch.setattr(hopper, "full_row_splits", lambda *given: splits)
    monkeypatch.setattr(torch, "empty_like", lambda x, **kw: torch.full_like(x, float("nan"), **kw))
    q, k, v = case.tensors(torch.float16, "cpu")
    index = with_full_rows(case, rows, "cpu")
    out = block_sparse_hopper(q, k, v, index, scale=case.dim**-0.5)
    assert error(out, attention(q, k, v, index)) < TOLERANCE[torch.float16] / 4


def test_full_rows_are_cut_into_parts_that_fill_a_gpu() -> None:
    def splits(length: int, last: int, heads: int = 32, batch: int = 1, programs: int = 132) -> int:
        index = Case(1, 1, 1, length, length, 16, 128, 128, 1).index("cpu", share=0.0).with_last_rows(last)
        return full_row_splits(index, batch * heads, 128, programs)

    assert (splits(4096, 1), splits(8192, 1), splits(8192, 2)) == (4, 4, 4), "128 parts for 132 programs; 16 steps a part"
    assert (splits(32768, 2), splits(1 << 20, 2)) == (16, 64), "parts of 16 steps, and 64 parts at most"
    assert splits(2048, 2, batch=8) == 1 and splits(300, 1, heads=1) == 3, "no part without a block"


@GPU
@pytest.mark.parametrize(("case", "rows", "splits"), FULL_ROWS, ids=str)
@pytest.mark.parametrize("chosen", [False, True])
def test_parts_of_full_rows(case: Case, rows: int, splits: int, chosen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not chosen:
        monkeypatch.setattr(hopper, "full_row_splits", lambda *given: splits)
    monkeypatch.setattr(torch, "empty_like", lambda x, **kw: torch.full_like(x, float("nan"), **kw))
    for dtype in (torch.bfloat16, torch.float16):
        q, k, v = case.tensors(dtype, "cuda")
        index = with_full_rows(case, rows, "cuda")
        out = block_sparse_hopper(q, k, v, index, scale=case.dim**-0.5)
        assert error(out, attention(q, k, v, index)) < TOLERANCE[dtype]


@GPU
@pytest.mark.parametrize("bundle", [1, 2, 4, 8])
@pytest.mark.parametrize("length", [1200, 2500])
def test_every_tile_is_computed(length: int, bundle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tiles than programs, a last turn of either direction, and heads of two sequences side by side."""
    case = Case(2, 8, 4, length, 1301 + length, 64, 128, 128, 8)
    monkeypatch.setattr(hopper, "NEAR", bundle * 2 * case.k_len * 64 * 2)
    tensors = case.tensors(torch.float16, "cuda")
    assert _bundle(tensors[1]) == bundle
    monkeypatch.setattr(torch, "empty_like", lambda x, **kw: torch.full_like(x, float("nan"), **kw))
    run(case, torch.float16, tensors)


@GPU
@pytest.mark.parametrize("name", list(awkward(torch.zeros(1, 1, 1, 64))))
def test_awkward_memory(name: str) -> None:
    case = Case(1, 4, 4, 300, 300, 64, 128, 64, 4)
    q, k, v = (awkward(x)[name] for x in case.tensors(torch.float16, "cuda"))
    run(case, torch.float16, (q, k, v))
