"""All rows of a leaderboard, made from the records of a study alone, whole, every time.

One row a cell; one row with `task=avg` per arm (mean over its tasks, each weighing the same); one row without accuracy
for an arm that was only timed, or of which only the attention mass was measured. The row a method shares with dense is
paired: same samples, same setting. Averages of different sets of tasks don't compare: `harness.report.common_tasks` brings
them to one set.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

from harness.core.question import QUESTION_LATER, QUESTION_SEEN
from harness.report import significance
from harness.report.averages import average_row, latest_prompts
from harness.report.density_match import with_matches
from harness.report.perplexity_rows import perplexity_rows
from harness.report.row_texts import decode_text, knobs_text
from harness.report.rows import Answer, Row
from harness.report.study_records import (
    StudyRecords,
    arm_row,
    cell_row,
    is_perplexity,
    mean_known,
    mean_mass,
    mean_of_all,
    noticed,
    origin_of,
    question_of,
    read_study,
    samples_seen,
    with_times,
)
from harness.study import verdict
from harness.study.columns import AVERAGE
from harness.study.command_settings import prompt_settings, sample_settings, timed_decoding
from harness.study.full_rows import full_rows
from harness.study.identity import digest
from harness.study.schema import Status
from harness.study.store import Record, Store


def leaderboard_rows(store: Store, margin: float = significance.MARGIN) -> list[Row]:
    """Return all rows of a study, sorted by model, length, method (dense first), sparsity, seed and task.

    margin: the accuracy that a method may lose and still be called non-inferior to dense. Raises RecordError for corrupt
    records.
    """
    return rows_of(read_study(store), margin)


def rows_of(records: StudyRecords, margin: float = significance.MARGIN) -> list[Row]:
    """Return all rows of what was read of a study, sorted as `leaderboard_rows` has them. Of some of its lengths or models they
    are the same as among all: nothing is compared across those."""
    rows = [*_accuracy_rows(records), *perplexity_rows(records), *_rows_without_cells(records)]
    rows = significance.judge(with_matches([_with_mass(row, records) for row in rows]), margin)
    baselines = {row.method for row in rows if row.is_baseline}
    return sorted(rows, key=lambda row: _order(row, baselines))


def _order(row: Row, baselines: set[str]) -> tuple[Any, ...]:
    decode = decode_text(row.decode)
    return (
        row.model,
        row.length,
        row.question not in ("", QUESTION_SEEN),
        row.question,
        row.method not in baselines,
        row.method,
        row.sparsity or 0.0,
        row.block_size or 0,
        knobs_text(row.knobs),
        not row.is_baseline,
        decode.split(" ")[0],
        row.decode_density or 0.0,
        decode,
        row.prefill_chunk or 0,
        row.seed,
        row.device,
        row.task == AVERAGE,
        row.task,
    )


def _accuracy_rows(records: StudyRecords) -> list[Row]:
    """Return the rows of single tasks, and after all of them the averages."""
    arms: dict[str, list[tuple[Record, Row]]] = defaultdict(list)
    rows = []
    for cell in records.cells.values():
        if is_perplexity(cell):
            continue
        identity = cell["identity"]
        group = digest([*verdict.arm_as_run(cell), identity["data"], *filter(None, [identity.get("sizing")])])
        arms[group].append((cell, replace(_task_row(cell, records), group=group)))
    for group, members in arms.items():
        arms[group], earlier = latest_prompts(members)
        rows += [*(row for _, row in arms[group]), *earlier]
    averages = [
        (average_row(group, members, records), significance.scores_of(records.samples, [cell for cell, _ in members]))
        for group, members in arms.items()
    ]
    return rows + significance.gate_rising(averages)


def _task_row(cell: Record, records: StudyRecords) -> Row:
    """Return the row of one cell."""
    samples = records.samples_of(cell)
    row = cell_row(cell, records, samples)
    decode_kernels = tuple(sorted({kernel for sample in samples for kernel in sample.get("decode_kernels", [])}))
    row = replace(
        row,
        question=question_of(cell),
        settings=(*row.settings, *sample_settings(cell["identity"], [row.task], len(samples))),
        decode=replace(row.decode, kernels=decode_kernels),
        decode_density=mean_known(sample.get("decode_density") for sample in samples),
        truncated=sum(sample.get("cut", 0) > 0 for sample in samples),
        samples_seen=samples_seen(cell["identity"]),
        answers={sample["index"]: _answer(sample) for sample in samples},
    )
    if cell["identity"]["kernel"] is not None:
        row = replace(
            row,
            full_rows=full_rows(cell["identity"], (_prefilled(sample, row.question) for sample in samples)),
            density=mean_known(sample["density"] for sample in samples),
            token_density=mean_of_all([sample.get("token_density") for sample in samples]),
        )
    if cell["status"] != Status.FAILED and samples:
        dense = records.dense_of(cell)
        score = verdict.accuracy(samples, None if dense is None else records.samples_of(dense), cell["identity"]["seed"])
        status, reason = verdict.verdict(samples, score, records.checks.get(verdict.arm_as_run(cell), ""))
        row = replace(row, score=score, status=status, reason=reason or noticed(cell))
    return with_times(row, records.timings.get((row.arm, row.device)))


def _answer(sample: Record) -> Answer:
    """Return the score of a sample and its densities."""
    return Answer(sample["score"], sample["density"], sample.get("token_density"), sample.get("decode_density"))


def _prefilled(sample: Record, question: str) -> int:
    """Return the tokens that a method prefilled of a sample's prompt: the context alone where the question came later."""
    context = sample.get("context") if question == QUESTION_LATER else None
    return sample["tokens"] if context is None else context


