"""Time the cases of one turn: try each, check what it returns, then call all in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from typing import Any

import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.sparse_attention import SparseIndex

from harness.core.mistakes import origin
from harness.measure.kernel_speed.cases import Case
from harness.measure.kernel_speed.correctness import TOLERANCE
from harness.measure.kernel_speed.cuda_graph import captured
from harness.measure.kernel_speed.inputs import Work
from harness.measure.latency.timing import Times, extra_mib, take_turns
from harness.study.resume import one_line

REFUSALS = (ValueError, ImportError, NotImplementedError)
"""What is raised by a kernel that can't run here and never will; anything else, out of memory say, may pass."""

FEWEST = 3
"""Clocked calls of every function at least, whatever the limit in seconds: of fewer, a median says nothing. Clocks that drift
made one call of a kernel slower than another of the same kernel and its selection."""

TIMES_OF_ONE = "total"
"""Where the time of a case that has only one is kept."""


@dataclass(frozen=True)
class Result:
    """The outcome of one case; its fields are those of `harness.study.timing_schema.KernelRecord`.

    reason: why it failed, or must be held back (`wrong`); traceback: of the error that it failed with. dense_ms, dense_kernel:
    the fastest dense kernel in the rounds of the case; None where none took part.
    """

    times: Mapping[str, Times] = field(default_factory=dict)
    density: float | None = None
    flop: float | None = None
    kv_bytes: float | None = None
    q_block: int | None = None
    k_block: int | None = None
    error: float | None = None
    peak_mib: float | None = None
    timing: str = "events"
    dense_ms: float | None = None
    dense_kernel: str | None = None
    reason: str = ""
    traceback: str = ""
    final: bool = False
    wrong: bool = False


