"""The times of an arm: attention, prefill and decoding beside dense, once for each device, commit, torch and limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.arms.build import RunnableArm
from harness.core.device_memory import release_frames
from harness.core.time_limit import time_limit
from harness.measure.cells import arm_label, note_failure
from harness.measure.context import RunContext
from harness.measure.latency import AttentionTiming, DecodeTiming, PrefillTiming, time_attention, time_decoding, time_prefill
from harness.measure.latency.attention import spread_layers
from harness.study.identity import digest
from harness.study.provenance import commit, device_name, now, versions
from harness.study.resume import Attempt, recorded
from harness.study.timing_schema import LatencyRecord


def time_arm(context: RunContext, arm: RunnableArm, task_names: Sequence[str]) -> int:
    """Time attention and prefill of an arm beside dense, and its decoding where that is asked for, on the prompt that
    `RunContext.first_prompt` picks: once for each device, commit, torch and limits of the timing. Returns 1 where that failed,
    else 0; a batch that can't be decoded is no failure, and recorded."""
    identity, device = arm.identity.as_dict(), device_name(context.loaded.device)
    limits = context.timing.identity
    origin = [commit(), *(versions().get(name) for name in ("torch", "triton", "transformers"))]
    key = digest({**identity, "device": device, "limits": limits, "origin": origin})
    if recorded(context.store.latency, key) is not None or key in context.failures.failed:
        return 0
    context.console.print(f"timing {arm_label(arm)} at {context.length} tokens", style="dim")
    with Attempt() as attempt, time_limit(context.cell_seconds):
        prompt = context.first_prompt(task_names)
        attention, prefill, decoding = _times(context, arm, prompt)
    if attempt.error is not None:
        release_frames(attempt.error, context.loaded.device)
        return note_failure(context, key, arm, "timing", attempt.error, label=f"timing {arm_label(arm)}")
    for name, reason in attention.dense_failed.items():
        context.console.print(f"dense kernel {name} is not timed: {reason}", style="dim", markup=False, highlight=False)
    for batch, reason in decoding.failed.items():
        context.complain(f"decoding a batch of {batch} is not timed: {reason}")
    context.store.latency.append(
        LatencyRecord(
            latency=key,
            arm=arm.identity.id,
            run=context.run.run,
            identity=identity,
            knobs=arm.identity.knobs,
            device=device,
            kernel=attention.kernel,
            density=attention.density,
            selection_ms=attention.selection_ms,
            attention_ms=attention.attention_ms,
            total_ms=attention.total_ms,
            total_low=attention.total_low,
            total_high=attention.total_high,
            dense_ms=attention.dense_ms,
            dense_kernel=attention.dense_kernel,
            dense=attention.dense_all,
            dense_failed=attention.dense_failed,
            repeats=attention.repeats,
            tflops=attention.tflops,
            ttft_ms=prefill.ttft_ms,
            ttft_low=prefill.low,
            ttft_high=prefill.high,
            peak_mib=prefill.peak_mib,
            tokens=len(prompt),
            date=now(),
            dense_ttft_ms=prefill.dense_ttft_ms,
            no_attention_ttft_ms=prefill.no_attention_ttft_ms,
            ttft_rounds={name: list(rounds) for name, rounds in prefill.rounds.items()},
            prefill_density=prefill.density,
            prefill_token_density=prefill.token_density,
            attention_layers=attention.global_layers,
            timed_layers=list(attention.layers),
            kept_mass=attention.kept_mass if context.loaded.shape is None else None,  # of random weights it says nothing
            kept_by_layer=list(attention.kept_by_layer) if context.loaded.shape is None else [],
            token_density=attention.token_density,
            paired=True,
            neighbour=arm.neighbour,
            notices=[*arm.notices, *decoding.notices],
            full_row_kernel=attention.full_row_kernel,
            **(decoding.as_record() if context.timing.decode_batches else {}),
        )
    )
    return 0


def _times(context: RunContext, arm: RunnableArm, prompt: Sequence[int]) -> tuple[AttentionTiming, PrefillTiming, DecodeTiming]:
    """Return the times of an arm's attention, prefill and decoding on a prompt (token ids); of no batch where no decoding was
    asked for."""
    limits: dict[str, Any] = {
        "repeats": context.timing.repeats,
        "max_seconds": context.timing.seconds,
        "sparse_kernel": context.kernels.sparse,
        "dense_kernel": context.kernels.dense,
        "chunk": context.chunk,
    }
    count = context.timing.layers
    batches, steps = context.timing.decode_batches, context.timing.decode_steps
    with context.progress_lines() as progress:
        bar = progress.add_task(f"timing {arm_label(arm)} {context.length}", total=3 if batches else 2)
        attention = time_attention(
            context.loaded,
            arm.method,
            prompt,
            dense_kernels=context.timing.dense_kernels,
            layers=None if count is None else spread_layers(context.loaded, len(prompt), count) or None,
            **limits,
        )
        progress.advance(bar)
        prefill = time_prefill(context.loaded, arm.method, prompt, **limits)
        progress.advance(bar)
        if not batches:
            return attention, prefill, DecodeTiming(steps)
        decoding = time_decoding(
            context.loaded,
            arm.method,
            arm.decoding,
            prompt,
            batches=batches,
            steps=steps,
            decode_kernel=context.kernels.decode,
            graph=context.timing.decode_graph,
            **limits,
        )
    return attention, prefill, decoding
