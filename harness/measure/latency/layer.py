"""Time of one attention layer call, dense and sparse, on the queries, keys and values of that layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from attention_kernels import sparse_attention
from attention_kernels.dense import dense_attention
from attention_kernels.kept_mass import kept_mass
from attention_kernels.optional import first_line
from attention_kernels.sparse_attention import Choice, SparseIndex
from torch import Tensor

from harness.core.errors import UserError
from harness.measure.latency.timing import Times, extra_mib, nothing_timed, take_turns
from harness.models.kernel_choice import dense_kernel_of, sparse_kernel_of
from harness.models.loading import LoadedModel
from harness.models.observe import layer_inputs
from methods.parts.base import Method


@dataclass(frozen=True)
class LayerTimer:
    """What is timed in each layer: a method (None: dense attention) beside dense kernels, `repeats` calls of each at most.

    sparse_kernel, dense_kernel: names, or "auto", of what runs the method's choice, and where it asks for dense attention.
    dense_kernels: resolved names of those it is raced with. failures: why one of them can't run, filled in while timing; what
    failed in one layer isn't tried again in the next.
    """

    loaded: LoadedModel
    method: Method | None
    sparse_kernel: str
    dense_kernel: str
    dense_kernels: list[str]
    repeats: int
    failures: dict[str, str]


@dataclass(frozen=True)
class LayerTiming:
    """What was measured in one layer. times: of "selection", "attention", "total" and "dense KERNEL", a call of each, medians
    that go together (`Times.beside` the total).

    density, token_density, kept_mass: of the index that ran, the mean over heads; 1 for dense attention. flop: of the
    attention. kernel: what ran, and full_row_kernel: what ran the last rows that keep everything, None where there are none.
    peak_mib: see AttentionTiming.
    """

    times: dict[str, Times]
    density: float
    token_density: float
    flop: float
    kernel: str
    kept_mass: float
    peak_mib: float | None
    full_row_kernel: str | None = None


def time_layer(
    timer: LayerTimer, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, *, max_seconds: float
) -> LayerTiming:
    """Time selection, attention and both as one, in turns with the dense kernels, on q [B,Hq,Q,D] and k, v [B,Hkv,K,D].

    Raises UserError where no dense kernel runs.
    """
    loaded, method = timer.loaded, timer.method
    inputs = None if method is None else layer_inputs(loaded, method, layer, q, k, scale)
    functions: dict[str, Callable[[], Any]] = {}
    for name in timer.dense_kernels:
        dense = partial(dense_attention, q, k, v, scale=scale, kernel=name)
        if name not in timer.failures and (reason := _failure(dense)) is not None:
            timer.failures[name] = reason
        if name not in timer.failures:
            functions[f"dense {name}"] = dense
    if not functions:
        raise UserError(f"no dense kernel could run: {timer.failures}")

    def select() -> Choice | None:
        return None if method is None or inputs is None else method.select(inputs)

    choice = select()
    if choice is None:
        kernel = dense_kernel_of(loaded, timer.dense_kernel, q.shape[3])
    else:
        kernel = sparse_kernel_of(loaded, timer.sparse_kernel, choice, heads=q.shape[1], head_dim=q.shape[3])

    def attend(choice: Choice | None) -> tuple[Tensor, SparseIndex | None]:
        if choice is None:
            return dense_attention(q, k, v, scale=scale, kernel=kernel), None
        return sparse_attention.attend(q, k, v, choice, scale=scale, kernel=kernel)

    peak = extra_mib(lambda: attend(select()), loaded.device)
    raced = f"dense {kernel}"
    if method is not None or raced not in functions:
        functions |= {"selection": select, "attention": lambda: attend(choice), "total": lambda: attend(select())}
    times = take_turns(functions, loaded.device, repeats=timer.repeats, max_seconds=max_seconds)
    if "total" not in times:  # dense attention itself is one of those that it is raced with
        times |= {"selection": nothing_timed(times[raced]), "attention": times[raced], "total": times[raced]}
    times = {name: measured.beside(times["total"]) for name, measured in times.items()}
    index = attend(choice)[1]
    if choice is None or index is None:
        return LayerTiming(times, 1.0, 1.0, _dense_flop(q, k), kernel, 1.0, peak)
    return LayerTiming(
        times,
        density=float(index.density().mean()),
        token_density=float(index.token_density().mean()),
        flop=sparse_attention.flop(q, choice, index),
        kernel=kernel,
        kept_mass=float(kept_mass(q, k, index, scale=scale).mean()),
        peak_mib=peak,
        full_row_kernel=sparse_attention.full_row_kernel(index, kernel, dtype=q.dtype, head_dim=q.shape[3]),
    )


def _failure(function: Callable[[], Any]) -> str | None:
    """Return why a dense kernel can't run, None where it does. A library that compiles at its first call may raise anything."""
    try:
        function()
    except Exception as error:  # out of memory too: another kernel may need less
        return first_line(error)
    return None


def _dense_flop(q: Tensor, k: Tensor) -> float:
    """Return the FLOP of causal attention over all keys: two products of 2·D FLOP a pair."""
    batch, heads, tokens, dim = q.shape
    offset = k.shape[2] - tokens
    return 4.0 * dim * batch * heads * (tokens * offset + tokens * (tokens + 1) / 2)
