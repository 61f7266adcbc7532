"""The records of a study as its rows are made of them: by cell, by arm and in pairs with dense attention."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.core.question import QUESTION_SEEN
from harness.report.rows import Decode, DecodeSpeed, Origin, Row, Times
from harness.study import verdict
from harness.study.columns import PERPLEXITY
from harness.study.command_settings import arm_settings
from harness.study.identity import digest
from harness.study.integrity import check_study
from harness.study.store import Record, Store

SAMPLES = ("model", "model_hash", "length", "seed", "task", "generator", "data", "chat_template", "files", "question", "sizing")
"""What of a cell's identity says which samples it saw."""


@dataclass(frozen=True)
class StudyRecords:
    """What a study has recorded, read once.

    cells: the last state of every finished cell, by id. dense: the cell of dense attention, by pair. samples, documents: those
    of each cell, by index. runs: by id. timings: the last one by arm and device. masses: the last one by arm. checks: why the
    self-check of an arm failed.
    """

    study: str
    cells: Mapping[str, Record]
    dense: Mapping[str, Record]
    samples: Mapping[str, list[Record]]
    documents: Mapping[str, list[Record]]
    runs: Mapping[str, Record]
    timings: Mapping[tuple[str, str], Record]
    masses: Mapping[str, Record]
    checks: Mapping[verdict.ArmAsRun, str]

    def samples_of(self, cell: Record) -> list[Record]:
        """Return the samples of a cell, none where it failed before its first."""
        return self.samples.get(cell["cell"], [])

    def documents_of(self, cell: Record) -> list[Record]:
        """Return the documents of a cell of perplexity."""
        return self.documents.get(cell["cell"], [])

    def dense_of(self, cell: Record) -> Record | None:
        """Return the cell of dense attention on the same samples; None where there is none, or `cell` is one itself."""
        return None if verdict.is_baseline(cell) else self.dense.get(cell["pair"])

    def runs_of(self, cell: Record, measured: Sequence[Record]) -> list[Record]:
        """Return the processes that measured the samples or documents of a cell, or else the one that tried to."""
        return [self.runs[record["run"]] for record in measured] or [self.runs[cell["run"]]]


def read_study(store: Store) -> StudyRecords:
    """Read the records of a study. Raises RecordError where a line is corrupt, or where something that was finished is lost."""
    check_study(store)
    cells = verdict.finished(store.cells.read())
    documents: dict[str, list[Record]] = {}
    for record in sorted(store.perplexity.read(), key=lambda record: record["index"]):
        documents.setdefault(record["cell"], []).append(record)
    return StudyRecords(
        study=store.folder.name,
        cells=cells,
        dense={cell["pair"]: cell for cell in cells.values() if verdict.is_baseline(cell)},
        samples=store.samples_of(),
        documents=documents,
        timings={(timing["arm"], timing["device"]): timing for timing in store.latency.read()},
        masses={mass["arm"]: mass for mass in store.mass.read()},
        checks=verdict.unsound(store),
        runs={run["run"]: run for run in store.runs.read()},  # last: they are recorded before what they measure
    )


def arm_row(record: Record, study: str, origin: Origin) -> Row:
    """Return a row with what a record of a cell, timing or mass says of its arm; nothing measured is in it yet."""
    identity = record["identity"]
    return Row(
        study=study,
        arm=record["arm"],
        model=identity["model"],
        method=identity["method"],
        knobs=record["knobs"],
        sparsity=identity["sparsity"],
        length=identity["length"],
        seed=identity["seed"],
        dtype=identity["dtype"],
        block_size=identity["block_size"],
        decode=_decode(identity),
        dense_layer_kernel=identity["dense_kernel"],
        prefill_chunk=identity.get("prefill_chunk"),
        neighbour=bool(record.get("neighbour")),
        settings=tuple(arm_settings(identity)),
        origin=origin,
    )


def cell_row(cell: Record, records: StudyRecords, measured: Sequence[Record]) -> Row:
    """Return a row with what a cell says of itself, and which kernels ran for what was measured (its samples or documents);
    densities and numbers are not in it yet, except that dense attention keeps everything."""
    origin = origin_of(records.runs_of(cell, measured), date=cell["date"])
    row = replace(
        arm_row(cell, records.study, origin),
        cell=cell["cell"],
        task=cell["identity"]["task"],
        haystack=cell["haystack"],
        generator=cell["identity"]["generator"],
        samples=len(measured),
        kernels=tuple(sorted({kernel for record in measured for kernel in record["kernels"]})),
        status=cell["status"],
        reason=cell["reason"] or noticed(cell),
    )
    if cell["identity"]["kernel"] is None:
        row = replace(row, density=1.0, token_density=1.0, dense_kernel=cell["identity"]["dense_kernel"])
    return row


