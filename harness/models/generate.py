"""Greedy generation: prompts are prefilled alone or with others of the same length, then many are decoded together.

Never with padding, which a selection must not see, and because the accuracy of a prompt must not depend on its neighbours
(where RoPE depends on the length, `harness.models.rope_lengths` sees to that). Together, because a short prompt's prefill
waits for Python to launch its kernels; the rows differ from those of prompts alone by no more than the rounding of products
of other shapes. Each prefill writes its keys and values straight into the batch's cache, right-aligned, so decoding needs no
copy: the newest token of every sequence lies in the same column, and a key mask hides the columns before its first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from harness.core.clock import Mark, elapsed_ms, mark, sync
from harness.core.errors import UserError
from harness.core.time_limit import TimeIsUp
from harness.models.batch_cache import BatchCache
from harness.models.chunks import Chunks, last_chunk
from harness.models.length_check import check_length
from harness.models.loading import LoadedModel
from harness.models.recompute import recomputed_lengths
from harness.models.rope_lengths import frequencies_of

CHECK_EVERY = 8
"""Decode steps on a GPU between two looks at whether all samples have stopped: each look waits for the device."""


@dataclass(frozen=True)
class Generation:
    """What came after one prompt: the token ids without the stop id, seconds of prefill (of prompts prefilled together an equal
    share), and whether it stopped. finite: whether the best logit was a finite number at every one of these tokens; where not,
    the tokens mean nothing."""

    ids: list[int]
    prefill_s: float
    stopped: bool
    finite: bool = True

    @property
    def steps(self) -> int:
        """Return the decode steps that made its tokens, the stop id with them; the first token comes from the prefill."""
        return max(0, len(self.ids) + self.stopped - 1)


@dataclass(frozen=True)
class Split:
    """Prompts that are prefilled in two pieces: the context alone, then the question, what is left of the prompt, with full
    attention to all of it.

    contexts: tokens of each prompt's context, at least 1 and fewer than the prompt has. in_full: what makes attention full
    while it lasts (`Bridge.in_full`). reread: the first piece is the whole prompt; the keys and values of the question are
    dropped then, and the second piece makes them again.
    """

    contexts: Sequence[int]
    in_full: Callable[[], AbstractContextManager[None]]
    reread: bool = False


@dataclass(frozen=True)
class _Pieces:
    """How the prompts of a batch are prefilled: see `generate`."""

    split: Split | None
    chunks: Chunks | None
    prefill_tokens: int

    def together(self, lengths: Sequence[int], not_first: Sequence[list[int]]) -> list[range]:
        """Return the rows that are prefilled together: of one length, with the same tokens that may not come first."""
        if self.split is not None or self.chunks is not None:
            return [range(row, row + 1) for row in range(len(lengths))]
        ranges: list[range] = []
        start = 0
        for (length, _), group in groupby(zip(lengths, not_first, strict=True)):
            stop, most = start + sum(1 for _ in group), max(1, self.prefill_tokens // length)
            ranges += [range(row, min(row + most, stop)) for row in range(start, stop, most)]
            start = stop
        return ranges


def generate(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    max_new: Sequence[int] | int,
    *,
    stop_ids: set[int],
    batch_tokens: int,
    batch_size: int | None = None,
    own_stops: Sequence[frozenset[int]] | None = None,
    on_batch: Callable[[int, list[Generation]], None] | None = None,
    ended: Callable[[list[int]], bool] | None = None,
    split: Split | None = None,
    chunks: Chunks | None = None,
    prefill_tokens: int = 1,
) -> list[Generation]:
    """Continue each prompt (token ids) greedily by up to max_new tokens, or until one of stop_ids.

    ended(ids) says of the new tokens of a sequence that no more are needed (a stop word is among them, say). It is asked now
    and then, so more tokens than that may come, for the caller to cut.

    Sequences are decoded together as long as their caches hold at most batch_tokens columns, counted as sequences ×
    longest, and they are at most batch_size; a longer one is decoded by itself. own_stops are more stop ids for each
    prompt; one that has some gets no stop id, of either kind, as its first token (transformers' min_new_tokens=1).
    on_batch(i, generations) is called when the batch that begins with prompt i is done, in the order of the prompts.
    split: prefill the prompts in two pieces (see Split); tokens and positions are the same. chunks: prefill them, or of two
    pieces the first, in chunks. prefill_tokens: neighbouring prompts of one length are prefilled together as far as they have
    so many tokens in all; in pieces each runs alone.
    Raises UserError for an empty prompt, one that doesn't fit the model's max_length, or a context that isn't part of one;
    TimeIsUp where a `time_limit` is over, with the generations of the prompts that were done, by their places.
    """
    limits = [max_new] * len(prompts) if isinstance(max_new, int) else list(max_new)
    stops = list(own_stops) if own_stops is not None else [frozenset()] * len(prompts)
    _check(loaded, prompts, limits, stops, batch_tokens, split)
    results: list[Generation] = []
    for batch in batches([len(p) + m for p, m in zip(prompts, limits, strict=True)], batch_tokens, batch_size):
        part = slice(batch.start, batch.stop)
        batch_split = None if split is None else replace(split, contexts=split.contexts[part])
        pieces = _Pieces(batch_split, chunks, prefill_tokens)
        try:
            generations = _generate_batch(loaded, prompts[part], limits[part], stop_ids, stops[part], ended, pieces)
        except TimeIsUp as late:
            done = {batch.start + row: generation for row, generation in late.finished.items()}
            raise TimeIsUp(dict(enumerate(results)) | done) from late
        results += generations
        if on_batch is not None:
            on_batch(batch.start, generations)
    return results


def _check(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    limits: list[int],
    own_stops: list[frozenset[int]],
    batch_tokens: int,
    split: Split | None,
) -> None:
    """Raise UserError for lists of different lengths, or a prompt that can't be continued."""
    if len(limits) != len(prompts):
        raise UserError(f"max_new has {len(limits)} values for {len(prompts)} prompts: give one each, or one number")
    if len(own_stops) != len(prompts):
        raise UserError(f"own_stops has {len(own_stops)} sets for {len(prompts)} prompts: give one each, or none at all")
    if split is not None and len(split.contexts) != len(prompts):
        raise UserError(f"split has {len(split.contexts)} contexts for {len(prompts)} prompts: give one each")
    if batch_tokens < 1:
        raise UserError(f"batch_tokens={batch_tokens}: must be at least 1")
    for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        if not prompt or limit < 1:
            raise UserError(f"prompt {i}: {len(prompt)} tokens and max_new={limit}; both must be at least 1")
        advice = "use a smaller length= or a model made for longer text"
        check_length(loaded, len(prompt) + limit, f"prompt {i}: {len(prompt)} tokens and {limit} new ones", advice=advice)
        if split is not None and not 0 < split.contexts[i] < len(prompt):
            raise UserError(f"prompt {i}: a context of {split.contexts[i]} of {len(prompt)} tokens; both parts need at least 1")


def batches(lengths: list[int], batch_tokens: int, batch_size: int | None = None) -> list[range]:
    """Return the batches of prompts that need `lengths` columns each: ranges of neighbours, at least one prompt each.

    A batch has at most batch_size prompts, and count × longest stays within batch_tokens.
    """
    ranges, start, longest = [], 0, 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        count = i - start + 1
        if i > start and (count * longest > batch_tokens or count > (batch_size or count)):
            ranges.append(range(start, i))
            start, longest = i, length
    return [*ranges, range(start, len(lengths))] if lengths else []


@torch.inference_mode()
def _generate_batch(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    limits: list[int],
    stop_ids: set[int],
    own_stops: list[frozenset[int]],
    ended: Callable[[list[int]], bool] | None,
    pieces: _Pieces,
) -> list[Generation]:
    lengths = [len(p) for p in prompts]
    longest, steps = max(lengths), max(limits)
    cache = BatchCache(loaded.layers, rows=len(prompts), prompt=longest, columns=longest + steps - 1)
    stops = _stop_tensor([stop_ids | own for own in own_stops], loaded.device)
    not_first = [sorted(stop_ids | own) if own else [] for own in own_stops]
    ids = _to_device([token for prompt in prompts for token in prompt], loaded.device).split(lengths)
    first, finite, marks = _prefill(loaded, ids, cache, not_first, pieces)

    def again(row: int, new: Tensor) -> tuple[Tensor, Tensor]:
        result = _prefill_rows(loaded, torch.cat((ids[row], new))[None], cache, row, None, pieces)
        cache.decode()
        return result

    out, finite, late = _decode(loaded, cache, first, finite, lengths, limits, stops, ended, again)
    sync(loaded.device)
    generations = [
        _trim(row[:limit], stop_ids | own, elapsed_ms(start, end) / 1e3 / rows, ok)
        for row, limit, own, (start, end, rows), ok in zip(out.tolist(), limits, own_stops, marks, finite.tolist(), strict=True)
    ]
    if late is not None:
        raise TimeIsUp({row: generations[row] for row, unfinished in enumerate(late.tolist()) if not unfinished})
    return generations


def _prefill(
    loaded: LoadedModel, ids: Sequence[Tensor], cache: BatchCache, not_first: list[list[int]], pieces: _Pieces
) -> tuple[Tensor, Tensor, list[tuple[Mark, Mark, int]]]:
    """Run the prompts as `pieces` says. Returns the first new token of each [B], which is none of `not_first`, whether its
    logit is finite [B], and of each the marks around its prefill, with how many prompts that was of."""
    first, finite, marks = [], [], []
    for rows in pieces.together([len(prompt) for prompt in ids], not_first):
        began = mark(loaded.device)
        banned = _to_device(not_first[rows.start], loaded.device) if not_first[rows.start] else None
        prompts = torch.stack([ids[row] for row in rows]) if len(rows) > 1 else ids[rows.start][None]
        token, is_finite = _prefill_rows(loaded, prompts, cache, rows.start, banned, pieces)
        first.append(token)
        finite.append(is_finite)
        marks += [(began, mark(loaded.device), len(rows))] * len(rows)
    return torch.cat(first), torch.cat(finite), marks


def _prefill_rows(
    loaded: LoadedModel, ids: Tensor, cache: BatchCache, row: int, banned: Tensor | None, pieces: _Pieces
) -> tuple[Tensor, Tensor]:
    """Run prompts of one length, ids [n,N], those of `row` and after; one alone where it runs in pieces. Returns what `_next`
    does."""
    count, length = ids.shape
    cache.prefill(row, length, rows=count)
    split, chunks = pieces.split, pieces.chunks
    if split is None and chunks is None:
        return _next(loaded, ids, cache, banned)
    first = ids if split is None or split.reread else ids[:, : split.contexts[row]]
    with frequencies_of(loaded.model, length):  # all pieces are of one prompt
        with last_chunk(loaded, first, cache, chunks) as last:
            result = _next(loaded, last, cache, banned)
        if split is None:
            return result
        context = split.contexts[row]  # the first piece is there for the keys and values that it leaves in the cache
        cache.crop_prompt(context)
        with split.in_full():
            return _next(loaded, ids[:, context:], cache, banned)


def _decode(
    loaded: LoadedModel,
    cache: BatchCache,
    token: Tensor,
    finite: Tensor,
    lengths: list[int],
    limits: list[int],
    stops: Tensor,
    ended: Callable[[list[int]], bool] | None,
    again: Callable[[int, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Decode step by step. Returns tokens [B, steps that were run], the first of them being `token`, whether all logits
    were finite [B], as `finite` says of the first, and which sequences were not done when their time was up [B], None where
    all were.

    What follows one of its row's stop ids (`stops` [B, S]) or a limit is meaningless, and does not count as finite or not.
    again(row, new tokens) prefills a whole sequence anew, where transformers' generate would, and returns what `_next` does.
    """
    device, longest, steps = loaded.device, max(lengths), max(limits)
    cache.decode()
    out = torch.zeros(len(lengths), steps, dtype=torch.int64, device=device)
    position, limit = _to_device(lengths, device), _to_device(limits, device)
    recomputed = recomputed_lengths(loaded.model)
    key_mask = None
    if min(lengths) < longest:
        columns = torch.arange(longest + steps, device=device)
        key_mask = columns[None] >= (longest - position)[:, None]
    done = torch.zeros(len(lengths), dtype=torch.bool, device=device)
    check_every = CHECK_EVERY if device.type == "cuda" or ended is not None else 1
    for step in range(steps):
        out[:, step] = token
        done |= (token[:, None] == stops).any(-1) | (limit <= step + 1)
        if step + 1 == steps:
            break
        if step % check_every == check_every - 1:
            if ended is not None:
                done |= _have_ended(out[:, : step + 1], done, ended)
            if bool(done.all()):
                break
        mask = None if key_mask is None else key_mask[:, : longest + step + 1]
        mask_and_positions = {"attention_mask": mask, "position_ids": (position + step)[:, None]}
        try:
            token, is_finite = _next(loaded, token[:, None], cache, **mask_and_positions)
            for row in [row for row, length in enumerate(lengths) if length + step in recomputed and not done[row]]:
                token[row : row + 1], is_finite[row : row + 1] = again(row, out[row, : step + 1])
        except TimeIsUp:
            return out[:, : step + 1], finite, ~done
        finite = finite & (is_finite | done)
    return out[:, : step + 1], finite, None


def _have_ended(out: Tensor, done: Tensor, ended: Callable[[list[int]], bool]) -> Tensor:
    """Return which of the sequences [B, steps] need no more tokens, those that are `done` aside: [B]. Waits for the device."""
    pairs = zip(out.tolist(), done.tolist(), strict=True)
    return torch.tensor([not over and ended(row) for row, over in pairs], device=out.device)


def _next(loaded: LoadedModel, ids: Tensor, cache: Cache, banned: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Return the most likely next token [B] after ids [B,Q] that is none of banned, and whether its logit is finite [B]: argmax
    finds a NaN first."""
    logits = loaded.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **kwargs).logits[:, -1]
    if banned is not None:
        logits = logits.index_fill(-1, banned, float("-inf"))
    token = torch.argmax(logits, dim=-1)
    return token, logits.gather(-1, token[:, None])[:, 0].isfinite()


def _stop_tensor(stop_ids: list[set[int]], device: torch.device) -> Tensor:
    """Return the stop ids of every row [B, S]; a row with fewer is filled with -1, which is no token."""
    most = max(map(len, stop_ids))
    rows = [sorted(ids) + [-1] * (most - len(ids)) for ids in stop_ids]
    return torch.tensor(rows, dtype=torch.int64, device=device).view(len(stop_ids), most)


def _trim(row: list[int], stop_ids: set[int], prefill_s: float, finite: bool) -> Generation:
    """Return the generation of one sequence: its tokens up to the first stop id."""
    end = next((i for i, token in enumerate(row) if token in stop_ids), None)
    return Generation(row[:end], prefill_s, stopped=end is not None, finite=finite)


def _to_device(values: list[int], device: torch.device) -> Tensor:
    """Return an int64 tensor on the device. It is pinned on the way to a GPU, so that the copy doesn't wait for queued work."""
    tensor = torch.tensor(values, dtype=torch.int64)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
