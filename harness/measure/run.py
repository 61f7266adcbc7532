"""One command from top to bottom: load the model, build the arms, and measure each of them, dense first, on the same samples.

What is recorded already is left out at every step (`harness.study.resume`); the report is made by the job that called.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field

from rich.console import Console

from harness.arms.build import RunnableArm, build_arms, build_at_zero_sparsity, with_release
from harness.arms.warnings import arm_warnings
from harness.core.settings import Settings
from harness.measure.accuracy import SELF_CHECK_FAILED, fail, finish, open_cells, score
from harness.measure.before_loading import check_before_loading, check_choice, check_request
from harness.measure.cells import arm_label, with_distinct_name
from harness.measure.context import RunContext
from harness.measure.densities import measure_densities
from harness.measure.former_identity import as_recorded
from harness.measure.generate_batches import generate_batches, todo_of
from harness.measure.kept_mass import measure_mass
from harness.measure.knob_values import DrawnPrompt, PromptSource, TaskPrompts, calibrated_arms
from harness.measure.latency.record import time_arm
from harness.measure.perplexity import DocumentPrompts, check_options, measure_perplexity, read_texts
from harness.measure.request_checks import check_without_model
from harness.measure.self_check import check_arm, is_checked
from harness.measure.sweep import SweepCache
from harness.models.bridge import Bridge
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
    check_before_loading(settings, sweep, task_names)
    loaded = with_distinct_name(sweep.model(settings, console), store)
    check_request(settings, loaded)
    context = RunContext(settings, loaded, store, console, sweep)
    built = [as_recorded(store, arm) for arm in build_arms(settings, loaded)]
    check_choice(settings, loaded, built)
    with Bridge(loaded, None, dense_kernel=settings.dense_kernel):
        pass  # a model whose attention can't be changed stops here, not in every cell
    if settings.job == "perplexity":
        context.say("reading documents")
    texts = read_texts(context, settings.options) if settings.job == "perplexity" else None
    source: PromptSource = TaskPrompts(task_names) if texts is None else DocumentPrompts(texts)
    source = DrawnPrompt() if loaded.shape is not None else source
    arms = [arm for unset in built for arm in calibrated_arms(context, settings, unset, source)]
    for warning in dict.fromkeys(line for arm in arms for line in arm_warnings(arm, settings.model, loaded)):
        context.complain(warning)

    waited: list[str] = []

    def waits() -> None:
        if not waited:
            context.say("waiting for another process, which measures dense attention for this study")
        waited.append("once")

    done = Done({arm.identity.id for arm in arms})
    for arm in arms:
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
        if timed and (settings.job == "latency" or (settings.job == "evaluate" and settings.latency)):
            with one_at_a_time(store.folder, f"dense-{arm.identity.id}", waits) if arm.baseline else nullcontext():
                done.failed += time_arm(context, arm, task_names)
    return done


def evaluate(context: RunContext, settings: Settings, arm: RunnableArm, task_names: Sequence[str]) -> int:
    """Check an arm, and generate, score and record the samples that its cells lack. Returns how many of the cells failed."""
    began, generating = time.perf_counter(), 0.0
    cells, failed = open_cells(context, arm, task_names)
    if not cells:
        return failed
    with Attempt() as checking:
        if settings.checks and not is_checked(context, arm):
            check_arm(
                context, arm, task_names, zero=None if arm.method is None else build_at_zero_sparsity(settings, context.loaded)
            )
    if checking.error is not None:  # the next run of the same command tries again
        return failed + sum(fail(context, arm, open_cell.cell, checking.error, SELF_CHECK_FAILED) for open_cell in cells)
    todo = todo_of(context, [(open_cell.cell, sample) for open_cell in cells for sample in open_cell.samples])
    errors: dict[str, Exception] = {}
    with context.progress() as progress:
        bar = progress.add_task(f"{arm_label(arm)} {context.length}", total=len(todo.pairs))
        for batch in generate_batches(context, arm, todo):
            generating += batch.seconds
            records = []
            if batch.error is not None:
                errors.setdefault(batch.failed_cell, batch.error)
            for answer in batch.answers:
                with Attempt() as scoring:
                    records.append(score(context, answer))
                if scoring.error is not None:
                    errors.setdefault(answer.cell.id, scoring.error)
            context.store.samples.append_all(records)
            progress.advance(bar, len(records))
    share = generating / (time.perf_counter() - began) if todo.pairs else None
    failed += sum(fail(context, arm, c.cell, errors[c.cell.id]) for c in cells if c.cell.id in errors)
    finish(context, arm, [c for c in cells if c.cell.id not in errors], share)
    return failed
