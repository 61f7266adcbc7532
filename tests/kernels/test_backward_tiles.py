"""The kernels of the backward pass in every kind of tile, and the choice of the tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.block_sparse.backward.key_tasks import key_tasks
from attention_kernels.block_sparse.backward.keys_kernel import key_gradients
from attention_kernels.block_sparse.backward.queries_kernel import query_gradient
from attention_kernels.block_sparse.backward.tuning import _key_tile, _query_tile, choose_key_tile, choose_query_tile
from attention_kernels.block_sparse.triton_kernel import run_tile
from attention_kernels.block_sparse.triton_tuning import Tile
from attention_kernels.transposed_index import transpose_index
from torch import Tensor

from tests.kernels.oracle import Case, error, gradients

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.float16 if torch.cuda.is_available() else torch.float32
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3}
DESCRIBES = DEVICE == "cpu" or torch.cuda.get_device_capability()[0] >= 9

WHOLE = Case(1, 2, 1, 70, 70, 16, 32, 32, 2)
CHUNK = Case(1, 2, 1, 45, 100, 16, 32, 32, 1)  # the diagonal lies across blocks, two heads have one list
EVEN = Case(1, 2, 1, 64, 96, 16, 32, 32, 2)  # no query block is short
THREE = Case(1, 3, 1, 40, 60, 16, 16, 32, 1)  # a group that is no power of two, and query blocks smaller than key blocks

QUERY_TILES = [
    (WHOLE, Tile(32, 32, 4, 2)),
    (WHOLE, Tile(16, 16, 4, 2)),  # a query block in two tiles, a key block in two steps
    (CHUNK, Tile(64, 64, 4, 2)),  # two heads in a tile, two key blocks in a step
    (THREE, Tile(64, 32, 4, 2)),  # a head short
]
KEY_TILES = [
    (WHOLE, Tile(32, 32, 4, 2)),
    (WHOLE, Tile(16, 16, 4, 2)),  # a query block in two steps, a key block in two programs
    (WHOLE, Tile(64, 32, 4, 2)),  # two query blocks in a step
    (CHUNK, Tile(16, 32, 4, 2)),
    (CHUNK, Tile(64, 16, 4, 2)),
    (EVEN, Tile(16, 32, 4, 2)),
    (THREE, Tile(64, 32, 4, 2)),
]


def with_descriptors(tiles: list[tuple[Case, Tile]], *, by_rows: bool) -> list[tuple[Case, Tile]]:
    """The same tiles, and those that descriptors can read with them too."""
    fits = [(case, tile) for case, tile in tiles if (tile.rows <= case.q_block if by_rows else tile.cols <= case.k_block)]
    return tiles + [(case, replace(tile, described=True)) for case, tile in fits if DESCRIBES]


class Work:
    """The inputs of the backward pass of a case, and what it must return."""

    def __init__(self, case: Case, index: BlockIndex | None = None) -> None:
        self.q, self.k, self.v = case.tensors(DTYPE, DEVICE)
        self.index, self.scale = index or case.index(DEVICE, share=0.5), case.dim**-0.5
        self.lse = torch.empty(self.q.shape[:3], device=DEVICE)
        tile = Tile(min(32, case.q_block), 16, 4, 1)
        self.out = run_tile(self.q, self.k, self.v, self.index, scale=self.scale, tile=tile, lse=self.lse)
        self.grad = torch.randn(self.q.shape, generator=torch.Generator().manual_seed(3)).to(DEVICE, DTYPE)
        self.delta = (self.out.float() * self.grad.float()).sum(-1)
        self.true = gradients(self.q, self.k, self.v, self.index, self.grad)

    def queries(self, tile: Tile, delta: Tensor) -> Tensor:
        """dQ."""
        tensors = (self.q, self.k, self.v, self.out, self.lse, self.grad)
        return query_gradient(*tensors, self.index, delta, scale=self.scale, tile=tile)

    def keys(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """dK and dV."""
        tensors = (self.q, self.k, self.v, self.lse, self.delta, self.grad)
        transposed = transpose_index(self.index, self.k.shape[1], kernel="triton")
        return key_gradients(*tensors, self.index, transposed, scale=self.scale, tile=tile)


@pytest.fixture(scope="module")
def works() -> dict[Case, Work]:
    """The work of each case; to be read."""
    return {case: Work(case) for case in (WHOLE, CHUNK, EVEN, THREE)}


@pytest.mark.parametrize(("case", "tile"), with_descriptors(QUERY_TILES, by_rows=False), ids=str)
def test_every_tile_of_queries(works: dict[Case, Work], case: Case, tile: Tile) -> None:
    work = works[case]
    delta = torch.full_like(work.delta, float("nan"))
    assert error(work.queries(tile, delta), work.true[0]) < TOLERANCE[DTYPE]
    torch.testing.assert_close(delta, work.delta, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("case", "tile"), with_descriptors(KEY_TILES, by_rows=True), ids=str)
def test_every_tile_of_keys(works: dict[Case, Work], case: Case, tile: Tile) -> None:
    for result, true in zip(works[case].keys(tile), works[case].true[1:], strict=True):
        assert error(result, true) < TOLERANCE[DTYPE]


def test_a_tile_that_does_not_fit_is_refused(works: dict[Case, Work]) -> None:
    with pytest.raises(ValueError, match="does not fit key blocks of 32"):
        works[WHOLE].queries(Tile(32, 64, 4, 2, described=True), works[WHOLE].delta)
    for tile in (Tile(32, 64, 4, 2), Tile(64, 32, 4, 2, described=True)):
        with pytest.raises(ValueError, match="does not fit query blocks of 32 and key blocks of 32"):
            works[WHOLE].keys(tile)


def test_key_blocks_that_most_rows_keep_start_first() -> None:
    case = Case(1, 4, 2, 160, 160, 16, 16, 16, 4)
    mask = torch.zeros(1, 4, 10, 10, dtype=torch.bool, device=DEVICE)
    mask[:, :2, :, 4] = mask[:, 2:, :, 0] = mask[:, 2, :, 1] = mask[:, 3, 3:, 2] = mask[:, 2:, :, 3] = mask[:, 2, 7, 5] = True
    order, splits, slots = key_tasks(transpose_index(BlockIndex.from_mask(mask, **case.grid), 2, kernel="triton"), 2)
    assert (int(splits), slots) == (4, 4) and order[:4].tolist() == [4, 10, 11, 13], "the longest, in their order"
    assert order[4:].tolist() == [12, *(place for place in range(20) if place not in (4, 10, 11, 12, 13))]
    empty = BlockIndex.from_mask(torch.zeros_like(mask), **case.grid)
    order, splits, _ = key_tasks(transpose_index(empty, 2, kernel="triton"), 2)
    assert int(splits) == 0 and order.tolist() == list(range(20))


@pytest.mark.parametrize("tile", [Tile(32, 32, 4, 2), Tile(16, 16, 4, 2), Tile(64, 32, 4, 2)], ids=str)
def test_the_parts_of_long_key_blocks_are_put_together(tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first key block and the last, short one of a chunk are in every row of both heads, few others are in any."""
    case = Case(1, 2, 1, 300, 332, 16, 32, 32, 2)
    mask = torch.zeros(1, 2, 10, 11, dtype=torch.bool, device=DEVICE)
    mask[..., 0] = mask[..., 7, 3] = True
    index = BlockIndex.from_mask(mask, **case.grid)
    assert int(key_tasks(transpose_index(index, 1, kernel="triton"), 2)[1]) == 1
    work = Work(case, index)
    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    for result, true in zip(work.keys(tile), work.true[1:], strict=True):
        assert error(result, true) < TOLERANCE[DTYPE]


