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

from harness import leaderboard, plan, tasks
from harness.arms import Ready
from harness.bench import Bench, one_line
from harness.bridge import Bridge
from harness.decoding import mean_density
from harness.generate import Generation, generate
from harness.plan import Cell
from harness.provenance import now
from harness.records import Record, RecordError
from harness.schema import CellRecord, SampleRecord, Status
from harness.self_check import check_arm
from harness.tasks import Sample

CPU_BATCH_TOKENS = 20_480
"""Tokens of KV cache decoded together on a CPU: a few samples, so that progress shows and a kill loses little."""
BATCH_SIZE = 64
"""Samples decoded together at most: more is hardly faster, and a kill loses them."""
GPU_MEMORY_SHARE = 0.4
"""Share of the free GPU memory that the KV cache of one batch may take."""


def evaluate(bench: Bench, each: Ready, names: list[str]) -> int:
    """Run the samples that an arm's cells lack. Returns how many of the cells failed."""
    began, inside = time.perf_counter(), _Inside()
    by_cell, last = bench.store.samples_of(), bench.store.latest_cells()
    todo: list[tuple[Cell, Sample]] = []
    begun: list[tuple[Cell, str]] = []
    failed = 0
    for name in names:
        cell = _cell(bench, each, name)
        have = {s["index"] for s in by_cell.get(cell.id, [])}
        try:
            lacking = plan.missing(have, tasks.get(name).count(bench.wanted.samples, bench.wanted.data))
            if not lacking and last.get(cell.id, {}).get("status") in (Status.OK, Status.GATED):
                continue
            drawn = bench.samples(name)
        except Exception as error:  # a task that can't make its samples costs its cell, not the sweep
            failed += _fail(bench, each, cell, error)
            continue
        begun.append((cell, drawn[0].haystack))
        _note(bench, each, cell, Status.RUNNING, "", drawn[0].haystack)
        todo += [(cell, drawn[index]) for index in lacking]
    if todo:
        check_arm(bench, each, names)
    broken = _generate(bench, each, todo, inside) if todo else {}
    share = inside.seconds / (time.perf_counter() - began)
    by_cell, last = bench.store.samples_of(), bench.store.latest_cells()
    for cell, prose in begun:
        if cell.id in broken:
            failed += _fail(bench, each, cell, broken[cell.id])
            continue
        pair = (c for c in last.values() if c["pair"] == cell.pair and leaderboard.is_baseline(c))
        dense = None if each.baseline else next((by_cell.get(c["cell"]) for c in pair), None)
        _finish(bench, each, cell, prose, by_cell[cell.id], dense, share if todo else None)
    return failed


def _cell(bench: Bench, each: Ready, name: str) -> Cell:
    """The cell of an arm on a task."""
    samples = plan.Samples(name, tasks.get(name).version, bench.text_of([name]), bench.chat, bench.files(name))
    return Cell(each.arm, samples)


@dataclass
class _Inside:
    """Seconds spent in generation: the model, and what queues its work."""

    seconds: float = 0.0


def _generate(bench: Bench, each: Ready, todo: list[tuple[Cell, Sample]], inside: _Inside) -> dict[str, Exception]:
    """Generate and record `todo`; returns the cells that failed, by id. After an error, what is left runs sample by
    sample, so that the error stays with the cell it belongs to."""
    broken: dict[str, Exception] = {}
    with bench.progress() as progress:
        bar = progress.add_task(f"{name_of(each)} {bench.wanted.length}", total=len(todo))

        def advance(samples: int) -> None:
            progress.advance(bar, samples)

        left, error = _attempt(bench, each, todo, _batch_tokens(bench), advance, inside)
        for pair in left:
            _, error = _attempt(bench, each, [pair], 1, advance, inside)
            if error is not None:
                broken.setdefault(pair[0].id, error)
    return broken


