"""The accuracy of an arm: which samples its cells lack, scoring what was generated for them, and the cells' verdicts.

`harness.measure.run.evaluate` puts these steps in their order. Samples are recorded as soon as those they were decoded with are
done, so a kill at any moment loses one batch at most; an error costs the cell it happens in and is recorded with its reason.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass

from harness.arms.build import RunnableArm
from harness.core.errors import NotFiniteError
from harness.core.sizing import FULL
from harness.measure.cells import arm_label, at_length, is_passed_over, record_failure, record_state
from harness.measure.context import RunContext
from harness.measure.generate_batches import Answer
from harness.study import verdict
from harness.study.failures import failures_of
from harness.study.identity import Cell, Samples
from harness.study.provenance import now
from harness.study.resume import Attempt, is_settled, missing_indices
from harness.study.schema import SampleRecord, Status
from harness.study.store import Record
from harness.tasks import registry
from harness.tasks.sample import Sample

SELF_CHECK_FAILED = f"{verdict.SELF_CHECK}it could not run: "
"""The beginning of a cell's reason where its arm could not be checked: what can't be checked isn't run."""


@dataclass(frozen=True)
class OpenCell:
    """A cell that lacks samples, or a verdict on those it has. haystack: what rows call its text; samples: those to run."""

    cell: Cell
    haystack: str
    samples: list[Sample]


def open_cells(context: RunContext, arm: RunnableArm, task_names: Sequence[str]) -> tuple[list[OpenCell], int]:
    """Return the cells of an arm that are not settled, recorded as begun, and how many others failed already: a task that can't
    make its samples costs its cell, not the sweep. What failed before is among them as `harness.study.failures` has it."""
    samples_of, states = context.store.samples_of(), context.store.latest_cells()
    failures = failures_of(context.store.cells.read())
    checks = {record["check"] for record in context.store.checks.read()}
    unfinished: list[OpenCell] = []
    failed = 0
    for name in task_names:
        cell = cell_of(context, arm, name)
        if (told := is_passed_over(context, arm, cell, failures.get(cell.id))) is not None:
            failed += told
            continue
        recorded_indices = {record["index"] for record in samples_of.get(cell.id, [])}
        with Attempt() as attempt:
            lacking = missing_indices(recorded_indices, registry.get(name).count(context.sample_count, context.data))
            if not lacking and _has_verdict(states.get(cell.id), checks):
                continue
            samples = context.samples(name)
            context.contexts([samples[index] for index in lacking])
        if attempt.error is not None:
            failed += fail(context, arm, cell, attempt.error)
            continue
        haystack = samples[0].haystack
        record_state(context, arm, cell, Status.RUNNING, haystack=haystack)
        unfinished.append(OpenCell(cell, haystack, [samples[index] for index in lacking]))
    return unfinished, failed


def _has_verdict(state: Record | None, checks: Set[str]) -> bool:
    """Return whether a cell with all its samples needs nothing more. One that the arm's self-check gated is asked again: the
    check is made anew for another commit, device or version. So is one whose check is lost: not among those recorded, by id."""
    if state is None or not is_settled(state) or state.get("summary", {}).get("check") not in (None, *checks):
        return False
    return state["status"] == Status.OK or not str(state["reason"]).startswith(verdict.SELF_CHECK)


def cell_of(context: RunContext, arm: RunnableArm, task_name: str) -> Cell:
    """Return the cell of an arm on a task."""
    version, text, files = registry.get(task_name).version(context.chat), context.text_of([task_name]), context.files(task_name)
    sizing = str(context.data.get("sizing") or FULL)
    return Cell(arm.identity, Samples(task_name, version, text, context.chat, files, context.question, sizing))


