"""From the settings of job=kernel_speed to the grid of the study. A wrong name is an error that lists the right ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from attention_kernels import block_map, block_sparse, decode, dense
from attention_kernels.block_sparse.table import BACKENDS

import methods
from harness.arms.build import baseline_name
from harness.core.errors import UserError
from harness.core.method_facts import method_facts
from harness.core.mistakes import as_user_error
from harness.core.settings import LONGEST, Settings
from harness.measure.kernel_speed.cases import DECODE, PREFILL, SHAPES, SHARED, TRAINING, UNIFORM, Grid, Shape
from methods.parts.base import Method

PHASES = (PREFILL, DECODE, TRAINING)
SLOW_DENSE = ("reference", "sdpa_math")
"""Dense kernels that form the whole n × n matrix: there to be right, not to be raced."""
SLOW_ON_GPU = ("reference", "sdpa")
"""Sparse kernels made for the CPU and for reading: "auto" leaves them out on a GPU."""
BLOCKS = "multiples of 16 from 16 to 128"

_T = TypeVar("_T")


def grid(settings: Settings) -> Grid:
    """Return the grid that the settings ask for. Raises UserError, one line, for what can't be meant."""
    options = settings.options
    phase, shape = str(options["phase"]), str(options["shape"])
    _one_of("job.phase", phase, PHASES)
    _one_of("job.shape", shape, list(SHAPES))
    study_grid = Grid(
        phase=phase,
        shape=SHAPES[shape],
        lengths=_list(
            "lengths", options, lambda x: _whole_number(x, 16), f"whole numbers of at least 16 and at most {LONGEST}"
        ),
        batches=_list("batches", options, lambda x: _whole_number(x, 1), f"whole numbers of at least 1 and at most {LONGEST}"),
        sparsities=_list("sparsities", options, _share, "shares in [0, 1), for example 0.9"),
        blocks=_list("blocks", options, lambda x: _whole_number(x, 8), BLOCKS),
        kernels=_sparse_kernels(settings, phase, SHAPES[shape]),
        dense=_dense_kernels(settings, phase, SHAPES[shape].head_dim),
        indices=_indices(options, phase),
        selections=_selections(options, phase),
        block_map=_map_kernel(settings, phase),
        baseline=baseline_name(),
        merges={name: backend.merges for name, backend in BACKENDS.items() if backend.merges} if phase != DECODE else {},
        last=_last(options, phase),
    )
    _check_buildable(study_grid)
    return study_grid


def left_out(settings: Settings, grid: Grid) -> dict[str, str]:
    """Return why "auto" left kernels out of a grid, by name: sparse ones, and dense ones whose library is there and fails."""
    reasons: dict[str, str] = {}
    if settings.options["kernels"] == "auto":
        missing = [name for name in _known_kernels(grid.phase) if name not in grid.kernels]
        reasons |= {name: _refusal(settings, grid.phase, name, grid.shape) or "made for the CPU" for name in missing}
    if settings.options["dense_kernels"] == "auto":
        reasons |= dense.broken_dense(device=settings.device, dtype=settings.dtype, head_dim=grid.shape.head_dim)
    return reasons


def _known_kernels(phase: str) -> Sequence[str]:
    return decode.KERNELS if phase == DECODE else block_sparse.KERNELS


def _sparse_kernels(settings: Settings, phase: str, shape: Shape) -> tuple[str, ...]:
    known = _known_kernels(phase)
    if settings.options["kernels"] != "auto":
        return _names("kernels", settings.options, known)
    slow = SLOW_ON_GPU if settings.device.type == "cuda" else ()
    kernels = [name for name in known if name not in slow and _refusal(settings, phase, name, shape) is None]
    if not kernels:
        what = "with a backward pass " if phase == TRAINING else ""
        raise UserError(f"job.kernels=auto: no sparse kernel {what}runs on {settings.device} with {settings.dtype}; name one")
    return tuple(kernels)


def _refusal(settings: Settings, phase: str, kernel: str, shape: Shape) -> str | None:
    """Return why a kernel runs in none of the block sizes, with heads that share an index or without; None where it does."""
    if kernel == "triton" and settings.device.type != "cuda":
        return "it needs a CUDA device"  # its interpreter would run, and its time would mean nothing
    site: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype, "head_dim": shape.head_dim}
    reason = None
    for block in _list("blocks", settings.options, lambda x: _whole_number(x, 8), BLOCKS):
        for group in (1, shape.heads // shape.kv_heads):
            try:
                if phase == DECODE:
                    decode.resolve_decode(kernel, **site, k_block=block, rows=group)
                else:
                    sizes: dict[str, Any] = {"q_block": block, "k_block": block, "shared": group}
                    block_sparse.resolve_kernel(kernel, **site, **sizes, grad=phase == TRAINING)
            except ValueError as error:
                reason = str(error)
            else:
                return None
    return reason


def _dense_kernels(settings: Settings, phase: str, head_dim: int) -> tuple[str, ...]:
    if settings.options["dense_kernels"] != "auto":
        return _names("dense_kernels", settings.options, dense.KERNELS)
    site: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype, "head_dim": head_dim}
    fails = dense.broken_dense(**site)
    available = dense.available_dense(**site, grad=phase == TRAINING)
    return tuple(name for name in available if name not in (*SLOW_DENSE, *fails))


