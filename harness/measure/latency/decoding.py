"""Decoding speed of a whole model: tokens a second of a batch, by a method of decoding in turns with dense attention.

One prompt is prefilled as the arm does it. Its keys and values are copied for every sequence of a batch, each into memory of
its own: a batch of the same text reads as many bytes as one of different texts, and no sequence is padded. Every round decodes
the same columns of the cache. It goes back to the end of the prompt and takes one step without the clock, in which a method
makes what it keeps of all keys; then the clock runs for `steps` steps. All of them together end where the prompt that was
given ends: that many tokens of it are not prefilled, and the first of them is the first token that is decoded.

Step by step, a small model waits for Python to launch its kernels, whatever its attention. On a GPU the steps of a round can be
replayed as one CUDA graph instead (`decode_graph.py`): of both decodings or, where one can't be captured, of neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch

from harness.core.clock import sync
from harness.core.device_memory import available_bytes, release_frames
from harness.core.errors import UserError
from harness.measure.latency.decode_graph import captured_round
from harness.measure.latency.timing import Times, peak_mib, take_turns
from harness.models.batch_cache import BatchCache
from harness.models.bridge import Bridge
from harness.models.chunks import Chunks, prefill_row
from harness.models.layer_shapes import column_bytes
from harness.models.loading import LoadedModel
from harness.study.resume import Attempt
from methods.decode.parts.base import DecodeMethod
from methods.parts.base import Method

BASELINE, METHOD = "baseline", "method"
"""The two decodings of a round: densely, and with the method."""
EVENTS, GRAPH = "events", "graph"
"""How rounds are timed, as a record names it: step by step, as Python launches them, or replayed as a CUDA graph."""
FIRST_STEP = 1
"""Steps of a round before the clock runs."""


@dataclass(frozen=True)
class BatchTiming:
    """The rounds of one batch. times: milliseconds of `steps` steps of all sequences, of BASELINE and METHOD (none where the
    arm decodes densely). peak_mib: the most GPU memory allocated while the arm decoded them, weights and the keys and values of
    all sequences included, step by step; None on a CPU, which keeps no count. timing: EVENTS or GRAPH, the same for both;
    notice: why it is not as asked, "" where it is."""

    times: Mapping[str, Times]
    peak_mib: float | None
    timing: str = EVENTS
    notice: str = ""

    @property
    def own(self) -> Times:
        """Return the times of the arm's own decoding."""
        return self.times.get(METHOD, self.times[BASELINE])

    @property
    def dense_ms(self) -> float:
        """Return the milliseconds of dense decoding that go with the arm's own median (`Times.beside`)."""
        return self.times[BASELINE].beside(self.own).median


@dataclass(frozen=True)
class DecodeTiming:
    """Decoding after one prompt. steps: of a round that were timed. batches: what was timed, by sequences of a batch; failed:
    why others were not. density: kept ÷ all blocks of the method's steps, the mean over steps, layers and heads; None for dense
    decoding. kernels: of attention that ran in the arm's own steps."""

    steps: int
    batches: Mapping[int, BatchTiming] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)
    density: float | None = None
    kernels: tuple[str, ...] = ()

    @property
    def notices(self) -> list[str]:
        """Return a line for each batch that is not timed as was asked for."""
        return [f"decoding a batch of {batch}: {timing.notice}" for batch, timing in self.batches.items() if timing.notice]

    def as_record(self) -> dict[str, Any]:
        """Return the fields of a latency record that hold it (`harness.study.timing_schema.LatencyRecord`)."""
        batches = {str(batch): timing for batch, timing in self.batches.items()}

        def rate(batch: str, milliseconds: float) -> float:
            return int(batch) * self.steps * 1e3 / milliseconds

        return {
            "decode_steps": self.steps,
            "decode_tokens_s": {batch: rate(batch, timing.own.median) for batch, timing in batches.items()},
            "decode_tokens_s_low": {batch: rate(batch, timing.own.high) for batch, timing in batches.items()},
            "decode_tokens_s_high": {batch: rate(batch, timing.own.low) for batch, timing in batches.items()},
            "dense_decode_tokens_s": {batch: rate(batch, timing.dense_ms) for batch, timing in batches.items()},
            "decode_rounds": {
                batch: {name: list(times.samples) for name, times in timing.times.items()} for batch, timing in batches.items()
            },
            "decode_peak_mib": {b: timing.peak_mib for b, timing in batches.items() if timing.peak_mib is not None},
            "decode_failed": {str(batch): reason for batch, reason in self.failed.items()},
            "decode_density": self.density,
            "decode_kernels": list(self.kernels),
            "decode_timing": {batch: timing.timing for batch, timing in batches.items()},
        }


