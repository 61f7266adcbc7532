"""Generating for the samples of several cells, batch by batch: an error costs the cell it belongs to, never the others.

A step of decoding takes a small model as long as Python takes to launch its kernels, whatever the sequences. So a batch has as
many as its cache and a kill allow (`Todo.first_batch`), and those of one length are prefilled together: so samples go by
length. Where memory does not suffice, what is left goes on in batches half as large. Where a cell's time is up, what is done
stays, and the other cells go on. Where the device takes no more work of this process, nothing goes on. After any other error
prompts are prefilled one by one, as a method or a kernel may take no more; where that doesn't help, the batch runs sample by
sample.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from harness.arms.build import RunnableArm
from harness.core.device_memory import available_bytes, is_device_error, is_out_of_memory, is_usable, release_frames
from harness.core.question import QUESTION_REREAD
from harness.core.time_limit import TimeIsUp, time_limit
from harness.measure.cell_clock import CellClock
from harness.measure.context import RunContext
from harness.models.bridge import Bridge
from harness.models.chunks import Chunks
from harness.models.decoder import mean_density
from harness.models.generate import Generation, Split, batches, generate
from harness.models.layer_shapes import column_bytes
from harness.models.loading import LoadedModel
from harness.study.identity import Cell
from harness.study.resume import Attempt
from harness.tasks import registry
from harness.tasks.sample import Sample
from harness.tasks.tokens import stop_ids, task_stop_ids

CPU_BATCH_TOKENS = 20_480
"""Columns of KV cache decoded together on a CPU: a few samples, so that progress shows and a kill loses little."""
BATCH_SIZE = 64
"""Samples decoded together, as far as memory allows, however long they are."""
LARGEST_BATCH = 256
"""Samples decoded together at most: more is hardly faster, as reading their keys then takes longer than the launches."""
BATCH_COLUMNS = 2**22
"""Columns of more than BATCH_SIZE samples together at most: a kill loses a batch, and long prompts take their time."""
PREFILL_ELEMENTS = 2**25
"""Elements of the hidden states of prompts of one length that are prefilled together at most: beyond that a GPU is busy, and
its memory is needed. At 256 elements a token these are 131,072 tokens, at 4,096 they are 8,192."""
GPU_MEMORY_SHARE = 0.4
"""The share of the free GPU memory that the KV cache of one batch may take."""


@dataclass(frozen=True)
class Todo:
    """Samples to generate for, each with its cell, the token ids of its prompt, and how many of those are the context's
    (`RunContext.contexts`)."""

    pairs: list[tuple[Cell, Sample]]
    prompts: Sequence[Sequence[int]]
    contexts: list[int] | None

    def __getitem__(self, part: slice) -> Todo:
        return Todo(self.pairs[part], self.prompts[part], None if self.contexts is None else self.contexts[part])

    @property
    def cells(self) -> list[str]:
        """Return the id of each sample's cell."""
        return [cell.id for cell, _ in self.pairs]

    def without(self, places: Set[int], cells: Set[str]) -> Todo:
        """Return what is left without the samples at some places, and without those of some cells."""
        stays = [i for i, cell in enumerate(self.cells) if i not in places and cell not in cells]
        contexts = None if self.contexts is None else [self.contexts[i] for i in stays]
        return Todo([self.pairs[i] for i in stays], [self.prompts[i] for i in stays], contexts)

    @property
    def lengths(self) -> list[int]:
        """Return the columns of KV cache that each sequence needs: its prompt and the tokens it may get."""
        return [len(prompt) + sample.max_new_tokens for prompt, (_, sample) in zip(self.prompts, self.pairs, strict=True)]

    def first_batch(self, batch_tokens: int) -> tuple[int, int]:
        """Return the columns of KV cache that the longest sequence of the first batch needs, and how many sequences it has."""
        lengths = self.lengths[:LARGEST_BATCH]
        few = batches(lengths, batch_tokens, BATCH_SIZE)[0]
        many = batches(lengths, min(batch_tokens, BATCH_COLUMNS))[0]
        count = max(few.stop, many.stop)
        return max(lengths[:count]), count

    def by_length(self) -> Todo:
        """Return the samples with those of one length side by side, the longest first: what memory takes them, takes all."""
        places = sorted(range(len(self.prompts)), key=lambda place: -len(self.prompts[place]))
        contexts = None if self.contexts is None else [self.contexts[place] for place in places]
        return Todo([self.pairs[place] for place in places], [self.prompts[place] for place in places], contexts)


@dataclass(frozen=True)
class Answer:
    """What was generated for one sample, and what ran for it (see `schema.SampleRecord`): kernels and densities at prefill
    and at decode, densities None where there was none. context_tokens: of its prompt, where the question came later."""

    cell: Cell
    sample: Sample
    prompt: Sequence[int]
    context_tokens: int | None
    generation: Generation
    kernels: list[str]
    decode_kernels: list[str]
    density: float | None
    token_density: float | None
    decode_density: float | None


@dataclass(frozen=True)
class Batch:
    """The answers to samples that were decoded together, their places among these, and the seconds spent generating them; or an
    error, and the ids of the cells that it costs."""

    answers: list[Answer] = field(default_factory=list)
    places: tuple[int, ...] = ()
    seconds: float = 0.0
    error: Exception | None = None
    failed_cells: Sequence[str] = ()


def todo_of(context: RunContext, pairs: list[tuple[Cell, Sample]]) -> Todo:
    """Return the samples with the tokens of their prompts."""
    samples = [sample for _, sample in pairs]
    return Todo(pairs, context.tokens(samples), context.contexts(samples))


