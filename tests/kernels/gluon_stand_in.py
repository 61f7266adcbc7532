"""A stand-in for a Hopper GPU: runs the Gluon kernel's own source on a CPU, each of its warp groups in a thread, with barriers
that count as mbarriers do. It shows whether every tile, part and mask is right, and that no group waits for ever; layouts, and
what the compiler makes of it all, it cannot show."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

PATIENCE = 20.0
"""Seconds after which a wait is taken for a deadlock."""


@dataclass
class Pointer:
    """An address in a tensor's memory, or several: an offset in elements from its first."""

    memory: Tensor
    offset: Any = 0

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.memory, self.offset + more)


@dataclass(frozen=True)
class Description:
    """A TMA descriptor of [B, H, N, D] for copies of `rows` tokens by 64 elements."""

    tensor: Tensor
    rows: int
    layout: Any = None

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def box(self, at: Sequence[Any]) -> tuple[Tensor, int]:
        """The part of the tensor at a place, and how many of its rows are inside."""
        b, h, row, column = (int(x) for x in at)
        inside = max(0, min(self.rows, self.tensor.shape[2] - row))
        return self.tensor[b, h, row : row + inside, column : column + 64], inside


class Shared:
    """Shared memory of [tiles, …, rows, 64], and views of it as matrices of whole heads."""

    def __init__(self, dtype: torch.dtype, shape: Sequence[int]) -> None:
        self.dtype, self.rows = dtype, shape[-2]
        self.tiles = torch.full((shape[0], shape[-2], 64), float("nan"), dtype=dtype)

    def index(self, i: Any) -> Tensor:
        return self.tiles[int(i)]

    def _reinterpret(self, dtype: torch.dtype, shape: Sequence[int], layout: Any) -> Matrix:
        return Matrix(self, *((1, *shape) if len(shape) == 2 else shape))


@dataclass(frozen=True)
class Matrix:
    """`count` matrices [rows, columns] of tiles: those of 64 columns side by side hold one below the other."""

    memory: Shared
    count: int
    rows: int
    columns: int
    number: int = 0

    def index(self, i: Any) -> Matrix:
        return Matrix(self.memory, self.count, self.rows, self.columns, int(i))

    def _tiles(self) -> Tensor:
        high, wide = self.rows // self.memory.rows, self.columns // 64
        return self.memory.tiles.view(self.count, wide, high, self.memory.rows, 64)[self.number]

    def load(self, layout: Any = None) -> Tensor:
        return self._tiles().flatten(1, 2).transpose(0, 1).reshape(self.rows, self.columns).clone()

    def permute(self, order: tuple[int, int]) -> Tensor:
        return self.load().T

    def store(self, x: Tensor) -> None:
        tiles = self._tiles()
        tiles.copy_(x.view(self.rows, -1, 64).transpose(0, 1).reshape(tiles.shape))


class Barrier:
    """An mbarrier: a phase ends when `count` have arrived and all bytes that were announced are there."""

    def __init__(self) -> None:
        self.count = self.arrived = self.bytes = self.phase = 0
        self.changed = threading.Condition()

    def index(self, i: Any) -> Barrier:
        return self.several[int(i)]

    def step(self, arrivals: int, announced: int) -> None:
        with self.changed:
            self.arrived, self.bytes = self.arrived + arrivals, self.bytes + announced
            if self.arrived == self.count and self.bytes == 0:
                self.arrived, self.phase = 0, self.phase + 1
                self.changed.notify_all()

    def wait(self, parity: Any) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: self.phase % 2 != int(parity), PATIENCE):
                raise TimeoutError("a barrier that nobody reaches")

    several: list[Barrier]


def _barriers(shape: Sequence[int]) -> Barrier:
    one = Barrier()
    one.several = [Barrier() for _ in range(shape[0])]
    return one


def _load(at: Pointer) -> Tensor:
    return at.memory[torch.as_tensor(at.offset).long()]


def _store(at: Pointer, value: Tensor) -> None:
    at.memory[torch.as_tensor(at.offset).long()] = value