def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A way to make a tensor whose memory holds what must not be read."""

    def poison(*args: Any, **kwargs: Any) -> Tensor:
        tensor = make(*args, **kwargs)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 0x3FFFFFFF)

    return poison


ROOM = {(8, 0): 163 << 10, (8, 6): 99 << 10, (9, 0): 227 << 10, (12, 0): 99 << 10}


@pytest.mark.parametrize("capability", ROOM, ids=str)
def test_a_tile_for_every_shape(capability: tuple[int, int]) -> None:
    room = ROOM[capability]
    for dim, q_block, k_block, itemsize in product((16, 64, 128, 256), (16, 64, 128), (16, 64, 128), (2, 4)):
        one = _query_tile(capability, room, itemsize, dim, q_block, k_block, True)
        two = _key_tile(capability, room, itemsize, dim, q_block, k_block, True)
        assert 16 <= one.rows <= q_block and 16 <= two.cols <= k_block and min(one.cols, two.rows) >= 16
        assert (2 * one.rows + 2 * one.stages * one.cols) * dim * itemsize < room
        assert (2 * two.cols + 2 * two.stages * two.rows) * dim * itemsize < room
        assert not one.described or (capability[0] == 9 and itemsize == 2 and one.cols <= k_block)
        assert not two.described or (capability[0] == 9 and itemsize == 2 and two.rows <= q_block)


def test_tiles_on_hopper_are_those_that_the_registers_were_counted_for() -> None:
    tiles = {
        block: (
            _query_tile((9, 0), ROOM[9, 0], 2, 128, block, block, True),
            _key_tile((9, 0), ROOM[9, 0], 2, 128, block, block, True),
        )
        for block in (64, 128)
    }
    assert tiles[128] == (Tile(128, 128, 8, 2, True), Tile(64, 128, 8, 3, True))
    assert tiles[64] == (Tile(64, 64, 4, 2, True), Tile(64, 64, 4, 2, True))
    where = {"dim": 96, "q_block": 16, "k_block": 16}
    assert choose_query_tile(torch.device("cpu"), torch.float16, **where, shared=3, described=True) == Tile(64, 64, 4, 2)
    assert choose_key_tile(torch.device("cpu"), torch.float16, **where, described=True) == Tile(64, 16, 4, 2)
