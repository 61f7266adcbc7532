"""The accuracy of an arm: which samples its cells lack, generating, scoring, gating, recording.

Samples are recorded as soon as those they were decoded with are done, so a kill at any moment loses one batch at most; an
error costs the cell it happens in and is recorded with its reason.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness import tasks
from harness.arms.build import RunnableArm
from harness.core.device_memory import is_out_of_memory, release_frames
from harness.core.question import QUESTION_REREAD
from harness.measure.context import RunContext, one_line
from harness.measure.self_check import check_arm
from harness.models.bridge import Bridge
from harness.models.decoder import mean_density
from harness.models.generate import Generation, Split, batches, generate
from harness.study import identity, verdict
from harness.study.identity import Cell
from harness.study.provenance import now
from harness.study.schema import CellRecord, SampleRecord, Status
from harness.study.store import Record, RecordError
from harness.tasks import Sample

CPU_BATCH_TOKENS = 20_480
"""Tokens of KV cache decoded together on a CPU: a few samples, so that progress shows and a kill loses little."""
BATCH_SIZE = 64
"""Samples decoded together at most: more is hardly faster, and a kill loses them."""
GPU_MEMORY_SHARE = 0.4
"""Share of the free GPU memory that the KV cache of one batch may take."""


def evaluate(context: RunContext, arm: RunnableArm, names: list[str]) -> int:
    """Run the samples that an arm's cells lack. Returns how many of the cells failed."""
    began, inside = time.perf_counter(), _Inside()
    by_cell, last = context.store.samples_of(), context.store.latest_cells()
    todo: list[tuple[Cell, Sample]] = []
    begun: list[tuple[Cell, str]] = []
    failed = 0
    for name in names:
        cell = _cell(context, arm, name)
        have = {s["index"] for s in by_cell.get(cell.id, [])}
        try:
            lacking = identity.missing(have, tasks.get(name).count(context.settings.samples, context.settings.data))
            if not lacking and _settled(last.get(cell.id)):
                continue
            drawn = context.samples(name)
            context.contexts([drawn[index] for index in lacking])
        except Exception as error:  # a task that can't make its samples costs its cell, not the sweep
            failed += _fail(context, arm, cell, error)
            continue
        begun.append((cell, drawn[0].haystack))
        _note(context, arm, cell, Status.RUNNING, "", drawn[0].haystack)
        todo += [(cell, drawn[index]) for index in lacking]
    if begun:
        try:
            check_arm(context, arm, names)
        except RecordError:
            raise
        except Exception as error:  # what can't be checked isn't run: the next run of the same command tries again
            where = f"{verdict.SELF_CHECK}it could not run: "
            return failed + sum(_fail(context, arm, cell, error, where) for cell, _ in begun)
    broken = _generate(context, arm, todo, inside) if todo else {}
    share = inside.seconds / (time.perf_counter() - began)
    by_cell, last = context.store.samples_of(), context.store.latest_cells()
    for cell, prose in begun:
        if cell.id in broken:
            failed += _fail(context, arm, cell, broken[cell.id])
            continue
        pair = (c for c in last.values() if c["pair"] == cell.pair and verdict.is_baseline(c))
        dense = None if arm.baseline else next((by_cell.get(c["cell"]) for c in pair), None)
        _finish(context, arm, cell, prose, by_cell[cell.id], dense, share if todo else None)
    return failed


def _settled(last: Record | None) -> bool:
    """Whether a cell with all its samples needs nothing more. One that the arm's self-check gated is asked again: the check is
    made anew for another commit, device or version."""
    if last is None or last["status"] not in (Status.OK, Status.GATED):
        return False
    return last["status"] == Status.OK or not str(last["reason"]).startswith(verdict.SELF_CHECK)


def _cell(context: RunContext, arm: RunnableArm, name: str) -> Cell:
    """The cell of an arm on a task."""
    samples = identity.Samples(
        name, tasks.get(name).version, context.text_of([name]), context.chat, context.files(name), context.settings.question
    )
    return Cell(arm.identity, samples)


@dataclass
class _Inside:
    """Seconds spent in generation: the model, and what queues its work."""

    seconds: float = 0.0


