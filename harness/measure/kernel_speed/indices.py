"""Block indices to time kernels with: drawn at random, or selected by a method on the activations of a real prompt.

Blocks that a method selects cluster (sinks, neighbours, the same blocks in rows that follow each other) and random ones
don't, so caches serve them differently: that is the reason to time both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.selection import select_topk
from torch import Tensor
from torch.nn.functional import pad

from harness.arms.build import build_arms
from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.measure.kernel_speed.cases import SHARED, UNIFORM
from harness.measure.kernel_speed.options import standard_knobs
from harness.models.length_check import check_length
from harness.models.loading import LoadedModel
from harness.models.observe import dense_prefill, layer_inputs
from harness.tasks.haystack import haystack_source, load_haystack
from methods.parts.base import Method
from methods.parts.row_budgets import budget_with_full_rows
from methods.random_blocks import hashed_uniform

Wish = tuple[str, int, float, int]
"""An index that a model is to select: its kind, block size, sparsity and full last rows (`Case.last`)."""


def random_index(
    *,
    batch: int,
    heads: int,
    q_len: int,
    k_len: int,
    block: int,
    sparsity: float,
    seed: int,
    device: torch.device,
    last: int = 0,
) -> BlockIndex:
    """Draw random causal blocks, anew for each sequence and head, the diagonal among them; row budgets make the density
    1 - sparsity, the `last` rows in full with it, or as many as half of it pays.

    For the first sequence it is what the method "random" selects in layer 0. One head at a time: scores of all heads
    would be 8 GiB at 512k tokens in blocks of 64.
    """
    grid = {"q_len": q_len, "k_len": k_len, "q_block": block, "k_block": block}
    full, budget = budget_with_full_rows(1 - sparsity, last, **grid)
    rows = torch.arange(k_len - q_len, k_len, block, device=device)
    columns = -(-k_len // block)
    parts = [
        select_topk(hashed_uniform(seed, sample, head, rows, columns)[None, None], budget, full_rows=full, **grid)
        for sample in range(batch)
        for head in range(heads)
    ]
    counts, indices = _stacked(parts)
    return replace(parts[0], counts=counts.unflatten(0, (batch, heads)), indices=indices.unflatten(0, (batch, heads)))


def deal(parts: Sequence[BlockIndex], heads: int) -> BlockIndex:
    """Return an index of `heads` heads: the lists of all (layer, head) of `parts`, each of batch 1, dealt out in turn, over and
    over."""
    counts, indices = _stacked(parts)
    dealt = torch.arange(heads, device=counts.device) % len(counts)
    return replace(parts[0], counts=counts[dealt][None].contiguous(), indices=indices[dealt][None].contiguous())


def _stacked(parts: Sequence[BlockIndex]) -> tuple[Tensor, Tensor]:
    """Return counts [N, Mq] and indices [N, Mq, widest] of all heads of all parts."""
    widest = max(part.indices.shape[-1] for part in parts)
    counts = torch.cat([part.counts.flatten(0, 1) for part in parts])
    return counts, torch.cat([pad(part.indices, (0, widest - part.indices.shape[-1])).flatten(0, 1) for part in parts])


class ModelIndices:
    """Indices that methods select in a dense prefill of prose by the model of the settings, at every layer and head.

    One prefill a length, for all methods, block sizes and sparsities; those of the last length are kept. Only the lists are
    taken: queries, keys and values of the timing are those of the shape, random.
    """

    def __init__(self, settings: Settings, loaded: LoadedModel) -> None:
        self.settings, self.loaded = settings, loaded
        self.text = load_haystack(haystack_source(settings.data))
        self._methods: dict[Wish, Method] = {}
        self._length = 0
        self._selected: dict[Wish, list[BlockIndex]] = {}

    def check(self, wishes: Sequence[Wish]) -> None:
        """Build the methods and load their weights. Raises UserError where one is missing."""
        for wish in wishes:
            self._method(wish)

    def prefill(self, length: int, wishes: Sequence[Wish]) -> None:
        """Make the indices of one length. Raises UserError where the model can't read so much."""
        check_length(self.loaded, length, f"no blocks are selected at {length} tokens")
        self._length, self._selected = length, {wish: [] for wish in wishes}
        methods = {wish: self._method(wish) for wish in wishes}

        def observe(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
            for wish, method in methods.items():
                index = method.select(layer_inputs(self.loaded, method, layer, q, k, scale))
                if isinstance(index, BlockIndex):
                    self._selected[wish].append(index)

        dense_prefill(self.loaded, [self.prompt(length)], observe)

    def get(self, length: int, wish: Wish, heads: int) -> BlockIndex:
        """Return an index that `prefill` made, dealt out to `heads` heads. Raises UserError where there is none."""
        if self._length != length or not self._selected.get(wish):
            raise UserError(f"{self.loaded.name} selected no blocks at {length} tokens")
        return deal(self._selected[wish], heads)

    def prompt(self, length: int) -> list[int]:
        """Return the first `length` tokens of the prose, as the model's tokenizer begins a prompt."""
        words = length
        while True:
            ids: list[int] = self.loaded.tokenizer(self.text.text(words))["input_ids"]
            if len(ids) >= length:
                return ids[:length]
            words *= 2

    def about(self) -> dict[str, Any]:
        """Return what the indices depend on, for a record."""
        return {"model": self.loaded.name, "model_hash": self.loaded.revision_hash, "haystack": self.text.name}

    def _method(self, wish: Wish) -> Method:
        """Return the method of an index kind with its weights, built once."""
        if wish not in self._methods:
            kind, block, sparsity, last = wish
            name = kind.removesuffix(SHARED)
            settings = replace(
                self.settings,
                method=name,
                method_knobs=standard_knobs(name, kind.endswith(SHARED), last),
                block_size=block,
                sparsity=sparsity,
                as_released=False,
                kernel="auto",
                dense_kernel="auto",
            )
            method = build_arms(settings, self.loaded)[-1].method
            assert method is not None  # the options let no method of the baseline's family through
            self._methods[wish] = method.to(self.loaded.device)
        return self._methods[wish]


def of_model(kind: str) -> bool:
    """Return whether an index kind needs a model."""
    return kind.removesuffix(SHARED) != UNIFORM
