"""Running the cells of one command: resume, generate, score, gate, record; then time the arm.

Dense always runs first, on the same samples. Samples are recorded as soon as those they were decoded with are done, so a
kill at any moment loses one batch at most; an error costs the cell it happens in and is recorded with its reason.
"""

from __future__ import annotations

import statistics
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from harness import calibrate, leaderboard, plan, tasks
from harness.arms import Ready, ready
from harness.bridge import Bridge
from harness.config import Settings
from harness.errors import UserError
from harness.generate import Generation, generate
from harness.latency import AttentionTiming, PrefillTiming, time_attention, time_prefill
from harness.models import LoadedModel, ModelConfig, load_model
from harness.plan import Cell
from harness.provenance import commit, device_name, file_hash, now, run_record, versions
from harness.records import Record, RecordError, Store
from harness.schema import CalibrationRecord, CellRecord, LatencyRecord, RunRecord, SampleRecord, Status
from harness.tasks import Sample
from harness.tasks.cache import tokenizer_hash
from harness.tasks.haystack import haystack
from methods.base import Knob

CPU_BATCH_TOKENS = 20_480
"""Tokens of KV cache decoded together on a CPU: a few samples, so that progress shows and a kill loses little."""
BATCH_SIZE = 64
"""Samples decoded together at most: more is hardly faster, and a kill loses them."""
GPU_MEMORY_SHARE = 0.4
"""Share of the free GPU memory that the KV cache of one batch may take."""


@dataclass
class Done:
    """What a command did: the ids of its arms and how many cells failed."""

    arms: set[str] = field(default_factory=set)
    failed: int = 0


def measure(wanted: Settings, store: Store, console: Console) -> Done:
    """Run what the settings ask for and the records of `store` don't have yet. Raises UserError for bad input."""
    loaded = model_of(wanted)
    if wanted.length > loaded.max_length:
        raise UserError(
            f"length={wanted.length}: {loaded.name} has a context of {loaded.max_length} tokens; "
            f"choose length={loaded.max_length} or less"
        )
    runner = Runner(wanted, loaded, store, console)
    names = tasks.group(wanted.tasks)
    arms = ready(wanted, loaded, lambda each, knob: runner.calibrated(each, knob, names))
    with Bridge(loaded, None, dense_kernel=wanted.dense_kernel):
        pass  # a model whose attention can't be changed stops here, not in every cell
    done = Done({each.arm.id for each in arms})
    for each in arms:
        if wanted.job == "evaluate":
            done.failed += runner.evaluate(each, names)
        if wanted.latency or wanted.job == "latency":
            done.failed += runner.time(each, names)
    return done


def model_of(wanted: Settings) -> LoadedModel:
    """The model of the settings; the jobs of a sweep share it."""
    name, path = str(wanted.model["name"]), str(wanted.model["path"])
    return _load(ModelConfig(name=name, path=path, dtype=wanted.dtype, device=wanted.device))


@lru_cache(maxsize=1)
def _load(config: ModelConfig) -> LoadedModel:
    from transformers.utils import logging

    logging.disable_progress_bar()  # of the weights; the only bar is that of the samples
    return load_model(config)


TOKENS_KEPT = 100_000_000
"""Tokens of prompts held in memory before they are let go, four bytes each."""

_tokens: dict[tuple[str, Sample], array[int]] = {}