def _indices(options: dict[str, Any], phase: str) -> tuple[str, ...]:
    sparse = [name for name in _selecting() if not methods.get(name).columns]  # the kernels of this study take blocks alone
    sources = [UNIFORM] if phase == DECODE else [UNIFORM, *sparse]
    return _names("indices", options, [f"{name}{ending}" for name in sources for ending in ("", SHARED)])


def _selections(options: dict[str, Any], phase: str) -> tuple[str, ...]:
    if phase == DECODE:  # a decode step selects among keys pooled before it: that is another measurement
        return ()
    return _names("selections", options, _selecting())


def _last(options: dict[str, Any], phase: str) -> tuple[int, ...]:
    last = _list("last", options, lambda x: _whole_number(x, 0), "whole numbers of query blocks, 0 or more")
    if phase == DECODE and any(last):
        raise UserError(f"job.last={list(last)}: a decode step has one query and no last rows; leave it at [0]")
    return last


def _selecting() -> list[str]:
    """Return the methods that select something before attention."""
    classes = [(name, methods.get(name)) for name in methods.names()]
    return [name for name, cls in classes if cls.family != "none" and not cls.in_kernel]


def _map_kernel(settings: Settings, phase: str) -> str | None:
    name = settings.options["block_map"]
    if name is None or phase != PREFILL:  # a map is made of what a prefill sees, and never differentiated
        return None
    _one_of("job.block_map", str(name), ["null", "auto", *block_map.KERNELS])
    if name == "auto":
        return "triton" if settings.device.type == "cuda" else "reference"
    return str(name)


def _check_buildable(grid: Grid) -> None:
    """Build every method once in every setting, so that bad input stops before the study and not in its middle. Raises
    UserError."""
    kinds = [kind for kind in grid.indices if kind.removesuffix(SHARED) != UNIFORM]
    sharing = {kind.endswith(SHARED) for kind in grid.indices}
    variants = {(kind.removesuffix(SHARED), kind.endswith(SHARED)) for kind in kinds}
    variants |= {(name, shared) for name in grid.selections for shared in sharing}
    for kind in kinds if any(grid.last) else ():
        if not takes_last(name := kind.removesuffix(SHARED)):
            able = ", ".join([UNIFORM, *filter(takes_last, _selecting())])
            raise UserError(f"job.last={list(grid.last)}: method {name} has no knob for full last rows; job.indices: {able}")
    try:
        for name, shared in sorted(variants):
            for block in grid.blocks:
                for sparsity in grid.sparsities:
                    build_with_standard_knobs(name, block, sparsity, shared)
    except ValueError as error:
        raise as_user_error(error) from error


def build_with_standard_knobs(name: str, block: int, sparsity: float, shared: bool, last: int = 0) -> Method:
    """Build a method with its standard knobs. Raises ValueError for what it can't do, sharing an index among heads say."""
    return methods.build(name, block_size=block, sparsity=sparsity, **standard_knobs(name, shared, last))


def standard_knobs(name: str, shared: bool, last: int = 0) -> dict[str, Any]:
    """Return the knobs that this job runs a method with, where they are not its defaults. shared: one index for the query heads
    of a KV head. last: query blocks at the end that keep everything, of a method that can."""
    return {
        **method_facts(name).formula,
        **({"shared": True} if shared else {}),
        **({"last": last} if last and takes_last(name) else {}),
    }


def takes_last(name: str) -> bool:
    """Return whether a method has a knob for query blocks at the end that keep everything."""
    return method_facts(name).full_rows.get("unit") == "blocks"


def _names(option: str, options: dict[str, Any], known: Sequence[str]) -> tuple[str, ...]:
    """Return the names that an option lists. Raises UserError for one that is not known."""
    names = _list(option, options, str, "names")
    for name in names:
        _one_of(f"job.{option}", name, known)
    return names


def _one_of(setting: str, value: str, known: Sequence[str]) -> None:
    """Raise UserError for a value that is not known."""
    if value not in known:
        raise UserError(f"{setting}: {value} is not known; choose from: {', '.join(known)}")


def _list(option: str, options: dict[str, Any], read: Callable[[Any], _T | None], kind: str) -> tuple[_T, ...]:
    """Return the values of an option that is a list, or one value instead of it; each value once, in their order.

    read: returns the value of an entry, None for a wrong one. Raises UserError, naming the `kind` of value, for a wrong entry
    or none.
    """
    raw = options[option]
    read_values = [read(entry) for entry in raw] if isinstance(raw, list) else [read(raw)]
    values = [value for value in read_values if value is not None]
    if not values or len(values) < len(read_values):
        raise UserError(f"job.{option}={raw}: must be one or more {kind}, as job.{option}=[…]")
    return tuple(dict.fromkeys(values))


def _whole_number(value: Any, low: int) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and low <= value <= LONGEST else None


def _share(value: Any) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
    return float(value) if fits else None


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
