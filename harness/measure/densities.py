"""The density of an arm on the prompts that it would be asked, by task and layer: prefills alone, no answer is generated."""

from __future__ import annotations

import time
from functools import partial

from harness.arms.build import RunnableArm
from harness.arms.calibration import densities_of
from harness.core.device_memory import release_frames
from harness.core.time_limit import time_limit
from harness.measure.cells import note_failure
from harness.measure.context import RunContext
from harness.measure.knob_values import PromptSource, by_task
from harness.study.identity import digest
from harness.study.matching import match_of
from harness.study.provenance import now
from harness.study.resume import Attempt, recorded
from harness.study.schema import DensityRecord
from harness.study.store import Record


def measure_densities(context: RunContext, arm: RunnableArm, source: PromptSource) -> int:
    """Record the density of an arm on the prompts of the source, once for their number, and say it. Returns 1 where that
    failed, else 0. Dense attention at prefill keeps everything: it has no record."""
    if arm.method is None:
        return 0
    identity = {**arm.identity.prefill().as_dict(), **source.identity(context), "samples": context.sample_count}
    key = digest(identity)
    record = recorded(context.store.arm_densities, key)
    if record is None and key in context.failures.failed:
        return 0
    if record is None:
        label = f"densities of {arm.identity.method}"
        context.say(f"{label} at {context.length} tokens")
        with Attempt() as attempt, time_limit(context.cell_seconds):
            prompts = source.prompts(context)
            with context.progress() as progress:
                bar = progress.add_task(label, total=sum(map(len, prompts.values())))
                began, kernels = time.perf_counter(), context.kernels
                reached = densities_of(
                    context.loaded,
                    arm.method,
                    prompts,
                    on_prefill=partial(progress.advance, bar),
                    sparse_kernel=kernels.sparse,
                    dense_kernel=kernels.dense,
                    chunk=context.chunk,
                )
                seconds = time.perf_counter() - began
        if attempt.error is not None:
            release_frames(attempt.error, context.loaded.device)
            return note_failure(context, key, arm, "densities", attempt.error, label=label)
        context.store.arm_densities.append(
            DensityRecord(
                arm_densities=key,
                arm=arm.identity.id,
                run=context.run.run,
                identity=identity,
                knobs=arm.identity.knobs,
                density=reached.density,
                tasks=reached.tasks,
                layers=reached.layers,
                prompts=sum(map(len, prompts.values())),
                seconds=seconds,
                date=now(),
                neighbour=arm.neighbour,
            )
        )
        record = recorded(context.store.arm_densities, key)
        assert record is not None
    for line in (_line(arm, record), *by_task(record["tasks"])):
        context.console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def _line(arm: RunnableArm, record: Record) -> str:
    """Return what an arm reached over all tasks, in one line."""
    sparsity = arm.identity.sparsity
    match = match_of(sparsity, record["density"], neighbour=arm.neighbour)
    asked = "" if sparsity is None else f" for {1 - sparsity:.4g} ({match})"
    where = f"{record['prompts']} prompts of {arm.identity.setting.length} tokens"
    return f"{arm.identity.method}: density {record['density']:.4f}{asked} on {where}"
