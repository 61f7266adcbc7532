"""What each layer of a model did at prefill: densities, kernels and times, kept on the device until they are asked for."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TypedDict

import torch
from attention_kernels.block_index import causal_pairs, causal_total
from attention_kernels.sparse_attention import SparseIndex
from torch import Tensor

from harness.core.clock import Mark, elapsed_ms
from harness.core.errors import UserError


class LayerStats(TypedDict):
    """What one layer did at prefill since the last reset; decode steps don't count (`Decoder.take_densities`), and of what ran
    in full (`Bridge.in_full`) only the kernel and the call.

    densities: kept ÷ causal blocks, one value for each prompt in the order of calls and of their rows, mean over heads; 1.0
    where dense attention ran; empty for a layer of a sliding window. token_densities: the same of (query, key) pairs. Times are
    medians in milliseconds, None without timer=True.
    """

    layer: int
    calls: int
    density: float | None
    densities: list[float]
    token_densities: list[float]
    kernel: str
    selection_ms: float | None
    attention_ms: float | None


@dataclass(frozen=True)
class ChunkDensity:
    """The densities of one chunk of a prompt, over q_len queries and k_len keys. blocks: tokens of a query and of a key block;
    None for dense attention, whose densities are 1."""

    density: Tensor | float
    token_density: Tensor | float
    q_len: int
    k_len: int
    blocks: tuple[int, int] | None

    @classmethod
    def of(cls, index: SparseIndex | None, q_len: int, k_len: int) -> ChunkDensity:
        """Return those of the index that ran, the mean over batch and heads; None: dense attention."""
        if index is None:
            return cls(1.0, 1.0, q_len, k_len, None)
        blocks = index.q_block, index.k_block
        return cls(index.density().mean(), index.token_density().mean(), q_len, k_len, blocks)


def prompt_densities(chunks: Sequence[ChunkDensity]) -> tuple[Tensor | float, Tensor | float]:
    """Return the density and the token density of a prompt from those of its chunks: what is kept of all of them ÷ what is
    causal in all of them. Does not wait for the device."""
    blocks = next((chunk.blocks for chunk in chunks if chunk.blocks is not None), None)
    if blocks is None:
        return 1.0, 1.0
    causal = [causal_total(chunk.q_len, chunk.k_len, *(chunk.blocks or blocks)) for chunk in chunks]
    pairs = [causal_pairs(chunk.q_len, chunk.k_len) for chunk in chunks]
    density = sum(chunk.density * (n / sum(causal)) for chunk, n in zip(chunks, causal, strict=True))
    return density, sum(chunk.token_density * (n / sum(pairs)) for chunk, n in zip(chunks, pairs, strict=True))


@dataclass
class LayerLog:
    """What one layer's calls leave behind: the densities [B] of each, or of a prompt in chunks one number, on the device where
    they were measured there; the kernels; and marks before and after selection, and after attention."""

    densities: list[Tensor | float] = field(default_factory=list)
    token_densities: list[Tensor | float] = field(default_factory=list)
    chunks: list[ChunkDensity] = field(default_factory=list)
    kernels: Counter[str] = field(default_factory=Counter)
    marks: list[tuple[Mark, Mark, Mark]] = field(default_factory=list)

    def add_density(self, index: SparseIndex | None, rows: int) -> None:
        """Keep the densities of the index that ran for `rows` prompts; None: dense attention, whose density is 1."""
        if index is None:
            self.densities += [1.0] * rows
            self.token_densities += [1.0] * rows
        else:
            self.densities.append(index.density().mean(-1))
            self.token_densities.append(index.token_density().mean(-1))

    def add_chunk(self, index: SparseIndex | None, q_len: int, k_len: int) -> None:
        """Keep the densities of a chunk of a prompt, until `join_chunks`."""
        self.chunks.append(ChunkDensity.of(index, q_len, k_len))

    def join_chunks(self) -> None:
        """Keep the densities of the prompt whose chunks these were, as of one call."""
        if self.chunks:
            density, token_density = prompt_densities(self.chunks)
            self.densities.append(density)
            self.token_densities.append(token_density)
            self.chunks.clear()


def read_log(layer: int, log: LayerLog) -> LayerStats:
    """Return the log of a layer in numbers. Waits for the device, once."""
    measured = [*log.densities, *log.token_densities]
    tensors = [d.reshape(-1) for d in measured if isinstance(d, Tensor)]
    numbers = iter(torch.cat(tensors).tolist() if tensors else [])  # one transfer for all calls
    values = [list(islice(numbers, d.numel())) if isinstance(d, Tensor) else [d] for d in measured]
    densities, token_densities = (
        list(chain.from_iterable(part)) for part in (values[: len(log.densities)], values[len(log.densities) :])
    )
    return LayerStats(
        layer=layer,
        calls=sum(log.kernels.values()),
        density=statistics.fmean(densities) if densities else None,
        densities=densities,
        token_densities=token_densities,
        kernel="+".join(sorted(log.kernels)),
        selection_ms=statistics.median(elapsed_ms(a, b) for a, b, _ in log.marks) if log.marks else None,
        attention_ms=statistics.median(elapsed_ms(b, c) for _, b, c in log.marks) if log.marks else None,
    )


def mean_over_layers(layers: list[list[float]]) -> list[float]:
    """Return the mean over layers of each prompt's density; layers without any, of a sliding window, don't count. Raises
    UserError where layers differ in the number of their calls."""
    layers = [densities for densities in layers if densities]
    if len({len(densities) for densities in layers}) > 1:
        raise UserError(
            "layers with a sliding window were global in some prompts and not in others (the prompts straddle the "
            "window's length): call reset() and prefill_densities() for each prompt"
        )
    return [statistics.fmean(call) for call in zip(*layers, strict=True)]