class Runner:
    """Measures arms in one setting; holds what they share: the model, the samples, the record of this process."""

    def __init__(self, wanted: Settings, loaded: LoadedModel, store: Store, console: Console) -> None:
        self.wanted, self.loaded, self.store, self.console = wanted, loaded, store, console
        self._samples: dict[str, list[Sample]] = {}

    @cached_property
    def run(self) -> RunRecord:
        """The record of this process; written when the first measurement needs it."""
        record = run_record(self.loaded.device)
        self.store.runs.append(record)
        return record

    # -- a native knob for the sparsity ------------------------------------------------------------------------------

    def calibrated(self, each: Ready, knob: Knob, names: list[str]) -> float:
        """The value of a knob at which the arm has its sparsity: as recorded, or found now and recorded."""
        assert each.method is not None and each.method.sparsity is not None
        count, target = self.wanted.calibration_prompts, 1 - each.method.sparsity
        identity = {**each.arm.identity(), "tasks": names, "prompts": count, "text": self._text, "chat": self._chat}
        key = plan.digest(identity)
        for record in self.store.calibrations.read():
            if record["calibration"] == key:
                return float(record["value"])
        prompts = self._calibration_prompts(names, count)
        with self._progress() as progress:
            bar = progress.add_task(f"calibrating {each.arm.method}", total=calibrate.MOST)
            found = calibrate.calibrate(
                self.loaded, each.method, knob, prompts, target, on_try=lambda: progress.advance(bar),
                sparse_kernel=self.wanted.kernel, dense_kernel=self.wanted.dense_kernel,
            )  # fmt: skip
        if abs(found.density - target) > calibrate.TOLERANCE:
            self._complain(
                f"calibrating {each.arm.method}: density {target:.3g} is out of reach, "
                f"the nearest is {found.density:.3g} at {knob.name}={found.value:.4g}"
            )
        self.store.calibrations.append(
            CalibrationRecord(
                calibration=key, run=self.run.run, identity=identity, knob=knob.name, value=found.value, target=target,
                density=found.density, layers=found.layers, tried=found.tried, date=now(),
            )
        )  # fmt: skip
        return found.value

    def _calibration_prompts(self, names: list[str], count: int) -> list[Sequence[int]]:
        """Prompts of this length that no test uses, of the tasks in turn."""
        wanted, data = self.wanted, {**self.wanted.data, "chat_template": self._chat}
        prompts: list[Sequence[int]] = []
        error: UserError | None = None
        for number in range(count + len(names)):
            try:
                drawn = tasks.get(names[number % len(names)]).samples(
                    self.loaded.tokenizer, wanted.length, number // len(names) + 1, calibrate.SEED + wanted.seed, data
                )
            except UserError as found:  # too short for this task
                error = error or found
                continue
            prompts += self.tokens(drawn[-1:])
            if len(prompts) == count:
                return prompts
        if prompts:
            return prompts
        raise error or UserError("no task to take calibration prompts from")

    # -- accuracy ----------------------------------------------------------------------------------------------------

    def evaluate(self, each: Ready, names: list[str]) -> int:
        """Run the samples that an arm's cells lack. Returns how many of the cells failed."""
        by_cell, last = self.store.samples_of(), self.store.latest_cells()
        todo: list[tuple[Cell, Sample]] = []
        begun: list[tuple[Cell, str]] = []
        failed = 0
        for name in names:
            cell = self.cell(each, name)
            have = {s["index"] for s in by_cell.get(cell.id, [])}
            lacking = plan.missing(have, self.wanted.samples)
            if not lacking and last.get(cell.id, {}).get("status") in (Status.OK, Status.GATED):
                continue
            try:
                drawn = self.samples(name)
            except Exception as error:  # a task that can't make its samples costs its cell, not the sweep
                failed += self._fail(each, cell, error)
                continue
            begun.append((cell, drawn[0].haystack))
            self._note(each, cell, Status.RUNNING, "", drawn[0].haystack)
            todo += [(cell, drawn[index]) for index in lacking]
        broken = self._generate(each, todo) if todo else {}
        by_cell, last = self.store.samples_of(), self.store.latest_cells()
        for cell, prose in begun:
            if cell.id in broken:
                failed += self._fail(each, cell, broken[cell.id])
                continue
            pair = (c for c in last.values() if c["pair"] == cell.pair and leaderboard.is_baseline(c))
            dense = None if each.method is None else next((by_cell.get(c["cell"]) for c in pair), None)
            self._finish(each, cell, prose, by_cell[cell.id], dense)
        return failed

    def cell(self, each: Ready, name: str) -> Cell:
        """The cell of an arm on a task."""
        return Cell(each.arm, plan.Samples(name, str(tasks.VERSION), self._text, self._chat))

    @property
    def _chat(self) -> bool:
        return bool(self.wanted.model.get("chat_template"))

    @cached_property
    def _text(self) -> dict[str, Any]:
        """What the samples' text comes from, by content: the prose, the word list, the tokenizer and its template."""
        tokenizer, words = self.loaded.tokenizer, self.wanted.data.get("words")
        template = getattr(tokenizer, "chat_template", None) if self._chat else None
        return {
            "haystack": haystack(self.wanted.data.get("haystack")).name,
            "words": file_hash(words) if words else None,
            "tokenizer": tokenizer_hash(tokenizer),
            "template": plan.digest(template) if template else None,
        }

    def samples(self, name: str) -> list[Sample]:
        """The first samples of a task, as many as are wanted; made once for all arms."""
        if name not in self._samples:
            wanted, data = self.wanted, {**self.wanted.data, "chat_template": self._chat}
            task = tasks.get(name)
            self._samples[name] = task.samples(self.loaded.tokenizer, wanted.length, wanted.samples, wanted.seed, data)
        return self._samples[name]

    def tokens(self, samples: list[Sample]) -> list[array[int]]:
        """Token ids of the samples' prompts, tokenised once for all arms of all jobs of a sweep."""
        model = self.loaded.revision_hash
        new = [sample for sample in samples if (model, sample) not in _tokens]
        if sum(map(len, _tokens.values())) > TOKENS_KEPT:
            _tokens.clear()
            new = samples
        for sample, ids in zip(new, tasks.encode_all(self.loaded.tokenizer, [s.prompt for s in new]), strict=True):
            _tokens[model, sample] = array("i", ids)
        return [_tokens[model, sample] for sample in samples]

    def _generate(self, each: Ready, todo: list[tuple[Cell, Sample]]) -> dict[str, Exception]:
        """Generate and record `todo`; returns the cells that failed, by id. After an error, what is left runs sample by
        sample, so that the error stays with the cell it belongs to."""
        broken: dict[str, Exception] = {}
        with self._progress() as progress:
            bar = progress.add_task(f"{each.arm.method} {self.wanted.length}", total=len(todo))

            def advance(samples: int) -> None:
                progress.advance(bar, samples)

            left, error = self._attempt(each, todo, self.batch_tokens(), advance)
            for pair in left:
                _, error = self._attempt(each, [pair], 1, advance)
                if error is not None:
                    broken.setdefault(pair[0].id, error)
        return broken

    def _attempt(
        self, each: Ready, todo: list[tuple[Cell, Sample]], batch_tokens: int, advance: Callable[[int], None]
    ) -> tuple[list[tuple[Cell, Sample]], Exception | None]:
        """One call of generate; returns what it did not finish, and why."""
        done = 0
        prompts = self.tokens([sample for _, sample in todo])
        wanted = self.wanted
        bridge = Bridge(self.loaded, each.method, sparse_kernel=wanted.kernel, dense_kernel=wanted.dense_kernel)

        def on_batch(first: int, generations: list[Generation]) -> None:
            nonlocal done
            densities = dict(enumerate(bridge.prefill_densities()))
            kernels = sorted({name for layer in bridge.stats() for name in layer["kernel"].split("+")})
            records = []
            for position, generation in enumerate(generations, first):
                cell, sample = todo[position]
                ran = kernels, sorted(bridge.decode_kernels)
                records.append(
                    self._record(cell, sample, prompts[position], generation, densities.get(position), ran)
                )  # fmt: skip
            self.store.samples.append_all(records)
            done += len(records)
            advance(len(records))

        try:
            with bridge:
                generate(
                    self.loaded, prompts, [sample.max_new_tokens for _, sample in todo],
                    stop_ids=tasks.stop_ids(self.loaded.tokenizer, self.loaded.model), batch_tokens=batch_tokens,
                    batch_size=BATCH_SIZE, on_batch=on_batch,
                )  # fmt: skip
        except RecordError:
            raise
        except Exception as error:  # out of memory, a kernel that fails, …: the sweep goes on
            if self.loaded.device.type == "cuda":
                torch.cuda.empty_cache()
            return todo[done:], error
        return [], None

    def _record(
        self,
        cell: Cell,
        sample: Sample,
        prompt: Sequence[int],
        generation: Generation,
        density: float | None,
        ran: tuple[list[str], list[str]],
    ) -> SampleRecord:
        task = tasks.get(sample.task)
        prediction = self.loaded.tokenizer.decode(generation.ids, skip_special_tokens=True)
        reason = tasks.check_sample(sample, self.loaded.tokenizer, prompt)
        if reason is None and not generation.finite:
            reason = "logits are NaN or infinite: a kernel, the dtype or the weights are at fault"
        return SampleRecord(
            cell=cell.id, run=self.run.run, index=sample.index, prediction=prediction, answers=list(sample.answers),
            score=task.metric(prediction, sample.answers), tokens=sample.tokens, prefill_s=generation.prefill_s,
            density=density, status=Status.GATED if reason else Status.OK, reason=reason or "", date=now(),
            kernels=ran[0], decode_kernels=ran[1],
        )  # fmt: skip

    def batch_tokens(self) -> int:
        """Tokens of KV cache to decode together: as the user says, or what suits the device."""
        if self.wanted.batch_tokens is not None:
            return self.wanted.batch_tokens
        loaded = self.loaded
        if loaded.device.type != "cuda":
            return CPU_BATCH_TOKENS
        each = 2 * loaded.layers * loaded.kv_heads * loaded.head_dim * loaded.dtype.itemsize
        free, _ = torch.cuda.mem_get_info(loaded.device)
        return max(1, int(GPU_MEMORY_SHARE * free / each))

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("eta"), TimeRemainingColumn(), console=self.console, transient=True,
            disable=not (self.wanted.progress and self.console.is_terminal),
        )  # fmt: skip

    # -- the state of a cell -----------------------------------------------------------------------------------------

    def _note(
        self, each: Ready, cell: Cell, status: str, reason: str, haystack: str, summary: dict[str, Any] | None = None
    ) -> None:
        self.store.cells.append(
            CellRecord(
                cell=cell.id, arm=each.arm.id, pair=cell.pair, run=self.run.run, identity=cell.identity(),
                status=status, reason=reason, date=now(), knobs=each.arm.knobs, haystack=haystack,
                summary=summary or {},
            )
        )  # fmt: skip

    def _fail(self, each: Ready, cell: Cell, error: Exception) -> int:
        """Record a cell as failed and go on; returns 1, the count of it."""
        reason = _line(error)
        self._note(each, cell, Status.FAILED, reason, "")
        self._complain(f"failed: {each.arm.method}, {cell.samples.task}: {reason}")
        return 1

    def _complain(self, text: str) -> None:
        self.console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)

    def _finish(self, each: Ready, cell: Cell, prose: str, mine: list[Record], dense: list[Record] | None) -> None:
        """Record a cell's verdict and its numbers from all its samples."""
        row = leaderboard.accuracy(mine, dense, self.wanted.seed)
        status, reason = leaderboard.verdict(mine, row)
        densities = [s["density"] for s in mine if s["density"] is not None]
        summary = row | {
            "samples": len(mine),
            "density": statistics.fmean(densities) if densities else None,
            "prefill_s": statistics.median(s["prefill_s"] for s in mine),
        }
        self._note(each, cell, status, reason, prose, summary)

    # -- time --------------------------------------------------------------------------------------------------------

    def time(self, each: Ready, names: list[str]) -> int:
        """Time attention and prefill of an arm, once for each device, commit, torch and limits of the timing, on the first
        sample of the first task that has samples of this length. Returns 1 where that failed, else 0."""
        identity, device = each.arm.identity(), device_name(self.loaded.device)
        limits = [self.wanted.latency_repeats, self.wanted.latency_seconds]
        origin = [commit(), *(versions().get(name) for name in ("torch", "triton", "transformers"))]
        latency = plan.digest({**identity, "device": device, "limits": limits, "origin": origin})
        self.store.latency.read()
        if self.store.latency.has(latency):
            return 0
        self.console.print(f"timing {each.arm.method} at {self.wanted.length} tokens", style="dim")
        try:
            prompt = self._first_prompt(names)
            attention, prefill = self._times(each, prompt)
        except Exception as error:  # out of memory, a kernel that fails, …: the sweep goes on, the next run tries again
            self._complain(f"failed: timing {each.arm.method}: {_line(error)}")
            return 1
        self.store.latency.append(
            LatencyRecord(
                latency=latency, arm=each.arm.id, run=self.run.run, identity=identity, knobs=each.arm.knobs,
                device=device, kernel=attention.kernel, density=attention.density,
                selection_ms=attention.selection_ms, attention_ms=attention.attention_ms, total_ms=attention.total_ms,
                total_low=attention.total_low, total_high=attention.total_high, dense_ms=attention.dense_ms,
                dense_kernel=attention.dense_kernel, dense=attention.dense_all, dense_failed=attention.dense_failed,
                repeats=attention.repeats, tflops=attention.tflops, ttft_ms=prefill.ttft_ms, ttft_low=prefill.low,
                ttft_high=prefill.high, peak_mib=prefill.peak_mib, tokens=len(prompt), date=now(),
                dense_ttft_ms=prefill.dense_ttft_ms,
            )
        )  # fmt: skip
        return 0

    def _first_prompt(self, names: list[str]) -> Sequence[int]:
        error: UserError | None = None
        for name in names:
            try:
                return self.tokens(self.samples(name)[:1])[0]
            except UserError as found:  # too short for this task
                error = error or found
        raise error or UserError("no task to take a prompt from")

    def _times(self, each: Ready, prompt: Sequence[int]) -> tuple[AttentionTiming, PrefillTiming]:
        wanted = self.wanted
        limits: dict[str, Any] = {
            "repeats": wanted.latency_repeats, "max_seconds": wanted.latency_seconds, "sparse_kernel": wanted.kernel,
            "dense_kernel": wanted.dense_kernel,
        }  # fmt: skip
        attention = time_attention(self.loaded, each.method, prompt, **limits)
        return attention, time_prefill(self.loaded, each.method, prompt, **limits)


def _line(error: Exception) -> str:
    """An error in one line; its type too, unless the message was written for a person."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"