def generate_batches(context: RunContext, arm: RunnableArm, todo: Todo) -> Iterator[Batch]:
    """Generate for all of `todo`, by length; yields each batch when it is done, and each failure with the cells that it costs.
    Ends early where the device is lost. RecordError passes."""
    todo = todo.by_length()
    device, batch_tokens = context.loaded.device, context.batch_tokens or suitable_batch_tokens(context.loaded)
    bridge, prefill_tokens = _bridge(context, arm), suitable_prefill_tokens(context.loaded)
    clock, alone, again = CellClock(context.cell_minutes), 0, False
    while todo.pairs:
        if late := clock.over(todo.cells):
            yield Batch(error=TimeIsUp(), failed_cells=late)
            todo = todo.without(set(), set(late))
            continue
        longest, count = todo.first_batch(1 if alone else batch_tokens)
        began, cells = time.perf_counter(), todo.cells[:count]
        with Attempt() as attempt, time_limit(clock.left(cells)):
            batch = _generate(context, bridge, todo[:count], prefill_tokens)
        clock.take(cells, time.perf_counter() - began)
        if attempt.error is None:
            yield batch
            todo, alone, again = todo.without(set(batch.places), set()), max(0, alone - count), False
            if len(batch.places) == count:
                continue
            clock.end(cells)
        else:
            release_frames(attempt.error, device)
            memory = is_out_of_memory(attempt.error)
            if is_device_error(attempt.error) and not is_usable(device):
                yield Batch(error=attempt.error, failed_cells=tuple(dict.fromkeys(cells)))
                return
            if count > 1 and memory:
                batch_tokens, prefill_tokens = longest * count // 2, prefill_tokens // 2
                context.complain(f"out of memory with {count} samples at once: going on with batches half as large")
            elif count > 1 and prefill_tokens > 1:
                prefill_tokens = 1
            elif count > 1:
                alone = count
            elif memory and not again:
                again = True  # once more: what others held, or the batch before, may be free now
            else:
                yield Batch(error=attempt.error, failed_cells=cells)
                todo, alone, again = todo[1:], max(0, alone - 1), False
        bridge = _bridge(context, arm)  # the old one has seen half a batch


def suitable_batch_tokens(loaded: LoadedModel) -> int:
    """Return how many columns of KV cache to decode together where the user doesn't say: what suits the device."""
    if loaded.device.type != "cuda":
        return CPU_BATCH_TOKENS
    free_bytes = available_bytes(loaded.device) or 0  # what the arm before has left in torch's hands is free too
    return max(1, int(GPU_MEMORY_SHARE * free_bytes / column_bytes(loaded.layer_shapes, loaded.dtype.itemsize)))


def suitable_prefill_tokens(loaded: LoadedModel) -> int:
    """Return how many tokens prompts of one length that are prefilled together may have in all."""
    return max(1, PREFILL_ELEMENTS // int(loaded.model.get_input_embeddings().weight.shape[1]))


def _bridge(context: RunContext, arm: RunnableArm) -> Bridge:
    """Return a bridge for the arm that has seen nothing yet."""
    return Bridge(
        context.loaded,
        arm.method,
        sparse_kernel=context.kernels.sparse,
        dense_kernel=context.kernels.dense,
        decoding=arm.decoding,
        decode_kernel=context.kernels.decode,
    )


def _generate(context: RunContext, bridge: Bridge, todo: Todo, prefill_tokens: int) -> Batch:
    """Return the answers to samples that are decoded together, in their order, those that were done where their time was up.
    The first density of a sequence is its prompt's: one that is prefilled anew while it grows has others after all of
    these."""
    loaded = context.loaded
    samples = [sample for _, sample in todo.pairs]
    reread = context.question == QUESTION_REREAD
    bridge.reset()  # of the batch before
    with bridge:
        began = time.perf_counter()
        try:
            every = generate(
                loaded,
                todo.prompts,
                [sample.max_new_tokens for sample in samples],
                stop_ids=stop_ids(loaded.tokenizer, loaded.model),
                batch_tokens=len(samples) * max(todo.lengths),  # all at once
                own_stops=[task_stop_ids(loaded.tokenizer, registry.get(sample.task).stop) for sample in samples],
                chunks=None if context.chunk is None else Chunks(context.chunk, bridge.chunked),
                split=None if todo.contexts is None else Split(todo.contexts, bridge.in_full, reread=reread),
                prefill_tokens=prefill_tokens,
            )
            generations: Mapping[int, Generation] = dict(enumerate(every))
        except TimeIsUp as late:
            generations = late.finished
        seconds = time.perf_counter() - began  # generation has waited for the device
    densities = bridge.prefill_densities()
    token_densities = bridge.prefill_densities(tokens=True)
    kernels = sorted({name for layer in bridge.stats() for name in layer["kernel"].split("+")})
    steps = [] if bridge.decoder is None else bridge.decoder.take_densities()
    answers = [
        Answer(
            cell,
            sample,
            todo.prompts[row],
            None if todo.contexts is None else todo.contexts[row],
            generation,
            kernels,
            sorted(bridge.decode_kernels),
            densities[row] if densities else None,
            token_densities[row] if token_densities else None,
            mean_density(steps, row, generation.steps),
        )
        for row, generation in generations.items()
        for cell, sample in [todo.pairs[row]]
    ]
    return Batch(answers, tuple(generations), seconds)