def _attempt(
    bench: Bench,
    each: Ready,
    todo: list[tuple[Cell, Sample]],
    batch_tokens: int,
    advance: Callable[[int], None],
    inside: _Inside,
) -> tuple[list[tuple[Cell, Sample]], Exception | None]:
    """One call of generate; returns what it did not finish, and why."""
    done = 0
    prompts = bench.tokens([sample for _, sample in todo])
    wanted = bench.wanted
    bridge = Bridge(
        bench.loaded, each.method, sparse_kernel=wanted.kernel, dense_kernel=wanted.dense_kernel, decoding=each.decoding,
        decode_kernel=wanted.decode_kernel,
    )  # fmt: skip

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
            cell, sample = todo[position]
            density, token_density = densities.get(position, (None, None))
            ran = Ran(
                kernels, sorted(bridge.decode_kernels), density, token_density,
                mean_density(steps, position - first, generation.steps),
            )  # fmt: skip
            records.append(_record(bench, cell, sample, prompts[position], generation, ran))
        bench.store.samples.append_all(records)
        done += len(records)
        advance(len(records))
        since = time.perf_counter()

    try:
        with bridge:
            since = time.perf_counter()
            generate(
                bench.loaded, prompts, [sample.max_new_tokens for _, sample in todo],
                stop_ids=tasks.stop_ids(bench.loaded.tokenizer, bench.loaded.model), batch_tokens=batch_tokens,
                own_stops=[tasks.stop_of(bench.loaded.tokenizer, sample) for _, sample in todo],
                batch_size=BATCH_SIZE, on_batch=on_batch,
            )  # fmt: skip
    except RecordError:
        raise
    except Exception as error:  # out of memory, a kernel that fails, …: the sweep goes on
        if bench.loaded.device.type == "cuda":
            torch.cuda.empty_cache()
        return todo[done:], error
    return [], None


@dataclass(frozen=True)
class Ran:
    """What ran for a sample: kernels and density at prefill and at decode (see `schema.SampleRecord`)."""

    kernels: list[str]
    decode_kernels: list[str]
    density: float | None
    token_density: float | None
    decode_density: float | None


def _record(
    bench: Bench,
    cell: Cell,
    sample: Sample,
    prompt: Sequence[int],
    generation: Generation,
    ran: Ran,
) -> SampleRecord:
    task = tasks.get(sample.task)
    prediction = bench.loaded.tokenizer.decode(generation.ids, skip_special_tokens=True)
    reason = tasks.check_sample(sample, bench.loaded.tokenizer, prompt)
    if reason is None and not generation.finite:
        reason = "logits are NaN or infinite: a kernel, the dtype or the weights are at fault"
    return SampleRecord(
        cell=cell.id, run=bench.run.run, index=sample.index, prediction=prediction, answers=list(sample.answers),
        score=task.score(prediction, sample), tokens=sample.tokens, prefill_s=generation.prefill_s,
        density=ran.density, status=Status.GATED if reason else Status.OK, reason=reason or "", date=now(),
        kernels=ran.kernels, decode_kernels=ran.decode_kernels, decode_density=ran.decode_density,
        token_density=ran.token_density, cut=sample.cut,
    )  # fmt: skip


def _batch_tokens(bench: Bench) -> int:
    """Tokens of KV cache to decode together: as the user says, or what suits the device."""
    if bench.wanted.batch_tokens is not None:
        return bench.wanted.batch_tokens
    loaded = bench.loaded
    if loaded.device.type != "cuda":
        return CPU_BATCH_TOKENS
    each = 2 * loaded.layers * loaded.kv_heads * loaded.head_dim * loaded.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(loaded.device)
    return max(1, int(GPU_MEMORY_SHARE * free / each))


def name_of(each: Ready) -> str:
    """What an arm is called in the terminal: its method, and the one that decodes where there is one."""
    return each.arm.method + ("" if each.arm.decode is None else f" + {each.arm.decode.method}")


def _note(
    bench: Bench, each: Ready, cell: Cell, status: str, reason: str, haystack: str, summary: dict[str, Any] | None = None
) -> None:
    bench.store.cells.append(
        CellRecord(
            cell=cell.id, arm=each.arm.id, pair=cell.pair, run=bench.run.run, identity=cell.identity(),
            status=status, reason=reason, date=now(), knobs=each.arm.knobs, haystack=haystack,
            summary=summary or {},
        )
    )  # fmt: skip


def _fail(bench: Bench, each: Ready, cell: Cell, error: Exception) -> int:
    """Record a cell as failed and go on; returns 1, the count of it."""
    reason = one_line(error)
    _note(bench, each, cell, Status.FAILED, reason, "")
    bench.complain(f"failed: {name_of(each)}, {cell.samples.task}: {reason}")
    return 1


def _finish(
    bench: Bench, each: Ready, cell: Cell, prose: str, mine: list[Record], dense: list[Record] | None, share: float | None
) -> None:
    """Record a cell's verdict and its numbers from all its samples. share: of this process's time with the arm's cells, what
    was spent generating; the rest is making and checking samples, the self-check, scoring and recording."""
    row = leaderboard.accuracy(mine, dense, bench.wanted.seed)
    status, reason = leaderboard.verdict(mine, row, leaderboard.unsound(bench.store).get((each.arm.id, bench.chat), ""))
    densities = [s["density"] for s in mine if s["density"] is not None]
    summary = row | {
        "samples": len(mine),
        "density": statistics.fmean(densities) if densities else None,
        "model_share": share,
        "prefill_s": statistics.median(s["prefill_s"] for s in mine),
    }
    _note(bench, each, cell, status, reason, prose, summary)
