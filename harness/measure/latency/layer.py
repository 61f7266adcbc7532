"""Time of one attention layer call, dense and sparse, on the queries, keys and values of that layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from attention_kernels import sparse_attention
from attention_kernels.dense import dense_attention
from attention_kernels.kept_mass import ROWS, kept_mass
from attention_kernels.optional import first_line
from attention_kernels.sparse_attention import Choice, SparseIndex
from torch import Tensor

from harness.core.errors import UserError
from harness.measure.latency.timing import Times, extra_mib, nothing_timed, take_turns
from harness.models.kernel_choice import dense_kernel_of, sparse_kernel_of
from harness.models.layer_stats import ChunkDensity, prompt_densities
from harness.models.loading import LoadedModel
from harness.models.observe import layer_inputs
from methods.parts.base import Method
from methods.parts.prompt_chunks import ChunkedPrompt


@dataclass(frozen=True)
class LayerTimer:
    """What is timed in each layer: a method (None: dense attention) beside dense kernels, `repeats` calls of each at most.

    sparse_kernel, dense_kernel: names, or "auto", of what runs the method's choice, and where it asks for dense attention.
    dense_kernels: resolved names of those it is raced with. failures: why one of them can't run, filled in while timing; what
    failed in one layer isn't tried again in the next. chunk: queries at once, None for all; a call is of all chunks then.
    """

    loaded: LoadedModel
    method: Method | None
    sparse_kernel: str
    dense_kernel: str
    dense_kernels: list[str]
    repeats: int
    failures: dict[str, str]
    chunk: int | None = None


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
    pieces = _pieces(q, k, v, timer.chunk)
    functions: dict[str, Callable[[], Any]] = {}
    for name in timer.dense_kernels:
        dense = partial(_attend_densely, pieces, scale, name)
        if name not in timer.failures and (reason := _failure(dense)) is not None:
            timer.failures[name] = reason
        if name not in timer.failures:
            functions[f"dense {name}"] = dense
    if not functions:
        raise UserError(f"no dense kernel could run: {timer.failures}")

    select = selection_of(timer, layer, q, k, v, scale)
    choices = select()
    kernels = [_kernel(timer, q, choice) for choice in choices]

    def attend(choices: Sequence[Choice | None]) -> list[SparseIndex | None]:
        return [_attend(piece, choice, scale, kernel) for piece, choice, kernel in zip(pieces, choices, kernels, strict=True)]

    peak = extra_mib(lambda: attend(select()), loaded.device)
    kernel = "+".join(sorted(set(kernels)))
    raced = f"dense {kernel}"
    if method is not None or raced not in functions:
        functions |= {"selection": select, "attention": lambda: attend(choices), "total": lambda: attend(select())}
    times = take_turns(functions, loaded.device, repeats=timer.repeats, max_seconds=max_seconds)
    if "total" not in times:  # dense attention itself is one of those that it is raced with
        times |= {"selection": nothing_timed(times[raced]), "attention": times[raced], "total": times[raced]}
    times = {name: measured.beside(times["total"]) for name, measured in times.items()}
    indices = attend(choices)
    density, token_density = prompt_densities(
        [ChunkDensity.of(index, piece[0].shape[2], piece[1].shape[2]) for piece, index in zip(pieces, indices, strict=True)]
    )
    flop, mass, full_row_kernel = 0.0, 0.0, None
    block = 1 if method is None else method.block_size
    rows = [-(-queries.shape[2] // block) for queries, _, _ in pieces]
    for (queries, keys, _), choice, index, ran, count in zip(pieces, choices, indices, kernels, rows, strict=True):
        share = count / sum(rows)  # query blocks weigh the same
        if choice is None or index is None:
            flop, mass = flop + _dense_flop(queries, keys), mass + share
            continue
        flop += sparse_attention.flop(queries, choice, index)
        kept = kept_mass(queries, keys, index, scale=scale, rows=-(-ROWS // len(pieces)))
        mass += share * float(kept.mean())
        full_rows = sparse_attention.full_row_kernel(index, ran, dtype=q.dtype, head_dim=q.shape[3])
        full_row_kernel = full_row_kernel or full_rows
    return LayerTiming(times, float(density), float(token_density), flop, kernel, mass, peak, full_row_kernel)


def selection_of(
    timer: LayerTimer, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float
) -> Callable[[], list[Choice | None]]:
    """Return what selects in a layer, for all chunks of the prompt in their order, each time with nothing kept from before."""
    method, pieces = timer.method, _pieces(q, k, v, timer.chunk)
    inputs = None if method is None else layer_inputs(timer.loaded, method, layer, q, k, scale)

    def select() -> list[Choice | None]:
        if method is None or inputs is None:
            return [None] * len(pieces)
        prompt = None if len(pieces) == 1 else ChunkedPrompt(k.shape[2])
        return [method.select(replace(inputs, q=queries, k=keys, prompt=prompt)) for queries, keys, _ in pieces]

    return select


Piece = tuple[Tensor, Tensor, Tensor]
"""Queries of a chunk [B,Hq,Q,D], and the keys and values up to its end [B,Hkv,K,D]."""


def _pieces(q: Tensor, k: Tensor, v: Tensor, chunk: int | None) -> list[Piece]:
    """Return the chunks of a prompt as they would come, views of what a cache holds; all of it where chunk is None."""
    before, tokens = k.shape[2] - q.shape[2], q.shape[2]
    step = tokens if chunk is None else chunk
    ends = [min(first + step, tokens) for first in range(0, tokens, step)]
    return [
        (q[:, :, first:end], k[:, :, : before + end], v[:, :, : before + end])
        for first, end in zip(range(0, tokens, step), ends, strict=True)
    ]


def _kernel(timer: LayerTimer, q: Tensor, choice: Choice | None) -> str:
    """Return the kernel that runs what was chosen, None: dense attention."""
    if choice is None:
        return dense_kernel_of(timer.loaded, timer.dense_kernel, q.shape[3])
    return sparse_kernel_of(timer.loaded, timer.sparse_kernel, choice, heads=q.shape[1], head_dim=q.shape[3])


def _attend(piece: Piece, choice: Choice | None, scale: float, kernel: str) -> SparseIndex | None:
    """Run the attention of a chunk over what was chosen; returns the index that ran, None for dense attention."""
    if choice is None:
        dense_attention(*piece, scale=scale, kernel=kernel)
        return None
    return sparse_attention.attend(*piece, choice, scale=scale, kernel=kernel)[1]


def _attend_densely(pieces: Sequence[Piece], scale: float, kernel: str) -> None:
    """Run dense attention over all chunks of a prompt."""
    for piece in pieces:
        dense_attention(*piece, scale=scale, kernel=kernel)


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