def _copy_in(desc: Description, at: Sequence[Any], barrier: Barrier, tile: Tensor) -> None:
    box, inside = desc.box(at)
    tile.zero_()
    tile[:inside] = box
    barrier.step(0, -tile.numel() * 2)


def _copy_out(desc: Description, at: Sequence[Any], tile: Tensor) -> None:
    box, inside = desc.box(at)
    box.copy_(tile[:inside])


def _multiply(a: Any, b: Any, acc: Tensor, use_acc: bool = True, is_async: bool = False) -> Tensor:
    left, right = (x.load() if isinstance(x, Matrix) else x for x in (a, b))
    return left.float() @ right.float() + (acc if use_acc else 0)


def _in_threads(groups: Sequence[tuple[Callable[..., None], tuple[Any, ...]]], *_: Any) -> None:
    failures: list[Exception] = []

    def run(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        try:
            function(*arguments)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=group, daemon=True) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _both(name: str) -> Callable[[Any, Any], Tensor]:
    return lambda a, b: getattr(torch, name)(torch.as_tensor(a), torch.as_tensor(b))


def _language(program: int, programs: int) -> dict[str, Any]:
    """What the kernel's modules import, for one program."""
    layout = lambda *_, **__: None  # noqa: E731
    gl = SimpleNamespace(
        program_id=lambda axis: torch.tensor(program),
        num_programs=lambda axis: torch.tensor(programs),
        int32=torch.int32,
        int64=torch.int64,
        float32=torch.float32,
        arange=lambda first, last, layout: torch.arange(first, last),
        zeros=lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
        where=lambda c, a, b: torch.where(torch.as_tensor(c), torch.as_tensor(a), torch.as_tensor(b)),
        minimum=_both("minimum"),
        maximum=_both("maximum"),
        max=lambda x, axis: x.amax(axis),
        sum=lambda x, axis: x.sum(axis),
        exp2=torch.exp2,
        log2=torch.log2,
        load=_load,
        store=_store,
        convert_layout=lambda x, layout: x,
        static_range=range,
        warp_specialize=_in_threads,
        allocate_shared_memory=lambda dtype, shape, layout: _barriers(shape) if dtype == torch.int64 else Shared(dtype, shape),
        **dict.fromkeys(("SliceLayout", "NVMMADistributedLayout", "DotOperandLayout", "NVMMASharedLayout"), layout),
    )

    def init(barrier: Barrier, count: int) -> None:
        barrier.count = count

    return {
        "gl": gl,
        "mbarrier": SimpleNamespace(
            init=init,
            wait=lambda barrier, parity: barrier.wait(parity),
            arrive=lambda barrier, count: barrier.step(count, 0),
            expect=lambda barrier, announced: barrier.step(1, announced),
            MBarrierLayout=layout,
        ),
        "tma": SimpleNamespace(
            async_copy_global_to_shared=_copy_in,
            async_copy_shared_to_global=_copy_out,
            store_wait=lambda pending: None,
        ),
        "warpgroup_mma": _multiply,
        "warpgroup_mma_wait": lambda pending, deps: deps[0],
        "fence_async_shared": lambda: None,
    }


def _argument(x: Any) -> Any:
    """An argument of a launch as the kernel sees it."""
    if isinstance(x, Tensor):
        size = x.untyped_storage().size() // x.element_size() - x.storage_offset()
        return Pointer(x.as_strided((size,), (1,)))
    return Description(x.base, x.block_shape[-2]) if hasattr(x, "block_shape") else x


class Kernel:
    """`name` of the modules of a Gluon kernel, to be launched as it is: kernel[grid](…)."""

    def __init__(self, name: str, *modules: ModuleType) -> None:
        members = (item for module in modules for item in vars(module).items())
        self.name, self.functions = name, {name: value.fn for name, value in members if isinstance(value, JITFunction)}

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*arguments: Any, num_warps: int, **constants: Any) -> None:
            given = [_argument(x) for x in arguments]
            for program in range(grid[0]):
                scope: dict[str, Any] = _language(program, grid[0])
                scope |= {name: FunctionType(fn.__code__, scope, name) for name, fn in self.functions.items()}
                scope[self.name](*given, **constants)

        return launch
