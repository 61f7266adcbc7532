"""One command from top to bottom: load the model, build the arms, and measure each of them, dense first, on the same samples.

What is recorded already is left out at every step (`harness.study.resume`); the report is made by the job that called.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field

from rich.console import Console

from harness.arms.build import RunnableArm, build_arms, build_at_zero_sparsity, refused_arm, with_release
from harness.arms.warnings import arm_warnings
from harness.core.activity import CURRENT
from harness.core.device_memory import release_frames
from harness.core.errors import NotFiniteError, WeightsError
from harness.core.settings import Settings
from harness.core.time_limit import time_limit
from harness.measure.accuracy import SELF_CHECK_FAILED, append_samples, cell_of, fail, finish, note_unpaired, open_cells, score
from harness.measure.before_loading import check_before_loading, check_choice, check_request
from harness.measure.cells import arm_label, in_a_line, note_failure, with_distinct_name
from harness.measure.context import RunContext
from harness.measure.densities import measure_densities
from harness.measure.former_identity import as_recorded
from harness.measure.generate_batches import generate_batches, todo_of
from harness.measure.kept_mass import measure_mass
from harness.measure.knob_values import DrawnPrompt, PromptSource, SearchError, TaskPrompts, calibrated_arms
from harness.measure.latency.record import time_arm
from harness.measure.perplexity import DocumentPrompts, check_options, measure_perplexity, read_texts
from harness.measure.request_checks import check_without_model
from harness.measure.self_check import check_arm, is_checked
from harness.measure.sweep import SweepCache
from harness.models.bridge import Bridge
from harness.study.failures import failures_of
from harness.study.one_at_a_time import one_at_a_time
from harness.study.resume import Attempt
from harness.study.store import Store
from harness.tasks.names import expand_tasks


@dataclass
class Done:
    """What a command did: the ids of its arms and how many cells failed."""

    arms: set[str] = field(default_factory=set)
    failed: int = 0


def measure(settings: Settings, store: Store, console: Console, sweep: SweepCache | None = None) -> Done:
    """Measure what the settings ask for and the records of `store` don't have yet.

    sweep: what the jobs of one command share, among it the model; without it, the model is loaded for this job alone.
    Raises UserError for bad input.
    """
    sweep, task_names = sweep or SweepCache(), [] if settings.by_shape else expand_tasks(settings.tasks)
    check_without_model(settings, [] if settings.job == "perplexity" else task_names)
    settings = with_release(settings)
    if settings.job == "perplexity":
        check_options(settings.options)
    try:
        check_before_loading(settings, sweep, task_names)
        loaded = with_distinct_name(sweep.model(settings, console), store)
        check_request(settings, loaded)
        built = [as_recorded(store, arm) for arm in build_arms(settings, loaded)]
    except WeightsError as error:
        if not sweep.failures.sweeps:  # whoever waits for one arm alone is told before a model is loaded
            raise
        loaded = with_distinct_name(sweep.model(settings, console), store)
        context = RunContext(settings, loaded, store, console, sweep)
        return give_up(context, settings, refused_arm(settings, loaded), task_names, error, "weights_hash")
    context = RunContext(settings, loaded, store, console, sweep)
    check_choice(settings, loaded, built)
    with Bridge(loaded, None, dense_kernel=settings.dense_kernel):
        pass  # a model whose attention can't be changed stops here, not in every cell
    if settings.job == "perplexity":
        context.say("reading documents")
    texts = read_texts(context, settings.options) if settings.job == "perplexity" else None
    source: PromptSource = TaskPrompts(task_names) if texts is None else DocumentPrompts(texts)
    source = DrawnPrompt() if loaded.shape is not None else source
    arms, given_up = list[RunnableArm](), 0
    for unset in built:
        try:
            arms += calibrated_arms(context, settings, unset, source)
        except SearchError as error:
            given_up += give_up(context, settings, unset, task_names, error.reason, error.knob).failed
    for warning in dict.fromkeys(line for arm in arms for line in arm_warnings(arm, settings.model, loaded)):
        context.complain(warning)

    waited: list[str] = []

    def waits() -> None:
        if not waited:
            context.say("waiting for another process, which measures dense attention for this study")
        waited.append("once")

    done = Done({arm.identity.id for arm in arms}, given_up)
    for arm in arms:
        if sweep.failures.lost:
            break
        with ExitStack() as dense:
            if arm.baseline:  # other processes on this study compare with the same dense rows, those of other tasks with others
                for name in sorted(set(task_names)) or ["all"]:
                    dense.enter_context(one_at_a_time(store.folder, f"dense-{arm.identity.id}-{name}", waits))
            if texts is not None:
                done.failed += measure_perplexity(context, arm, texts)
            elif settings.job == "kept_mass":
                done.failed += measure_mass(context, arm, task_names)
            elif settings.job == "densities":
                done.failed += measure_densities(context, arm, source)
            elif settings.job == "evaluate":
                done.failed += evaluate(context, settings, arm, task_names)
        # dense prefill is timed with the baseline, on one prompt, whatever the tasks
        timed = arm.method is not None or arm.baseline or context.timing.decode_batches
        if (timed and not sweep.failures.lost) and (
            settings.job == "latency" or (settings.job == "evaluate" and settings.latency)
        ):
            with one_at_a_time(store.folder, f"dense-{arm.identity.id}", waits) if arm.baseline else nullcontext():
                done.failed += time_arm(context, arm, task_names)
    if settings.job == "evaluate":
        note_unpaired(context, arms, task_names)
    return done


def give_up(
    context: RunContext, settings: Settings, arm: RunnableArm, task_names: Sequence[str], error: Exception, lacks: str
) -> Done:
    """Record the cells of an arm that could not be built as failed; of a job without cells it is only said. lacks: the part of
    its identity that is not known for that."""
    done, told = Done({arm.identity.id}), context.failures.failed
    if settings.job != "evaluate" and arm.identity.id not in told:
        label = f"{settings.job} of {arm_label(arm)}"
        done.failed += note_failure(context, arm.identity.id, arm, settings.job, error, label=label)
    failures = failures_of(context.store.cells.read())
    for cell in [cell_of(context, arm, name) for name in task_names] if settings.job == "evaluate" else []:
        if cell.id in told:
            continue
        if cell.id in failures and failures[cell.id][-1]["reason"] == in_a_line(context, error):  # nothing new to record
            done.failed += note_failure(context, cell.id, arm, cell.samples.task, error, label=arm_label(arm))
        else:
            done.failed += fail(context, arm, cell, error, lacks=lacks)
    return done


def evaluate(context: RunContext, settings: Settings, arm: RunnableArm, task_names: Sequence[str]) -> int:
    """Check an arm, and generate, score and record the samples that its cells lack. Returns how many of the cells failed."""
    began, generating = time.perf_counter(), 0.0
    cells, failed = open_cells(context, arm, task_names)
    if not cells:
        return failed
    lacking = {open_cell.cell.id: len(open_cell.samples) for open_cell in cells}
    CURRENT.open_cells(context.length, lacking)  # while they are checked, too
    with Attempt() as checking, time_limit(context.cell_seconds):
        if settings.checks and not is_checked(context, arm):
            zero = None if arm.method is None else build_at_zero_sparsity(settings, context.loaded)
            asked = [settings.method, settings.method_knobs, settings.block_size, settings.as_released]
            check_arm(context, arm, task_names, zero=zero, asked=asked)
    if checking.error is not None:  # the next run of the same command tries again
        release_frames(checking.error, context.loaded.device)
        CURRENT.close_cells()
        return failed + sum(fail(context, arm, open_cell.cell, checking.error, SELF_CHECK_FAILED) for open_cell in cells)
    todo = todo_of(context, [(open_cell.cell, sample) for open_cell in cells for sample in open_cell.samples])
    errors, finished = defaultdict[str, list[Exception]](list), Counter[str]()
    with context.progress() as progress:
        bar = progress.add_task(f"{arm_label(arm)} {context.length}", total=len(todo.pairs))
        CURRENT.open_cells(context.length, lacking)
        CURRENT.task = todo.pairs[0][1].task if todo.pairs else ""
        for batch in generate_batches(context, arm, todo):
            generating += batch.seconds
            for cell in batch.failed_cells:
                errors[cell] += [batch.error] if batch.error is not None else []
            records = []
            for answer in batch.answers:
                with Attempt() as scoring:
                    records.append(score(context, answer))
                if scoring.error is not None:
                    errors[answer.cell.id].append(scoring.error)
            finished.update(append_samples(context, records, errors))
            progress.advance(bar, len(records))
            CURRENT.count(record.cell for record in records)
            CURRENT.task = todo.pairs[min(CURRENT.done, len(todo.pairs) - 1)][1].task
    CURRENT.close_cells()
    share = generating / (time.perf_counter() - began) if todo.pairs else None
    for c in cells:
        if told := errors.get(c.cell.id):
            where = f"{len(told)} of {len(c.samples)} samples: " if isinstance(told[0], NotFiniteError) else ""
            failed += fail(context, arm, c.cell, told[0], where, finished=finished[c.cell.id])
    whole = [c for c in cells if c.cell.id not in errors and finished[c.cell.id] == len(c.samples)]  # not where all ended early
    finish(context, arm, whole, share)
    return failed