def _rows_without_cells(records: StudyRecords) -> list[Row]:
    """Return a row for each arm that was only timed, and for each of which only the attention mass was measured."""
    with_cells = {cell["arm"] for cell in records.cells.values()}
    timed = {arm for arm, _ in records.timings}
    timings = [_timing_row(timing, records) for (arm, _), timing in records.timings.items() if arm not in with_cells]
    masses = [mass_row(mass, records) for arm, mass in records.masses.items() if arm not in with_cells | timed]
    return timings + masses


def _timing_row(timing: Record, records: StudyRecords) -> Row:
    row = arm_row(timing, records.study, origin_of([records.runs[timing["run"]]], date=timing["date"]))
    density, token_density = _timed_densities(timing)
    row = replace(
        row,
        settings=("job=latency", *timed_decoding(timing), *row.settings),
        density=density,
        token_density=token_density,
        full_rows=full_rows(timing["identity"], [timing["tokens"]]),
        kernels=tuple(timing["kernel"].split("+")),
        decode=replace(row.decode, kernels=tuple(timing.get("decode_kernels", []))),
        decode_density=timing.get("decode_density"),
        reason=noticed(timing),
    )
    return with_times(row, timing)


def _timed_densities(timing: Record) -> tuple[float, float | None]:
    """Return density and token density of the prefill that was timed, as an accuracy has those of its prefills; of an older
    record those of the layers' calls, on what dense attention made of the layers before."""
    if timing.get("prefill_density") is None:
        return timing["density"], timing.get("token_density")
    return timing["prefill_density"], timing["prefill_token_density"]


def mass_row(mass: Record, records: StudyRecords) -> Row:
    """Return the row of an arm of which nothing but the attention mass is known."""
    origin = origin_of([records.runs[mass["run"]]], date=mass["date"])
    row = arm_row(mass, records.study, origin)
    return replace(
        row,
        density=mean_known(mass["density"]),
        kept_mass=mean_mass(mass),
        settings=("job=kept_mass", *row.settings, *prompt_settings(mass["identity"], mass["prompts"])),
        full_rows=full_rows(mass["identity"], {math.floor(mass["tokens"]), math.ceil(mass["tokens"])}),
        reason=noticed(mass),
    )


def _with_mass(row: Row, records: StudyRecords) -> Row:
    """Return a row with the attention mass that its arm keeps, where that was measured: on more prompts than the one that was
    timed."""
    mass = records.masses.get(row.arm)
    return row if mass is None else replace(row, kept_mass=mean_mass(mass))
