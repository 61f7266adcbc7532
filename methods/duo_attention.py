"""DuoAttention: retrieval heads attend to everything, streaming heads to sinks and a window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attention_kernels.block_index import BlockIndex, causal_blocks, causal_total

from methods import register
from methods.parts.base import Grid, HeadSearch, LayerInputs, Method
from methods.parts.head_patterns import merge_heads
from methods.parts.release import Release
from methods.searches.duo_attention_search import StreamingSearch
from methods.streaming_llm import StreamingLLM

SINKS, RECENT = 128, 256
NOISE = 1e-6
"""What the release adds to each number at most, drawn uniformly: numbers closer than this change places."""


@register("duo_attention")
class DuoAttention(Method):
    """Makes each KV head, with its query heads, dense or streaming: a streaming head keeps sinks and a window of latest tokens.

    A number for each KV head of the model says how much it needs the whole context; the heads with the least stream. The
    numbers come from job=search_heads (`duo_attention-heads.json`, required) or from the file `heads`. Heads of equal numbers
    go in an order drawn by the seed, so that they stream all over the model and not in its last layers.

    streaming: share of the model's KV heads that stream, 0.5 unless given. sinks, recent: first and latest tokens that a
    streaming head keeps, rounded up to whole blocks. heads: path of a searched file, or of a released
    full_attention_heads.tsv (rows are layers, columns KV heads). prefill_chunk: tokens of the prompt that are taken in at once,
    32000 in the release's evaluation: streaming heads then see their whole chunk, and sinks and window before it. It doesn't go
    with a sparsity. null: they stream within the prompt.

    With a sparsity the density over all heads of the model is as asked: as many heads are dense as the budget pays beside
    streaming ones, and what it leaves over widens their window. Where even streaming heads alone keep too much, the window
    shrinks. A single layer's density follows from how many of its heads are dense; a layer whose heads are all dense runs the
    dense kernel. Deviation: the search measures the output error of streaming instead of learning the numbers.
    """

    paper = "DuoAttention, arXiv 2410.10819"
    knob = "streaming"
    family = "static"
    searched = "duo_attention-heads.json"
    search_required = True
    release = Release(
        "mit-han-lab/duo-attention",
        source="scripts/longbench.sh",
        settings={"sinks": 64, "recent": 256},
        density={"streaming": 0.5},
        quirks={
            "heads whose numbers are closer than 1e-6 change places by a draw of the seed": "duo_attn/utils.py",
            "the dense heads are those at or above numpy's quantile: rounding may make one fewer": "duo_attn/utils.py",
        },
    )
    shared = True
    """Whether the query heads of a KV head have one index."""

    def __init__(
        self,
        *,
        block_size: int = 64,
        sparsity: float | None = None,
        seed: int = 0,
        streaming: float | None = None,
        sinks: int = SINKS,
        recent: int = RECENT,
        heads: str | None = None,
        prefill_chunk: int | None = None,
    ) -> None:
        super().__init__(block_size=block_size, sparsity=sparsity, seed=seed)
        self.one_of(streaming=streaming)
        if streaming is not None and not 0 <= streaming <= 1:
            raise ValueError(f"streaming={streaming}: must be a share of the KV heads, 0 to 1")
        if sinks < 0 or recent < 1:
            raise ValueError(f"sinks={sinks}, recent={recent}: must be at least 0 and 1 tokens")
        self.one_of(prefill_chunk=prefill_chunk)
        if prefill_chunk is not None and prefill_chunk < 1:
            raise ValueError(
                f"prefill_chunk={prefill_chunk}: must be at least 1 token, or null (heads stream within the prompt)"
            )
        self.streaming = 0.5 if streaming is None and sparsity is None else streaming
        self.sinks = sinks
        self.recent = recent
        self.heads = heads
        self.prefill_chunk = prefill_chunk
        self.ranks: tuple[tuple[int, ...], ...] | None = None
        self.ties = False
        """Whether heads of the file have equal numbers."""

    def search_file(self) -> str | None:
        return self.heads or self.searched

    def search(self, *, layers: int, heads: int, kv_heads: int, head_dim: int) -> HeadSearch:
        return StreamingSearch(layers, kv_heads, self.streaming_part())

    def draw_search(
        self, generator: torch.Generator, *, layers: int, heads: int, kv_heads: int, head_dim: int
    ) -> dict[str, Any]:
        return {"heads": torch.rand(layers, kv_heads, generator=generator).tolist()}

    def load_search(self, result: Mapping[str, Any], *, layers: int, heads: int, kv_heads: int, head_dim: int) -> None:
        try:
            needs = [[_number(number) for number in layer] for layer in result["heads"]]
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError('it has no "heads": a list of numbers for each layer, one for each KV head') from None
        if len(needs) != layers or not any(needs) or any(len(layer) not in (0, kv_heads) for layer in needs):
            sizes = ", ".join(map(str, sorted({len(layer) for layer in needs})))
            raise ValueError(f"it is of {len(needs)} layers of {sizes} KV heads, not {layers} of {kv_heads}")
        if not all(math.isfinite(number) for layer in needs for number in layer):
            raise ValueError("its numbers must be finite")
        draws = np.random.RandomState(self.seed).uniform(size=(layers, kv_heads)).tolist()
        if self.as_released:
            needs = [[min(max(number, 0.0), 1.0) for number in layer] for layer in needs]
        order = sorted(
            (-(number + NOISE * draws[at][head]) if self.as_released else -number, -draws[at][head], at, head)
            for at, layer in enumerate(needs)
            for head, number in enumerate(layer)
        )
        places = {(at, head): place for place, (_, _, at, head) in enumerate(order)}
        self.ranks = tuple(tuple(places[at, head] for head in range(len(layer))) for at, layer in enumerate(needs))
        numbers = [number for layer in needs for number in layer]
        self.ties = len(set(numbers)) < len(numbers)

    def streaming_part(self, sparsity: float | None = None) -> StreamingLLM:
        """Return the method of the streaming heads: sinks and window, or as many blocks as a sparsity leaves."""
        window = self.recent if sparsity is None else None
        return StreamingLLM(block_size=self.block_size, sparsity=sparsity, window=window, sinks=self.sinks)

    def split(self, grid: Grid) -> tuple[int, float | None]:
        """Return how many of the model's KV heads are dense, and the sparsity of the others (None: sinks and window)."""
        total = sum(len(layer) for layer in self._ranks())
        if self.sparsity is None:
            assert self.streaming is not None
            if self.as_released and 0 < self.streaming < 1:  # those at or above a quantile between the numbers
                return total - math.ceil(self.streaming * (total - 1) - 1e-9), None
            return total - round(self.streaming * total), None
        share = (1 - self.sparsity) * total
        native = _streaming_density(-(-self.sinks // self.block_size) + -(-self.recent // self.block_size), **grid)
        # m dense heads and total - m that stream natively cost m + (total - m) * native, of which `share` pays:
        dense = 0 if native >= 1 else max(0, min(total - 1, math.floor((share - total * native) / (1 - native) + 1e-9)))
        return dense, 1 - (share - dense) / (total - dense)

    @torch.no_grad()
    def select(self, x: LayerInputs) -> BlockIndex | None:
        grid, (batch, kv_heads) = self.grid(x), x.k.shape[:2]
        if self.sparsity == 0:
            return BlockIndex.full(batch, kv_heads, device=x.q.device, **grid)
        ranks = self._ranks()[x.layer]
        dense, sparsity = self.split(self.prompt_grid(x))
        full = [head for head, rank in enumerate(ranks) if rank < dense]
        narrow = [head for head in range(kv_heads) if head not in full]
        if not narrow:
            return None
        if self.prefill_chunk is None:
            streaming = self.streaming_part(None if sparsity is None else min(max(sparsity, 0.0), 1 - 1e-9)).select(x)
        else:
            one = _chunked(self.prefill_chunk, self.sinks, self.recent, device=x.q.device, **grid)
            counts, indices = (part.expand(batch, kv_heads, *part.shape[2:]).contiguous() for part in (one.counts, one.indices))
            streaming = replace(one, counts=counts, indices=indices)
        if not full:
            return streaming
        dense_index = BlockIndex.full(batch, len(full), device=x.q.device, **grid)
        heads = slice(len(narrow))  # streaming is the same in every head
        narrow_index = replace(streaming, counts=streaming.counts[:, heads], indices=streaming.indices[:, heads])
        return merge_heads([(full, dense_index), (narrow, narrow_index)], kv_heads)

    def _ranks(self) -> tuple[tuple[int, ...], ...]:
        if self.ranks is None:
            raise ValueError(
                f"method {self.name} has no numbers of heads: load {self.searched} first, which "
                f"`python -m harness job=search_heads method={self.name}` makes"
            )
        return self.ranks

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        heads = None if self.heads is None else Path(self.heads).name  # a row tells the file by its hash
        knobs = {"streaming": self.streaming, "sinks": self.sinks, "recent": self.recent, "heads": heads}
        knobs |= {"prefill_chunk": self.prefill_chunk}
        return knobs | ({"ties": "seeded"} if self.ties else {})  # rows of files without ties are as before there was an order


def _number(value: Any) -> float:
    """Return a number of JSON. Raises ValueError for a word or a truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return float(value)


@lru_cache(maxsize=64)
def _streaming_density(blocks: int, q_block: int, k_block: int, q_len: int, k_len: int) -> float:
    """Return the density of rows that keep so many blocks, or all causal blocks where they are fewer."""
    total = causal_blocks(q_len, k_len, q_block, k_block).clamp(max=blocks).sum()
    return float(total) / causal_total(q_len, k_len, q_block, k_block)


@lru_cache(maxsize=16)
def _chunked(
    chunk: int, sinks: int, recent: int, q_block: int, k_block: int, q_len: int, k_len: int, device: torch.device
) -> BlockIndex:
    """Return the index, of a batch of one and one head, of rows that see their chunk, and sinks and window before it.

    It depends on no token, so it is kept for the next call: read it only.
    """
    start = torch.arange(-(-q_len // q_block))[:, None] * q_block + k_len - q_len
    key = torch.arange(-(-k_len // k_block)) * k_block  # of each block, the first
    mask = (key < sinks) | (key + k_block > start // chunk * chunk - recent)
    with torch.inference_mode(False):  # a tensor made in inference mode could not take part in training later
        return BlockIndex.from_mask(mask[None, None], q_block=q_block, k_block=k_block, q_len=q_len, k_len=k_len).to(device)


if __name__ == "__main__":
    from methods.parts.demo import demo

    # the defaults are for prompts of many thousands of tokens; half of all heads stream, as without a sparsity
    demo("duo_attention", sparsity=None, sinks=32, recent=64)