def score(context: RunContext, answer: Answer) -> SampleRecord:
    """Score an answer by its task's metric, and gate it where its prompt is unsound. Raises NotFiniteError where the model's
    numbers, or the score, are none."""
    sample, cell, tokenizer = answer.sample, answer.cell, context.loaded.tokenizer
    task = registry.get(sample.task)
    prediction = tokenizer.decode(answer.generation.ids, skip_special_tokens=True)
    reason = context.problem(sample, answer.prompt)
    if not answer.generation.finite:
        raise NotFiniteError("logits are NaN or infinite: a kernel, the dtype or the weights are at fault")
    value = task.score(prediction, sample)
    if not math.isfinite(value):
        raise NotFiniteError(f"the score of {sample.task} is {value}: its metric is at fault")
    return SampleRecord(
        cell=cell.id,
        run=context.run.run,
        index=sample.index,
        prediction=prediction,
        answers=[] if task.fixed or cell.samples.files else list(sample.answers),
        score=value,
        tokens=sample.tokens,
        prefill_s=answer.generation.prefill_s,
        density=answer.density,
        status=Status.GATED if reason else Status.OK,
        reason=reason or "",
        date=now(),
        kernels=answer.kernels,
        decode_kernels=answer.decode_kernels,
        decode_density=answer.decode_density,
        token_density=answer.token_density,
        cut=sample.cut,
        context=answer.context_tokens,
    )


def append_samples(context: RunContext, records: Sequence[SampleRecord], errors: dict[str, list[Exception]]) -> Counter[str]:
    """Record samples, all at once, and return how many of each cell. One that no reader would take is among the `errors` of its
    cell; where nothing can be written, RecordError passes."""
    with Attempt() as together:
        context.store.samples.append_all(records)
    if together.error is None:
        return Counter(record.cell for record in records)
    counts = Counter[str]()
    for record in records:
        with Attempt() as alone:
            context.store.samples.append(record)
            counts[record.cell] += 1
        if alone.error is not None:
            errors.setdefault(record.cell, []).append(alone.error)
    return counts


def note_unpaired(context: RunContext, arms: Sequence[RunnableArm], task_names: Sequence[str]) -> None:
    """Note the cells of these arms that have nothing to be compared with, as dense attention failed on their samples. The
    baseline is the first of the arms."""
    failed = failures_of(context.store.cells.read())
    if not failed:
        return
    for name in task_names:
        with Attempt():  # a task whose data is not there has no cell to speak of
            if cell_of(context, arms[0], name).id not in failed:
                continue
            for arm in arms[1:]:
                if (cell := cell_of(context, arm, name)).id not in failed:
                    context.failures.unpaired[cell.id] = f"{at_length(arm)} ({name})"


def fail(
    context: RunContext, arm: RunnableArm, cell: Cell, error: Exception, where: str = "", *, finished: int = 0, lacks: str = ""
) -> int:
    """Record a cell as failed and go on; returns 1, the count of it. The rest is as in `record_failure`."""
    label = f"{arm_label(arm)}, {cell.samples.task}"
    return record_failure(context, arm, cell, error, label=label, where=where, finished=finished, lacks=lacks)


def finish(context: RunContext, arm: RunnableArm, cells: Sequence[OpenCell], model_share: float | None) -> None:
    """Record the verdicts of cells and their numbers from all their samples.

    model_share: of this process's time with the arm's cells, what was spent generating; the rest is making and checking
    samples, the self-check, scoring and recording. None where nothing was generated.
    """
    samples_of, states = context.store.samples_of(), context.store.latest_cells()
    arm_as_run = arm.identity.id, context.chat, context.question
    unsound, check = verdict.unsound(context.store).get(arm_as_run, ""), verdict.check_of(context.store, arm_as_run)
    for open_cell in cells:
        cell, samples = open_cell.cell, samples_of[open_cell.cell.id]
        baselines = [state for state in states.values() if state["pair"] == cell.pair and verdict.is_baseline(state)]
        dense = samples_of.get(baselines[0]["cell"]) if baselines and not arm.baseline else None
        score = verdict.accuracy(samples, dense, context.seed)
        status, reason = verdict.verdict(samples, score, unsound)
        densities = [record["density"] for record in samples if record["density"] is not None]
        summary = score.as_dict() | {
            "samples": len(samples),
            "density": statistics.fmean(densities) if densities else None,
            "model_share": model_share,
            "prefill_s": statistics.median(record["prefill_s"] for record in samples),
            **check,
        }
        record_state(context, arm, cell, status, reason, haystack=open_cell.haystack, summary=summary)