@torch.inference_mode()
def time_decoding(
    loaded: LoadedModel,
    method: Method | None,
    decoding: DecodeMethod | None,
    prompt_ids: Sequence[int],
    *,
    batches: Sequence[int],
    steps: int,
    sparse_kernel: str = "auto",
    dense_kernel: str = "auto",
    decode_kernel: str = "auto",
    repeats: int = 5,
    max_seconds: float = 60.0,
    chunk: int | None = None,
    graph: bool = False,
) -> DecodeTiming:
    """Time greedy decoding after one prompt, of each number of sequences in `batches`, with `decoding` (None: densely alone).

    method: of the prefill, which is not timed; None: dense. graph: replay the steps of a round as a CUDA graph. Each batch runs
    `repeats` rounds or as many as max_seconds allow, at least one; on a GPU two more warm up before. A batch that fails costs
    itself alone: its reason is kept, its memory given back. A failure of the prefill, or of the steps in which the density is
    measured, is the reason of all batches.
    """
    kernels = {"sparse_kernel": sparse_kernel, "dense_kernel": dense_kernel, "decode_kernel": decode_kernel}
    work = _Work(loaded, decoding, tuple(prompt_ids), steps, kernels, repeats, max_seconds, graph)
    with Attempt() as attempt:
        source = _prefilled(work, method, chunk)
        density, ran = _observed(work, source)
    if attempt.error is not None:
        release_frames(attempt.error, loaded.device)
        return DecodeTiming(steps, failed=dict.fromkeys(sorted(batches), attempt.reason))
    timed, failed = {}, {}
    for rows in sorted(batches):
        with Attempt() as attempt:
            timed[rows] = _time_batch(work, source, rows)
        if attempt.error is not None:
            failed[rows] = attempt.reason
            release_frames(attempt.error, loaded.device)
    return DecodeTiming(steps, timed, failed, density, ran)


@dataclass(frozen=True)
class _Work:
    """What all batches have in common: see `time_decoding`. kernels: by the names that a Bridge has for them."""

    loaded: LoadedModel
    decoding: DecodeMethod | None
    prompt_ids: Sequence[int]
    steps: int
    kernels: Mapping[str, Any]
    repeats: int
    max_seconds: float
    graph: bool

    @property
    def columns(self) -> int:
        """Return the tokens in the cache at the end of a round: those of the prompt that was given."""
        return len(self.prompt_ids)

    @property
    def context(self) -> int:
        """Return how many of them are prefilled."""
        return self.columns - FIRST_STEP - self.steps

    @property
    def column_bytes(self) -> int:
        """Return the bytes that the keys and values of one token take."""
        return column_bytes(self.loaded.layer_shapes, self.loaded.dtype.itemsize)

    def bridge(self, *, record: bool) -> Bridge:
        """Return a bridge that decodes with the method of decoding, and prefills nothing."""
        return Bridge(self.loaded, None, record=record, decoding=self.decoding, **self.kernels)