@dataclass(frozen=True)
class Timer:
    """How often, and for how many seconds at most, the cases of a turn are called. graphs: replayed as CUDA graphs.

    The call that is checked and the one whose memory is measured are the warm-up of the others: at 128k tokens calls take
    tenths of a second, and the time is for the clock. Graphs are short, and warmed up once more: their first replay is slow.
    """

    device: torch.device
    repeats: int
    seconds: float
    graphs: bool

    @property
    def timing(self) -> str:
        """Return how calls are timed, as a record names it."""
        return "graph" if self.graphs and self.device.type == "cuda" else "events"

    def ready(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """Return the function as it is timed. Raises what its first call raises."""
        return captured(function, self.device) if self.graphs else function

    def turns(self, functions: Mapping[str, Callable[[], Any]]) -> dict[str, Times]:
        """Time the functions in turns (`take_turns`), each FEWEST times at least."""
        return take_turns(
            functions, self.device, repeats=self.repeats, max_seconds=self.seconds, at_least=FEWEST, warm=not self.graphs
        )


def failed(error: Exception, device: torch.device) -> Result:
    """Return the result of a case that raised, and give memory back. Raises what the device raises where it is lost."""
    reason, final = one_line(error).removeprefix("ValueError: "), isinstance(error, REFUSALS)
    came_from = origin(error).traceback
    error.__traceback__ = None  # its frames hold the tensors that were too many
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    return Result(reason=reason, final=final, traceback=came_from)


def time_dense(cases: list[Case], work: Work, timer: Timer) -> dict[Case, Result]:
    """Time every dense kernel, each checked against exact attention over all blocks."""
    q_len, k_len = work.q.shape[2], work.k.shape[2]
    all_blocks = BlockIndex.full(
        work.q.shape[0], 1, q_block=min(128, q_len), k_block=128, q_len=q_len, k_len=k_len, device=timer.device
    )
    results, functions = {}, {}
    for case in cases:
        try:
            call = work.dense(case.kernel)
            result = _checked(work, all_blocks, call)
            result = replace(result, peak_mib=extra_mib(call, timer.device), density=1.0, flop=work.flop(None))
            functions[case.kernel] = timer.ready(call)
            results[case] = replace(result, kv_bytes=work.kv_bytes(None), timing=timer.timing)
        except Exception as error:
            results[case] = failed(error, timer.device)
    times = timer.turns(functions) if functions else {}
    sound = {c.kernel: times[c.kernel] for c, r in results.items() if c.kernel in times and not r.wrong}
    return {
        c: replace(r, times={TIMES_OF_ONE: times[c.kernel]}, **_fastest(sound, times[c.kernel])) if c.kernel in times else r
        for c, r in results.items()
    }


def _fastest(dense: Mapping[str, Times], base: Times) -> dict[str, Any]:
    """Return `dense_ms` and `dense_kernel` of a result: the fastest dense kernel as it goes with the times of the case."""
    beside = {kernel: times.beside(base).median for kernel, times in dense.items()}
    if not beside:
        return {}
    kernel = min(beside, key=beside.__getitem__)
    return {"dense_ms": beside[kernel], "dense_kernel": kernel}


def time_sparse(
    cases: list[Case],
    work: Work,
    indices: Mapping[int, BlockIndex],
    selects: Mapping[int, Callable[[], Any]],
    timer: Timer,
    dense: Sequence[str] = (),
) -> dict[Case, Result]:
    """Time every sparse kernel over one index: alone, and with a selection before it; beside the dense kernels named in
    `dense`, so that a speed-up is of one pairing.

    The selection runs on random activations, so what it selects is thrown away and the given index is attended to: the same
    work as in a model, on an index that is known. indices, selects: by `Case.last`; selects is empty for no selection, as at
    decode.
    """
    functions: dict[str, Callable[[], Any]] = {}
    results: dict[Case, Result] = {}
    unselected: dict[int, Result] = {}
    for last, select in selects.items():
        try:
            select()  # compiles
            functions[_call("selection", "", last)] = select
        except Exception as error:  # the attention alone is still worth knowing
            failure = failed(error, timer.device)
            unselected[last] = replace(failure, reason=f"no total, the selection failed: {failure.reason}")
    for kernel in dense:
        with suppress(Exception):  # it ran before; where it doesn't now, the others are still to be timed
            functions[f"dense {kernel}"] = timer.ready(work.dense(kernel))
    for case in cases:
        try:
            index, no_total = indices[case.last], unselected.get(case.last)
            call = work.sparse(case.kernel, index)
            ran = work.ran(case.kernel, index)
            result = _checked(work, ran, call)
            total = call if no_total or not selects else partial(_both, selects[case.last], call)
            peak = extra_mib(total, timer.device)
            calls = {_call("attention", case.kernel, case.last): timer.ready(call)}
            if total is not call:
                calls[_call("total", case.kernel, case.last)] = timer.ready(total)
            functions |= calls
            result = replace(
                result,
                density=float(ran.density().mean()),
                flop=work.flop(ran),
                kv_bytes=work.kv_bytes(ran),
                q_block=ran.q_block,
                k_block=ran.k_block,
                peak_mib=peak,
            )
            if no_total and not result.wrong:
                result = replace(result, reason=no_total.reason, final=no_total.final)
            results[case] = replace(result, timing=timer.timing)
        except Exception as error:
            results[case] = failed(error, timer.device)
    times = timer.turns(functions) if any(r.density is not None for r in results.values()) else {}

    dense_times = {kernel: times[f"dense {kernel}"] for kernel in dense if f"dense {kernel}" in times}

    def timed(case: Case) -> dict[str, Any]:
        attention = times[_call("attention", case.kernel, case.last)]
        own = {"attention": attention}
        selection = _call("selection", "", case.last)
        if not selects:
            own = {"attention": attention, "total": attention}
        elif selection in times:
            total = times[_call("total", case.kernel, case.last)]
            own = {"selection": times[selection], "attention": attention, "total": total}
        base = own.get("total", attention)
        return {"times": {name: t.beside(base) for name, t in own.items()}, **_fastest(dense_times, base)}

    return {c: r if r.density is None else replace(r, **timed(c)) for c, r in results.items()}


def _call(what: str, kernel: str, last: int) -> str:
    """Return the name of a timed call: of a selection (no kernel), an attention, or both as one."""
    return f"{what} {kernel} last {last}"


def time_calls(functions: Mapping[Case, Callable[[], Any]], timer: Timer) -> dict[Case, Result]:
    """Time calls that are no attention: selections and block maps."""
    results, running = {}, {}
    for case, call in functions.items():
        try:
            out = call()
            density = float(out.density().mean()) if isinstance(out, SparseIndex) else None
            del out
            results[case] = Result(peak_mib=extra_mib(call, timer.device), density=density)
            running[str(case)] = call
        except Exception as error:
            results[case] = failed(error, timer.device)
    times = timer.turns(running) if running else {}
    return {c: replace(r, times={TIMES_OF_ONE: times[str(c)]}) if str(c) in times else r for c, r in results.items()}


def _both(select: Callable[[], Any], attend: Callable[[], Any]) -> None:
    select()
    attend()


def _checked(work: Work, index: BlockIndex, call: Callable[[], Any]) -> Result:
    """Make the first call, which compiles, and return how far its output is from exact attention."""
    torch.full_like(work.q, float("nan"))  # freed at once: an output that isn't written holds NaN, not the last kernel's answer
    error = work.error(index, call())
    limit = TOLERANCE[work.q.dtype]
    if error <= limit:
        return Result(error=error)
    if not isfinite(error):  # no number that a record can hold
        return Result(wrong=True, reason="the output, or its error, is not finite: wrong answer")
    return Result(error=error, wrong=True, reason=f"relative error {error:.2g} against float32, above {limit:g}: wrong answer")