def _generate(context: RunContext, arm: RunnableArm, todo: list[tuple[Cell, Sample]], inside: _Inside) -> dict[str, Exception]:
    """Generate and record `todo`; returns the cells that failed, by id. Where memory does not suffice, what is left goes on in
    batches half as large. After any other error the batch it came from runs sample by sample, so that the error stays with the
    cell it belongs to."""
    broken: dict[str, Exception] = {}
    samples = [sample for _, sample in todo]
    left = Work(todo, context.tokens(samples), context.contexts(samples))
    with context.progress() as progress:
        bar = progress.add_task(f"{name_of(arm)} {context.settings.length}", total=len(todo))

        def attempt(work: Work, batch_tokens: int) -> tuple[int, Exception | None]:
            return _attempt(context, arm, work, batch_tokens, lambda count: progress.advance(bar, count), inside)

        size = _batch_tokens(context)
        while left.pairs:
            done, error = attempt(left, size)
            if error is None:
                break
            left = left[done:]
            longest, batch = left.first_batch(size)
            if batch > 1 and is_out_of_memory(error):
                size = longest * batch // 2
                continue
            for i in range(batch):
                _, error = attempt(left[i : i + 1], 1)
                if error is not None:
                    broken.setdefault(left.pairs[i][0].id, error)
            left = left[batch:]
    return broken


@dataclass(frozen=True)
class Work:
    """Samples to generate for, with their cells, their prompts' tokens, and how many of those are the context's (see
    `RunContext.contexts`)."""

    pairs: list[tuple[Cell, Sample]]
    prompts: Sequence[Sequence[int]]
    contexts: list[int] | None

    def __getitem__(self, part: slice) -> Work:
        return Work(self.pairs[part], self.prompts[part], None if self.contexts is None else self.contexts[part])

    def first_batch(self, batch_tokens: int) -> tuple[int, int]:
        """Columns of the cache that the longest sequence of the first batch needs, and how many sequences that has."""
        lengths = [len(p) + s.max_new_tokens for p, (_, s) in zip(self.prompts, self.pairs, strict=True)]
        first = batches(lengths, batch_tokens, BATCH_SIZE)[0]
        return max(lengths[: first.stop]), first.stop


def _attempt(
    context: RunContext, arm: RunnableArm, work: Work, batch_tokens: int, advance: Callable[[int], None], inside: _Inside
) -> tuple[int, Exception | None]:
    """One call of generate; returns how many samples it finished, and why not all."""
    done, prompts, contexts, settings = 0, work.prompts, work.contexts, context.settings
    samples = [sample for _, sample in work.pairs]
    bridge = Bridge(
        context.loaded,
        arm.method,
        sparse_kernel=settings.kernel,
        dense_kernel=settings.dense_kernel,
        decoding=arm.decoding,
        decode_kernel=settings.decode_kernel,
    )

    since = time.perf_counter()

    def on_batch(first: int, generations: list[Generation]) -> None:
        nonlocal done, since
        inside.seconds += time.perf_counter() - since  # generation has waited for the device
        pairs = zip(bridge.prefill_densities(), bridge.prefill_densities(tokens=True), strict=True)
        densities = dict(enumerate(pairs))
        kernels = sorted({name for layer in bridge.stats() for name in layer["kernel"].split("+")})
        steps = bridge.decoder.take_densities() if bridge.decoder is not None else []
        records = []
        for position, generation in enumerate(generations, first):
            cell, sample = work.pairs[position]
            density, token_density = densities.get(position, (None, None))
            ran = Ran(
                kernels,
                sorted(bridge.decode_kernels),
                density,
                token_density,
                mean_density(steps, position - first, generation.steps),
            )
            context_tokens = None if contexts is None else contexts[position]
            records.append(_record(context, cell, sample, prompts[position], context_tokens, generation, ran))
        context.store.samples.append_all(records)
        done += len(records)
        advance(len(records))
        since = time.perf_counter()

    try:
        with bridge:
            since = time.perf_counter()
            generate(
                context.loaded,
                prompts,
                [sample.max_new_tokens for sample in samples],
                stop_ids=tasks.stop_ids(context.loaded.tokenizer, context.loaded.model),
                batch_tokens=batch_tokens,
                own_stops=[tasks.stop_of(context.loaded.tokenizer, sample) for sample in samples],
                batch_size=BATCH_SIZE,
                on_batch=on_batch,
                split=None
                if contexts is None
                else Split(contexts, bridge.in_full, reread=settings.question == QUESTION_REREAD),
            )
    except RecordError:
        raise
    except Exception as error:  # out of memory, a kernel that fails, …: the sweep goes on
        release_frames(error, context.loaded.device)
        return done, error
    return done, None