class _Rounds:
    """Rounds of decoding in one cache: `begin` goes back to the end of the prompt and takes the first step, `run` takes those
    that are timed."""

    def __init__(self, work: _Work, cache: BatchCache) -> None:
        self.work, self.cache = work, cache
        shape, device = (cache.rows, 1), work.loaded.device
        self._first = torch.full(shape, work.prompt_ids[work.context], dtype=torch.int64, device=device)
        self._position = torch.full(shape, work.context, dtype=torch.int64, device=device)
        self._token = self._first

    def begin(self) -> None:
        """Go back to the end of the prompt, and take the first step from there. Waits for the device."""
        self.cache.decode()
        self.cache.crop(self.work.context)
        self._token = self._first
        self._step(0)
        sync(self.work.loaded.device)

    def run(self) -> None:
        """Take the steps that follow."""
        for step in range(FIRST_STEP, FIRST_STEP + self.work.steps):
            self._step(step)

    def _step(self, step: int) -> None:
        """Decode one token of every sequence: the most likely one is the next that is given."""
        output = self.work.loaded.model(
            input_ids=self._token,
            position_ids=self._position + step,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._token = output.logits.argmax(-1)


def _prefilled(work: _Work, method: Method | None, chunk: int | None) -> BatchCache:
    """Return a cache of one sequence, with a prompt in it but for the tokens that will be decoded, and room for those. Raises
    UserError where nothing would be left of the prompt."""
    if work.context < 1:
        raise UserError(
            f"a prompt of {work.columns} tokens: it must have more than the {FIRST_STEP + work.steps} that are decoded "
            "(job.decode_steps)"
        )
    _check_room(work, 1)
    ids = torch.tensor([work.prompt_ids[: work.context]], dtype=torch.int64, device=work.loaded.device)
    cache = BatchCache(work.loaded.layers, rows=1, prompt=work.context, columns=work.columns)
    with Bridge(work.loaded, method, record=False, **work.kernels) as bridge:
        prefill_row(work.loaded, ids, cache, None if chunk is None else Chunks(chunk, bridge.chunked))
    return cache


def _observed(work: _Work, source: BatchCache) -> tuple[float | None, tuple[str, ...]]:
    """Decode one round by itself, as what is noted costs time. Returns the density of the steps that are timed later (None for
    dense decoding), and the kernels that ran."""
    rounds = _Rounds(work, source)
    with work.bridge(record=True) as bridge:
        rounds.begin()
        rounds.run()
        ran = tuple(sorted(bridge.decode_kernels))
        if bridge.decoder is None:
            return None, ran
        densities = [row for step in bridge.decoder.take_densities()[FIRST_STEP:] for row in step]
    return (fmean(densities) if densities else None), ran


def _time_batch(work: _Work, source: BatchCache, rows: int) -> BatchTiming:
    """Time the rounds of a batch of `rows` sequences, each a copy of the one in `source`; those of a method of decoding take
    turns with dense ones."""
    device, timing, notice = work.loaded.device, EVENTS, ""
    _check_room(work, rows - 1)  # one sequence decodes in the cache that is there
    rounds = _Rounds(work, source if rows == 1 else source.repeated(rows))
    with work.bridge(record=False) as bridge:
        decoder = bridge.decoder

        def begin_densely() -> None:
            bridge.decoder = None
            rounds.begin()

        def begin() -> None:
            bridge.decoder = decoder
            rounds.begin()

        before: dict[str, Callable[[], None]] = {BASELINE: begin_densely}
        if decoder is not None:
            before[METHOD] = begin
        functions: dict[str, Callable[[], None]] = dict.fromkeys(before, rounds.run)
        peak = None
        for prepare in before.values() if device.type == "cuda" else ():
            prepare()
            peak = peak_mib(rounds.run, device)  # the arm's own is the last
        if work.graph:
            with Attempt() as attempt:
                functions = {
                    name: captured_round(work.loaded.model, first, rounds.run, device) for name, first in before.items()
                }
                timing = GRAPH
            if attempt.error is not None:
                notice = f"timed step by step, as no CUDA graph could be made of it ({attempt.reason})"
                release_frames(attempt.error, device)
        times = take_turns(
            functions,
            device,
            repeats=work.repeats,
            max_seconds=work.max_seconds,
            head_start=timing == GRAPH,
            before=before if timing == EVENTS else None,
        )
    if peak is not None and rows > 1:  # the cache that was copied is no part of it
        peak -= work.columns * work.column_bytes / 2**20
    return BatchTiming(times, peak, timing, notice)


def _check_room(work: _Work, rows: int) -> None:
    """Raise UserError where the keys and values of so many sequences don't fit into what is free: a CPU would swap, or end the
    process."""
    needed, free = rows * work.columns * work.column_bytes, available_bytes(work.loaded.device)
    if free is not None and needed > free:
        raise UserError(
            f"out of memory: keys and values of {rows} more sequences of {work.columns} tokens take {needed / 2**30:.1f} GiB, "
            f"and {free / 2**30:.1f} GiB are free"
        )
