"""The Triton kernel in every tile it can work in, and the choice of the tile."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
import triton
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse.triton_kernel import block_sparse_triton, run_tile
from attention_kernels.block_sparse.triton_tuning import TUNED, Tile, choose_tile, default_tile, describable
from torch import Tensor

from tests.kernels.oracle import Case, attention, error

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.float16 if torch.cuda.is_available() else torch.float32
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
GPU = pytest.mark.gpu

WHOLE = Case(1, 2, 1, 101, 101, 32, 32, 32, 2)
CHUNK = Case(2, 2, 1, 45, 131, 16, 32, 32, 2)  # the diagonal lies across blocks
SHARED = Case(2, 8, 2, 43, 90, 32, 16, 32, 2)  # four heads with one list
THREE = Case(1, 6, 2, 43, 60, 32, 16, 16, 2)  # a group that is no power of two
EIGHT = Case(1, 8, 1, 50, 61, 96, 16, 16, 1)  # and a head dim that is none
WIDE = Case(1, 2, 1, 150, 200, 32, 64, 16, 2)

TILES = [
    (WHOLE, Tile(32, 32, 4, 2)),
    (WHOLE, Tile(16, 32, 4, 2)),  # a query block in two tiles
    (WHOLE, Tile(32, 16, 4, 2)),  # a key block in two steps
    (WHOLE, Tile(16, 16, 4, 2)),
    (WHOLE, Tile(32, 64, 4, 2)),  # two key blocks in a step
    (CHUNK, Tile(32, 32, 4, 2)),
    (CHUNK, Tile(16, 16, 4, 2)),
    (CHUNK, Tile(32, 128, 4, 2)),  # a step of more blocks than many lists have
    (SHARED, Tile(64, 32, 4, 2)),  # the whole group in a tile
    (SHARED, Tile(32, 16, 4, 2)),  # two heads in a tile, two tiles side by side
    (SHARED, Tile(16, 64, 4, 2)),
    (THREE, Tile(64, 32, 4, 2)),  # a head short
    (THREE, Tile(32, 16, 4, 2)),  # a head short in the second tile
    (EIGHT, Tile(128, 32, 4, 2)),
    (EIGHT, Tile(64, 16, 4, 2)),
    (WIDE, Tile(64, 64, 4, 2)),
    (WIDE, Tile(16, 64, 4, 2)),
    (WIDE, Tile(32, 16, 4, 2)),
]
DESCRIBES = DEVICE == "cpu" or torch.cuda.get_device_capability()[0] >= 9
PATHS = TILES + [(case, replace(tile, described=True)) for case, tile in TILES if DESCRIBES and tile.cols <= case.k_block]


def run(case: Case, tile: Tile, index: BlockIndex, tensors: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return run_tile(*tensors, index, scale=case.dim**-0.5, tile=tile)


def mixed_index(case: Case) -> BlockIndex:
    """Rows of the diagonal only and longer ones side by side, each head beginning with the other kind."""
    mask = case.index(DEVICE, share=0.6).to_mask()
    heads, rows = torch.arange(mask.shape[1], device=DEVICE), torch.arange(mask.shape[2], device=DEVICE)
    return BlockIndex.from_mask(mask & ((heads[:, None] + rows) % 2 == 1)[..., None], **case.grid)


@pytest.mark.parametrize(("case", "tile"), PATHS, ids=str)
def test_every_tile_equals_the_formula(case: Case, tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, index = case.tensors(DTYPE, DEVICE), mixed_index(case)
    monkeypatch.setattr(torch, "empty_like", lambda x, **kw: torch.full_like(x, float("nan"), **kw))
    out = run(case, tile, index, tensors)
    assert error(out, attention(*tensors, index)) < TOLERANCE[DTYPE]


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # the interpreter's, of the row that sees the poison
@pytest.mark.parametrize("tile", [t for c, t in PATHS if c is WHOLE], ids=str)
def test_blocks_that_are_not_listed_are_not_read(tile: Tile) -> None:
    q, k, v = WHOLE.tensors(DTYPE, DEVICE)
    mask = torch.ones(1, 2, 4, 4, dtype=torch.bool, device=DEVICE)
    mask[..., 1] = False  # kept by its own row alone
    index = BlockIndex.from_mask(mask, **WHOLE.grid)
    k[:, :, 32:64], v[:, :, 32:64] = float("nan"), float("nan")
    finite = torch.isfinite(run(WHOLE, tile, index, (q, k, v))).all(-1)
    assert finite[:, :, :32].all() and finite[:, :, 64:].all() and not finite[:, :, 32:64].any()


@pytest.mark.parametrize("tile", [Tile(32, 64, 4, 2), Tile(16, 16, 4, 2)], ids=str)
def test_full_rows(tile: Tile) -> None:
    tensors, full = WHOLE.tensors(DTYPE, DEVICE), BlockIndex.full(1, 2, **WHOLE.grid, device=DEVICE)
    assert error(run(WHOLE, tile, full, tensors), attention(*tensors, full)) < TOLERANCE[DTYPE]


@pytest.mark.parametrize("tile", [Tile(16, 32, 4, 2), Tile(32, 16, 4, 2)], ids=str)
def test_no_tile_reads_the_future(tile: Tile) -> None:
    case = Case(1, 1, 1, 64, 64, 16, 32, 32, 1)
    q, k, v = case.tensors(DTYPE, DEVICE)
    expected = run(case, tile, case.index(DEVICE, share=1.0), (q, k, v))
    k[:, :, 48:], v[:, :, 48:] = 100.0, 100.0
    out = run(case, tile, case.index(DEVICE, share=1.0), (q, k, v))
    assert torch.equal(out[:, :, :48], expected[:, :, :48]) and not torch.equal(out[:, :, 48:], expected[:, :, 48:])


def test_large_scores_stay_finite() -> None:
    q, k, v = WHOLE.tensors(torch.float32, DEVICE)
    index = WHOLE.index(DEVICE)
    out = block_sparse_triton(q * 1e4, k, v, index, scale=WHOLE.dim**-0.5)
    assert error(out, attention(q * 1e4, k, v, index)) < 1e-3


def test_strides_that_no_descriptor_takes() -> None:
    q, k, v = WHOLE.tensors(DTYPE, DEVICE)
    expected = attention(q, k, v, WHOLE.index(DEVICE))
    odd = [torch.cat([x, x[..., :1]], -1)[..., : WHOLE.dim] for x in (q, k, v)]  # rows of 33 elements
    heads_last = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert describable(k) and describable(heads_last[1]) and not describable(odd[1])
    assert (
        not describable(k.mT)
        and not describable(k[:, :, :1].expand_as(k))
        and not describable(k.flatten()[1:-31].view(-1, 1, 1, 32))
    )
    for tensors in (odd, heads_last, [x.mT.contiguous().mT for x in (q, k, v)]):
        out = block_sparse_triton(*tensors, WHOLE.index(DEVICE), scale=WHOLE.dim**-0.5)
        assert error(out, expected) < TOLERANCE[DTYPE]


def test_what_cannot_run_is_one_clear_line() -> None:
    tensors, index = WHOLE.tensors(DTYPE, DEVICE), WHOLE.index(DEVICE)
    for scale in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="must be positive"):
            block_sparse_triton(*tensors, index, scale=scale)
    with pytest.raises(ValueError, match="at most one key block a step: 64 keys, key block 32"):
        run(WHOLE, Tile(32, 64, 4, 2, True), index, tensors)


ROOM = {(8, 0): 163 << 10, (8, 6): 99 << 10, (8, 9): 99 << 10, (9, 0): 227 << 10, (12, 0): 99 << 10}


@pytest.mark.parametrize("capability", ROOM, ids=str)
def test_a_tile_for_every_shape(capability: tuple[int, int]) -> None:
    room = ROOM[capability]
    for dim, q_block, k_block, shared, itemsize in product((16, 64, 128, 256), (16, 64, 128), (16, 64, 128), (1, 4, 8), (2, 4)):
        tile = default_tile(capability, room, itemsize, dim, q_block * shared, k_block)
        assert 16 <= tile.rows <= min(128, q_block * shared) and tile.cols >= 16 and tile.stages >= 2
        assert (tile.rows + 2 * tile.stages * tile.cols) * dim * itemsize <= room
        assert not tile.described or (capability[0] == 9 and tile.cols <= k_block)


def test_tuned_tiles_are_possible() -> None:
    for (generation, dim, rows, k_block), tile in TUNED.items():
        assert generation in ("sm80", "sm86", "sm89", "sm90")
        assert dim == triton.next_power_of_2(dim) and tile.rows <= rows and tile.rows & (tile.rows - 1) == 0
        assert (tile.rows + 2 * tile.stages * tile.cols) * dim * 2 <= ROOM[(int(generation[2]), int(generation[3]))]
        assert not tile.described or (generation == "sm90" and tile.cols <= k_block)


def test_the_choice_heeds_what_cannot_be_described() -> None:
    shape = {"dim": 128, "q_block": 64, "k_block": 64, "shared": 3}
    assert not choose_tile(torch.device(DEVICE), torch.float16, **shape, described=False).described
    assert choose_tile(torch.device(DEVICE), torch.float16, **shape, described=True).rows >= 64


@GPU
@pytest.mark.parametrize(
    ("dtype", "dim", "q_block", "k_block", "index_heads"),
    [
        ((torch.float16, torch.bfloat16)[i % 2], *shape)  # each of them compiles: the two types, of one size, in turn
        for i, shape in enumerate(product((64, 96, 128, 256), (16, 64, 128), (16, 64, 128), (2, 8)))
    ],
)
def test_on_a_gpu(dtype: torch.dtype, dim: int, q_block: int, k_block: int, index_heads: int) -> None:
    case = Case(1, 8, 2, 701, 1001, dim, q_block, k_block, index_heads)
    tensors, index = case.tensors(dtype, "cuda"), case.index("cuda", share=0.3)
    assert error(block_sparse_triton(*tensors, index, scale=dim**-0.5), attention(*tensors, index)) < TOLERANCE[dtype]


@GPU
def test_more_than_two_billion_elements() -> None:
    case = Case(1, 2, 2, 256, 256, 64, 64, 64, 2)
    q, k, v = case.tensors(torch.bfloat16, "cuda")
    far = torch.empty(2**31 + 256 * 64, dtype=torch.bfloat16, device="cuda").as_strided(k.shape, (2**32, 2**31, 64, 1))
    far.copy_(k)
    index = case.index("cuda")
    for tile in (Tile(64, 64, 4, 2), Tile(64, 128, 4, 2), Tile(64, 64, 4, 2, torch.cuda.get_device_capability()[0] >= 9)):
        assert error(run(case, tile, index, (q, far, v)), attention(q, k, v, index)) < TOLERANCE[torch.bfloat16]
