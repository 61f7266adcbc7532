"""MInference's offline search: for each head, the pattern that keeps most of its attention at the same cost."""

from __future__ import annotations

import math
from typing import Any

import torch
from attention_kernels.dense import dense_attention
from attention_kernels.kept_mass import kept_mass
from attention_kernels.sparse_attention import SparseIndex, sparse_attention
from torch import Tensor

from methods.parts.base import Grid, LayerInputs
from methods.parts.head_patterns import Pattern, select_patterns

CANDIDATES = (
    Pattern("a_shape", 100, 800),
    Pattern("vertical_slash", 30, 800),
    Pattern("vertical_slash", 100, 750),
    Pattern("vertical_slash", 500, 700),
    Pattern("vertical_slash", 3500, 100),
    Pattern("block_sparse", 100),
)
"""The patterns that heads choose from, with the budgets of the release."""
REFERENCE = 30_000
"""Tokens of the prompt that the budgets were made for. On shorter ones all budgets shrink in proportion, and stay a choice."""
AFTER = 2500
"""Rows before this one of REFERENCE tokens don't count: they see little that is left out."""
BLOCK_SHARE = 8
"""With the release's budgets, block-sparse is compared at an eighth of a whole row's keys; it runs with its 100 blocks."""
ROWS = 32
"""Query blocks of a prompt that are measured."""
TRIES = 12
"""Densities measured for a candidate, to find the budgets that cost what they should."""


class PatternSearch:
    """Scores every candidate pattern in every head, and gives each head the best.

    score: "mass", the share of true attention that is kept, or "output", minus the relative error of the head's output with
    the real kernel. density: the budgets of each candidate are multiplied, in each head, by the factor that brings it to this
    density, so that all cost the same; a head gets its pattern with the budgets it had then. None: the release's budgets,
    whatever they cost.
    """

    def __init__(self, layers: int, heads: int, *, block: int, score: str, density: float | None) -> None:
        self.block = block
        self.score = score
        self.density = density
        shape = (layers, len(CANDIDATES), heads)
        self.scores, self.densities, self.log_factors = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
        self.prompts = torch.zeros(layers, dtype=torch.int64)

    def observe(self, x: LayerInputs, v: Tensor) -> None:
        """Take in one layer of one prompt, v [B,Hkv,K,D]."""
        q_len, k_len = x.q.shape[2], x.k.shape[2]
        share = min(1.0, k_len / REFERENCE)
        after = min(q_len - 1, max(0, round(AFTER * share) - (k_len - q_len)))
        dense = dense_attention(x.q, x.k, v, scale=x.scale) if self.score == "output" else None
        for number, candidate in enumerate(CANDIDATES):
            index = self._index(x, number, candidate, share)
            self.densities[x.layer, number] += index.density().mean(0).double().cpu()
            if dense is None:
                scores = kept_mass(x.q, x.k, index, scale=x.scale, rows=ROWS, after=after)
            else:
                out = sparse_attention(x.q, x.k, v, index, scale=x.scale)
                wrong, true = ((o[:, :, after:]).float().norm(dim=(-1, -2)) for o in (out - dense, dense))
                scores = -wrong / true
            self.scores[x.layer, number] += scores.mean(0).double().cpu()
        self.prompts[x.layer] += 1

    def _index(self, x: LayerInputs, number: int, candidate: Pattern, share: float) -> SparseIndex:
        """Return the index of heads that all follow one candidate."""
        heads, k_len = x.q.shape[1], x.k.shape[2]
        grid = Grid(q_block=self.block, k_block=self.block, q_len=x.q.shape[2], k_len=k_len)

        def select(factors: list[float]) -> SparseIndex:
            return select_patterns(x, grid, [candidate.scaled(factor) for factor in factors], forced=share)

        if self.density is None:
            blocks = k_len // BLOCK_SHARE / self.block / candidate.first
            return select([blocks if candidate.kind == "block_sparse" else share] * heads)
        low, high = [math.log(1e-3)] * heads, [math.log(1e3)] * heads
        best, nearest = [0.0] * heads, [math.inf] * heads
        for _ in range(TRIES):  # every head by itself, all of them at once
            middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
            for head, density in enumerate(select([math.exp(m) for m in middle]).density().mean(0).tolist()):
                if abs(density - self.density) < nearest[head]:
                    best[head], nearest[head] = middle[head], abs(density - self.density)
                (low if density < self.density else high)[head] = middle[head]
        self.log_factors[x.layer, number] += torch.tensor(best, dtype=torch.float64)
        return select([math.exp(m) for m in best])

    def result(self) -> dict[str, Any]:
        """Return `patterns` [layer][head] as [kind, first, second], the candidates, their scores and their densities.

        Scores [layer][candidate][head] are means over prompts, densities over all heads. A layer never seen, of a sliding
        window, has the first candidate. Raises ValueError where no layer was seen.
        """
        if not bool(self.prompts.any()):
            raise ValueError("no layer was seen: their attention has a sliding window, or no prompt was given")
        prompts = self.prompts.clamp(min=1)[:, None, None]
        scores, densities, logs = (x / prompts for x in (self.scores, self.densities, self.log_factors))
        chosen = scores.argmax(1)  # [layer, head]
        factors = logs.gather(1, chosen[:, None]).squeeze(1).exp().tolist()  # 1 with the release's budgets
        patterns = [
            [CANDIDATES[i].scaled(factor) for i, factor in zip(*layer, strict=True)]
            for layer in zip(chosen.tolist(), factors, strict=True)
        ]
        return {
            "patterns": [[[p.kind, p.first, p.second] for p in layer] for layer in patterns],
            "candidates": [[p.kind, p.first, p.second] for p in CANDIDATES],
            "densities": [round(d, 4) for d in densities[self.prompts > 0].mean((0, 2)).tolist()],
            "scores": [[[round(s, 4) for s in heads] for heads in layer] for layer in scores.tolist()],
            "score": self.score,
            "search_density": self.density,
        }