@dataclass(frozen=True)
class Ran:
    """What ran for a sample: kernels and density at prefill and at decode (see `schema.SampleRecord`)."""

    kernels: list[str]
    decode_kernels: list[str]
    density: float | None
    token_density: float | None
    decode_density: float | None


def _record(
    context: RunContext,
    cell: Cell,
    sample: Sample,
    prompt: Sequence[int],
    context_tokens: int | None,
    generation: Generation,
    ran: Ran,
) -> SampleRecord:
    task = tasks.get(sample.task)
    prediction = context.loaded.tokenizer.decode(generation.ids, skip_special_tokens=True)
    reason = tasks.check_sample(sample, context.loaded.tokenizer, prompt)
    if reason is None and not generation.finite:
        reason = "logits are NaN or infinite: a kernel, the dtype or the weights are at fault"
    return SampleRecord(
        cell=cell.id,
        run=context.run.run,
        index=sample.index,
        prediction=prediction,
        answers=[] if task.fixed or cell.samples.files else list(sample.answers),
        score=task.score(prediction, sample),
        tokens=sample.tokens,
        prefill_s=generation.prefill_s,
        density=ran.density,
        status=Status.GATED if reason else Status.OK,
        reason=reason or "",
        date=now(),
        kernels=ran.kernels,
        decode_kernels=ran.decode_kernels,
        decode_density=ran.decode_density,
        token_density=ran.token_density,
        cut=sample.cut,
        context=context_tokens,
    )


def _batch_tokens(context: RunContext) -> int:
    """Tokens of KV cache to decode together: as the user says, or what suits the device."""
    if context.settings.batch_tokens is not None:
        return context.settings.batch_tokens
    loaded = context.loaded
    if loaded.device.type != "cuda":
        return CPU_BATCH_TOKENS
    each = 2 * loaded.layers * loaded.kv_heads * loaded.head_dim * loaded.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(loaded.device)
    return max(1, int(GPU_MEMORY_SHARE * free / each))


def name_of(arm: RunnableArm) -> str:
    """What an arm is called in the terminal: its method, and the one that decodes where there is one."""
    return arm.identity.method + ("" if arm.identity.decode is None else f" + {arm.identity.decode.method}")


def _note(
    context: RunContext,
    arm: RunnableArm,
    cell: Cell,
    status: str,
    reason: str,
    haystack: str,
    summary: dict[str, Any] | None = None,
) -> None:
    context.store.cells.append(
        CellRecord(
            cell=cell.id,
            arm=arm.identity.id,
            pair=cell.pair,
            run=context.run.run,
            identity=cell.as_dict(),
            status=status,
            reason=reason,
            date=now(),
            knobs=arm.identity.knobs,
            haystack=haystack,
            summary=summary or {},
        )
    )


def _fail(context: RunContext, arm: RunnableArm, cell: Cell, error: Exception, where: str = "") -> int:
    """Record a cell as failed and go on; returns 1, the count of it."""
    reason = where + one_line(error)
    _note(context, arm, cell, Status.FAILED, reason, "")
    context.complain(f"failed: {name_of(arm)}, {cell.samples.task}: {reason}")
    return 1


def _finish(
    context: RunContext,
    arm: RunnableArm,
    cell: Cell,
    prose: str,
    mine: list[Record],
    dense: list[Record] | None,
    share: float | None,
) -> None:
    """Record a cell's verdict and its numbers from all its samples. share: of this process's time with the arm's cells, what
    was spent generating; the rest is making and checking samples, the self-check, scoring and recording."""
    row = verdict.accuracy(mine, dense, context.settings.seed)
    key = arm.identity.id, context.chat, context.settings.question
    status, reason = verdict.verdict(mine, row, verdict.unsound(context.store).get(key, ""))
    densities = [s["density"] for s in mine if s["density"] is not None]
    summary = row | {
        "samples": len(mine),
        "density": statistics.fmean(densities) if densities else None,
        "model_share": share,
        "prefill_s": statistics.median(s["prefill_s"] for s in mine),
    }
    _note(context, arm, cell, status, reason, prose, summary)