def noticed(*records: Record) -> str:
    """Return what records of an arm say had to be assumed of its weights, "" for nothing; older records don't say it."""
    return "; ".join(dict.fromkeys(notice for record in records for notice in record.get("notices", [])))


def _decode(identity: Mapping[str, Any]) -> Decode:
    """Return how an arm decodes; full attention has no entry in its identity."""
    decode = identity.get("decode")
    return Decode() if decode is None else Decode(decode["method"], decode["knobs"])


def samples_seen(identity: Mapping[str, Any]) -> str:
    """Return what is equal for cells that saw the same samples, whatever computed the answers."""
    return digest({name: identity.get(name) for name in SAMPLES})


def question_of(cell: Record) -> str:
    """Return when the question of a cell's prompts was asked."""
    return str(cell["identity"].get("question", QUESTION_SEEN))


def is_perplexity(cell: Record) -> bool:
    """Return whether a cell is one of perplexity, which has documents instead of samples."""
    return cell["identity"]["task"] == PERPLEXITY


def origin_of(runs: Iterable[Record], *, date: str | None = None) -> Origin:
    """Return where numbers come from: of all processes that made them, in the order of their dates. date: that of the row,
    where it isn't the last process's."""
    ordered = sorted({run["run"]: run for run in runs}.values(), key=lambda run: (str(run["date"]), str(run["run"])))

    def joined(values: Iterable[Any], between: str = "+") -> str | None:
        return between.join(dict.fromkeys(str(v) for v in values if v is not None)) or None

    def version(package: str) -> str | None:
        return joined(run["versions"].get(package) for run in ordered)

    return Origin(
        device=joined(run["device"] for run in ordered) or "",
        torch=version("torch"),
        triton=version("triton"),
        transformers=version("transformers"),
        commit=joined(run["commit"] for run in ordered),
        command=joined((run["command"] for run in ordered), "; "),
        date=date or ordered[-1]["date"],
    )


def with_times(row: Row, timing: Record | None) -> Row:
    """Return a row with the times of its arm. Its `dense_kernel` becomes the fastest dense one; the baseline's own times are of
    the kernel it ran."""
    if timing is None:
        return row
    times = Times(
        selection_ms=timing["selection_ms"],
        attention_ms=timing["attention_ms"],
        total_ms=timing["total_ms"],
        dense_ms=timing["dense_ms"],
        density=timing["density"],
        tflops=timing["tflops"],
        ttft_ms=timing["ttft_ms"],
        dense_ttft_ms=timing.get("dense_ttft_ms"),
        peak_mib=timing["peak_mib"],
        paired=bool(timing.get("paired")),
        no_attention_ttft_ms=timing.get("no_attention_ttft_ms"),
        attention_layers=timing.get("attention_layers"),
        decode=_decode_speeds(timing),
        decode_failed={int(batch): reason for batch, reason in sorted_batches(timing.get("decode_failed", {}))},
        total_low=timing["total_low"],
        total_high=timing["total_high"],
        ttft_low=timing["ttft_low"],
        ttft_high=timing["ttft_high"],
    )
    return replace(row, times=times, dense_kernel=timing["dense_kernel"], kept_mass=timing.get("kept_mass"))


def _decode_speeds(timing: Record) -> dict[int, DecodeSpeed]:
    """Return the decoding speeds of a record of times, by batch; none of one in which decoding was not timed."""
    return {
        int(batch): DecodeSpeed(
            tokens_s,
            timing["decode_tokens_s_low"][batch],
            timing["decode_tokens_s_high"][batch],
            timing["dense_decode_tokens_s"][batch],
            timing["decode_timing"][batch],
            timing["decode_peak_mib"].get(batch),
        )
        for batch, tokens_s in sorted_batches(timing.get("decode_tokens_s", {}))
    }


def sorted_batches(by_batch: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return what a record holds by batch, the smallest first."""
    return sorted(by_batch.items(), key=lambda item: int(item[0]))


def mean_mass(record: Record) -> float:
    """Return the attention mass of a record of kept mass, the mean over layers and heads."""
    return statistics.fmean(statistics.fmean(heads) for heads in record["kept"])


def mean_known(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are known; None where none is."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """Return the mean, or None where one value isn't known: older records lack it, and a mean over the others would be of
    other samples."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None
