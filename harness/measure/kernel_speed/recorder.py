"""The records of a study of kernels: which cases have been timed, and writing down those that are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from attention_kernels.block_sparse import full_row_kernel
from rich.console import Console
from rich.text import Text

from harness.core.settings import Settings
from harness.measure.kernel_speed.cases import SPARSE, TRAINING, Case, Grid
from harness.measure.kernel_speed.indices import of_model
from harness.measure.kernel_speed.method_selection import DRAWN, draws_weights
from harness.measure.kernel_speed.options import dtype_name
from harness.measure.kernel_speed.timing import Result
from harness.study.identity import digest
from harness.study.provenance import commit, device_name, now, run_record, versions
from harness.study.resume import is_settled
from harness.study.schema import RunRecord, Status
from harness.study.store import Record, Store
from harness.study.timing_schema import KernelRecord
from harness.tasks.haystack import haystack_source, load_haystack

ORIGIN = ("torch", "triton", "fa3-fwd", "flash-attn-4", "flash-attn")
"""The packages whose version makes a case another one."""


class Recorder:
    """The records of one command's cases. about: what indices of a model depend on, once it is loaded."""

    def __init__(self, settings: Settings, grid: Grid, store: Store, console: Console) -> None:
        self.settings, self.grid, self.store, self.console = settings, grid, store, console
        self.device = device_name(settings.device)
        self.about: dict[str, Any] = {}
        self._origin = [commit(), *(versions().get(name) for name in ORIGIN)]
        self._said: set[str] = set()

    @cached_property
    def run(self) -> RunRecord:
        """Return the record of this process; it is written when the first result needs it."""
        record = run_record(self.settings.device)
        self.store.runs.append(record)
        return record

    def id(self, case: Case) -> str:
        """Return the case's id, equal where the numbers must be."""
        limits = [self.settings.latency_repeats, self.settings.latency_seconds]
        return digest({**self.as_dict(case), "device": self.device, "limits": limits, "origin": self._origin})

    def as_dict(self, case: Case) -> dict[str, Any]:
        """Return what is timed, on which shape, dtype and seed, and which text a model selects on."""
        shape = asdict(self.grid.shape)
        identity = {**case.as_dict(), "phase": self.grid.phase, "shape": shape.pop("name"), **shape}
        if _of_model(case):
            text = load_haystack(haystack_source(self.settings.data)).name
            identity["source"] = {"model": str(self.settings.model["name"]), "haystack": text}
        return {**identity, "dtype": dtype_name(self.settings.dtype), "seed": self.settings.seed}

    def missing(self, cases: Sequence[Case]) -> list[Case]:
        """Return the cases without a result, or that failed in a way that may pass."""
        states = self._states()
        return [case for case in cases if not is_settled(states.get(self.id(case)))]

    def write(self, results: Mapping[Case, Result], fastest: tuple[float, str] | None) -> None:
        """Record results beside the fastest dense kernel of their rounds, else of this length (`fastest`: milliseconds, name).
        A failure that is known already is not written again."""
        states = self._states()
        records = []
        for case, result in results.items():
            status = Status.OK if not result.reason else Status.GATED if result.wrong else Status.FAILED
            if result.reason:
                self._complain(case, result)
            state = states.get(self.id(case))
            if status != Status.FAILED or state is None or state["reason"] != result.reason:
                records.append(self._record(case, result, status, fastest))
        self.store.kernels.append_all(records)

    def _record(self, case: Case, result: Result, status: str, fastest: tuple[float, str] | None) -> KernelRecord:
        about = dict(self.about) if _of_model(case) else {}
        if case.selection and draws_weights(case.selection):
            about["selection"] = DRAWN
        if case.last and result.density is not None:
            about["full_rows"] = self._full_row_kernel(case)
        paired = result.dense_ms is not None
        return KernelRecord(
            case=self.id(case),
            run=self.run.run,
            identity=self.as_dict(case),
            device=self.device,
            status=status,
            reason=result.reason,
            date=now(),
            density=result.density,
            flop=result.flop,
            kv_bytes=result.kv_bytes,
            times={name: [t.median, t.low, t.high, float(t.repeats)] for name, t in result.times.items()},
            error=result.error,
            dense_ms=fastest[0] if fastest and not paired else result.dense_ms,
            dense_kernel=fastest[1] if fastest and not paired else result.dense_kernel,
            paired=paired,
            peak_mib=result.peak_mib,
            timing=result.timing,
            about=about,
            final=result.final,
            traceback=result.traceback,
            q_block=result.q_block,
            k_block=result.k_block,
        )

    def _full_row_kernel(self, case: Case) -> str:
        """Return the dense kernel that full rows run on beside the case's kernel; a kernel computes its own in training."""
        if self.grid.phase == TRAINING:
            return case.kernel
        site = {"device": self.settings.device, "dtype": self.settings.dtype, "head_dim": self.grid.shape.head_dim}
        return full_row_kernel(case.kernel, **site)

    def _states(self) -> dict[str, Record]:
        """Return the last state of every case, by its id."""
        return {record["case"]: record for record in self.store.kernels.read()}

    def _complain(self, case: Case, result: Result) -> None:
        """Say what went wrong, the same once only."""
        how = "refused" if result.final else "failed"
        text = f"{how}: {case.kernel or case.method}: {result.reason}"
        if text not in self._said:
            self._said.add(text)
            style = "dim" if result.final else "red"
            self.console.print(f"{text} ({title(case)})", style=style, markup=False, highlight=False, soft_wrap=True)
            if result.traceback and self.settings.debug:
                self.console.print(Text(result.traceback), soft_wrap=True)


def title(case: Case) -> str:
    """Return a case's turn in a few words: "32,768 tokens, block 64, sparsity 0.9, random"."""
    batch = f"batch {case.batch}" if case.batch > 1 else ""
    block = f"block {case.block}" if case.block else ""
    sparsity = f"sparsity {case.sparsity:g}" if case.sparsity is not None else ""
    operation = case.index if case.op == SPARSE else case.op
    return ", ".join(part for part in (f"{case.length:,} tokens", batch, block, sparsity, operation) if part)


def _of_model(case: Case) -> bool:
    """Return whether the case's index is one that a model selects."""
    return case.op == SPARSE and of_model(case.index)
