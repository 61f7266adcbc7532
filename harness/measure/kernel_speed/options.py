"""From the settings of job=kernel_speed to the grid of the study; a wrong name lists the right ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from attention_kernels import block_map, block_sparse, decode, dense
from attention_kernels.block_sparse.table import BACKENDS

import methods
from harness.arms.build import baseline_name
from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.measure.kernel_speed.cases import SHAPES, SHARED, UNIFORM, Grid, Shape
from methods.parts.base import Method

PHASES = ("prefill", "decode")
SLOW_DENSE = ("reference", "sdpa_math")
"""Dense kernels that form the whole n × n matrix: there to be right, not to be raced."""
SLOW_ON_GPU = ("reference", "sdpa")
"""Sparse kernels made for the CPU and for reading: "auto" leaves them out on a GPU."""
BLOCKS = "multiples of 16 from 16 to 128"

_T = TypeVar("_T")


def grid(settings: Settings) -> Grid:
    """The grid that the settings ask for. Raises UserError, one line, for what can't be meant."""
    given = settings.options
    phase, shape = str(given["phase"]), str(given["shape"])
    _one_of("job.phase", phase, PHASES)
    _one_of("job.shape", shape, list(SHAPES))
    made = Grid(
        phase=phase,
        shape=SHAPES[shape],
        lengths=_list("lengths", given, lambda x: _whole(x, 16), "whole numbers of at least 16"),
        batches=_list("batches", given, lambda x: _whole(x, 1), "whole numbers of at least 1"),
        sparsities=_list("sparsities", given, _share, "shares in [0, 1), for example 0.9"),
        blocks=_list("blocks", given, lambda x: _whole(x, 8), BLOCKS),
        kernels=_sparse(settings, phase, SHAPES[shape]),
        dense=_dense(settings, SHAPES[shape].head_dim),
        indices=_indices(given, phase),
        selections=_selections(given, phase),
        block_map=_map_kernel(settings, phase),
        baseline=baseline_name(),
        merges={name: each.merges for name, each in BACKENDS.items() if each.merges} if phase == "prefill" else {},
    )
    _buildable(made)
    return made


def left_out(settings: Settings, grid: Grid) -> dict[str, str]:
    """Why "auto" left sparse kernels out, by name."""
    if settings.options["kernels"] != "auto":
        return {}
    known = _known(grid.phase)
    return {
        name: _refusal(settings, grid.phase, name, grid.shape) or "made for the CPU"
        for name in known
        if name not in grid.kernels
    }


def _known(phase: str) -> Sequence[str]:
    return block_sparse.KERNELS if phase == "prefill" else decode.KERNELS


def _sparse(settings: Settings, phase: str, shape: Shape) -> tuple[str, ...]:
    known = _known(phase)
    if settings.options["kernels"] != "auto":
        return _names("kernels", settings.options, known)
    slow = SLOW_ON_GPU if settings.device.type == "cuda" else ()
    found = [name for name in known if name not in slow and _refusal(settings, phase, name, shape) is None]
    if not found:
        raise UserError(f"job.kernels=auto: no sparse kernel runs on {settings.device} with {settings.dtype}; name one")
    return tuple(found)


def _refusal(settings: Settings, phase: str, kernel: str, shape: Shape) -> str | None:
    """None where the kernel runs in one of the block sizes, with heads that share an index or without; else why not."""
    if kernel == "triton" and settings.device.type != "cuda":
        return "it needs a CUDA device"  # its interpreter would run, and its time would mean nothing
    where: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype, "head_dim": shape.head_dim}
    reason = None
    for block in _list("blocks", settings.options, lambda x: _whole(x, 8), BLOCKS):
        for group in (1, shape.heads // shape.kv_heads):
            try:
                if phase == "prefill":
                    block_sparse.resolve_kernel(kernel, **where, q_block=block, k_block=block, shared=group)
                else:
                    decode.resolve_decode(kernel, **where, k_block=block, rows=group)
            except ValueError as error:
                reason = str(error)
            else:
                return None
    return reason


def _dense(settings: Settings, head_dim: int) -> tuple[str, ...]:
    if settings.options["dense_kernels"] != "auto":
        return _names("dense_kernels", settings.options, dense.KERNELS)
    found = dense.available_dense(device=settings.device, dtype=settings.dtype, head_dim=head_dim)
    return tuple(name for name in found if name not in SLOW_DENSE)


def _indices(given: dict[str, Any], phase: str) -> tuple[str, ...]:
    sparse = [name for name in _selecting() if not methods.get(name).columns]  # the kernels here take blocks alone
    sources = [UNIFORM, *sparse] if phase == "prefill" else [UNIFORM]
    return _names("indices", given, [f"{name}{ending}" for name in sources for ending in ("", SHARED)])


def _selections(given: dict[str, Any], phase: str) -> tuple[str, ...]:
    if phase == "decode":  # a decode step selects among keys pooled before it: that is another measurement
        return ()
    return _names("selections", given, _selecting())


def _selecting() -> list[str]:
    """Methods that select something before attention."""
    every = [(name, methods.get(name)) for name in methods.names()]
    return [name for name, cls in every if cls.family != "none" and not cls.in_kernel]


def _map_kernel(settings: Settings, phase: str) -> str | None:
    name = settings.options["block_map"]
    if name is None or phase == "decode":
        return None
    _one_of("job.block_map", str(name), ["null", "auto", *block_map.KERNELS])
    if name == "auto":
        return "triton" if settings.device.type == "cuda" else "reference"
    return str(name)


def _buildable(grid: Grid) -> None:
    """Build every method once in every setting, so that bad input stops here and not in the middle of the study."""
    kinds = [kind for kind in grid.indices if kind.removesuffix(SHARED) != UNIFORM]
    ways = {kind.endswith(SHARED) for kind in grid.indices}
    wanted = {(kind.removesuffix(SHARED), kind.endswith(SHARED)) for kind in kinds}
    wanted |= {(name, shared) for name in grid.selections for shared in ways}
    try:
        for name, shared in sorted(wanted):
            for block in grid.blocks:
                for sparsity in grid.sparsities:
                    build(name, block, sparsity, shared)
    except ValueError as error:
        raise UserError(str(error)) from error


def build(name: str, block: int, sparsity: float, shared: bool) -> Method:
    """A method with its standard knobs. Raises ValueError for what it can't do, sharing an index among heads say."""
    return methods.build(name, block_size=block, sparsity=sparsity, **({"shared": True} if shared else {}))


def _names(name: str, given: dict[str, Any], known: Sequence[str]) -> tuple[str, ...]:
    found = _list(name, given, str, "names")
    for each in found:
        _one_of(f"job.{name}", each, known)
    return found


def _one_of(setting: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"{setting}: {value} is not known; choose from: {', '.join(known)}")


def _list(name: str, given: dict[str, Any], read: Callable[[Any], _T | None], what: str) -> tuple[_T, ...]:
    """A setting that is a list, or one value instead of it; each value once, in their order."""
    raw = given[name]
    values = [read(x) for x in raw] if isinstance(raw, list) else [read(raw)]
    kept = [value for value in values if value is not None]
    if not kept or len(kept) < len(values):
        raise UserError(f"job.{name}={raw}: must be one or more {what}, as job.{name}=[…]")
    return tuple(dict.fromkeys(kept))


def _whole(value: Any, low: int) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= low else None


def _share(value: Any) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
    return float(value) if fits else None


def dtype_name(dtype: torch.dtype) -> str:
    """ "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
