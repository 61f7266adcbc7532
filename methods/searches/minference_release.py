"""MInference's offline search as its release runs it: token by token, at the budgets of the release (score: mass or output).

The first version keeps most of the attention after token 2500: diagonals of single tokens, the nearest 30 of them and the first
30 columns before all others, and for block-sparse an eighth of the blocks of 32 keys. The second runs the kernels, and counts
the elements of the output that are off by more than 5e-3. (search_pattern and search_pattern_v2 in
minference/modules/minference_forward.py of microsoft/MInference.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from attention_kernels.dense import dense_attention
from attention_kernels.last_queries import vertical_slash
from attention_kernels.sparse_attention import sparse_attention
from torch import Tensor

from methods.parts.base import Grid, LayerInputs
from methods.parts.head_patterns import LAST_Q, Pattern, best_of_last, by_release_rules, select_patterns
from methods.parts.release_tiles import with_tiles

A_SHAPE = Pattern("a_shape", 100, 800)
BY_MASS = (
    A_SHAPE,
    *(Pattern("vertical_slash", v, s) for v, s in ((30, 800), (100, 750), (500, 700), (3500, 100))),
    Pattern("block_sparse", 100),
)
BY_OUTPUT = (
    A_SHAPE,
    *(Pattern("vertical_slash", v, s) for v, s in ((30, 800), (100, 800), (100, 750), (500, 700), (3500, 100), (1000, 4096))),
    Pattern("block_sparse", 100),
)
FORCED = 30
"""The first columns, and the nearest diagonals, that are kept before all others while searching; 100 diagonals when it runs."""
AFTER = 2500
"""Queries before this one don't count in the mass."""
SMALL_BLOCK, SMALL_SHARE = 32, 8
"""Block-sparse is compared with an eighth of all blocks of 32 keys in each row; it runs with 100 blocks of 64."""
OFF = 5e-3
"""An element of the output that differs by more than this is counted."""
SCORES = 1 << 25
"""Attention scores held at once; a few arrays of them exist meanwhile."""


class ReleasedSearch:
    """Scores the release's candidates in every head, and gives each head the first of the best, by the release's rules.

    score: "mass", the share of true attention after token 2500 that is kept, or "output", minus the number of elements that are
    off. block: of the kernels that "output" runs. It takes whole prompts, for "mass" of more than 2500 tokens.
    """

    def __init__(self, layers: int, heads: int, *, block: int, score: str) -> None:
        self.block = block
        self.score = score
        self.candidates = BY_MASS if score == "mass" else BY_OUTPUT
        self.scores = torch.zeros(layers, len(self.candidates), heads, dtype=torch.float64)
        self.prompts = torch.zeros(layers, dtype=torch.int64)

    @torch.no_grad()
    def observe(self, x: LayerInputs, v: Tensor) -> None:
        """Take in one layer of one prompt, v [B,Hkv,K,D]. Raises ValueError for one that the release's search can't take."""
        q_len, k_len = x.q.shape[2], x.k.shape[2]
        if q_len != k_len:
            raise ValueError(f"{q_len} queries for {k_len} keys: as released the search takes whole prompts")
        if self.score == "mass" and k_len <= AFTER:
            raise ValueError(
                f"a prompt of {k_len} tokens: as released the search needs more than the {AFTER} that it does not count"
            )
        scores = kept_masses(x) if self.score == "mass" else -self._off(x, v)
        self.scores[x.layer] += scores.double().mean(1).cpu()
        self.prompts[x.layer] += 1

    def _off(self, x: LayerInputs, v: Tensor) -> Tensor:
        """Return how many elements of each head's output are off by each candidate, [C,B,H]."""
        dense = dense_attention(x.q, x.k, v, scale=x.scale)
        grid = Grid(q_block=self.block, k_block=self.block, q_len=x.q.shape[2], k_len=x.k.shape[2])
        counts = []
        for candidate in self.candidates:
            patterns = [candidate.floored()] * x.q.shape[1]
            if candidate.kind == "a_shape":
                out = _a_shape_output(x, v, candidate)
            elif candidate.kind == "block_sparse":
                out = sparse_attention(x.q, x.k, v, select_patterns(x, grid, patterns), scale=x.scale)
            else:
                last = vertical_slash(x.q, x.k, scale=1.0, last_q=LAST_Q)  # the second version does not scale
                index = with_tiles(*best_of_last(*last, patterns, (FORCED, FORCED)), grid)
                out = sparse_attention(x.q, x.k, v, index, scale=x.scale)
            counts.append(((dense - out).abs() > OFF).sum((-1, -2)))
        return torch.stack(counts)

    def result(self) -> dict[str, Any]:
        """Return `patterns` [layer][head] as [kind, first, second], the candidates and their scores [layer][candidate][head].

        Scores are means over prompts. A layer never seen, of a sliding window, has the first candidate. Raises ValueError where
        no layer was seen.
        """
        if not bool(self.prompts.any()):
            raise ValueError("no layer was seen: their attention has a sliding window, or no prompt was given")
        scores = self.scores / self.prompts.clamp(min=1)[:, None, None]
        best = [[by_release_rules(self.candidates[i]) for i in layer] for layer in scores.argmax(1).tolist()]
        return {
            "patterns": [[[p.kind, p.first, p.second] for p in layer] for layer in best],
            "candidates": [[p.kind, p.first, p.second] for p in self.candidates],
            "scores": [[[round(s, 4) for s in heads] for heads in layer] for layer in scores.tolist()],
            "score": self.score,
            "as_released": True,
        }


def kept_masses(x: LayerInputs) -> Tensor:
    """Return the attention after token 2500 that each candidate of the first version keeps, the mean over queries: [C,B,H]."""
    k_len, device = x.k.shape[2], x.q.device
    vertical, slash = vertical_slash(x.q, x.k, scale=x.scale, last_q=LAST_Q)
    chosen = [
        best_of_last(vertical.clone(), slash.clone(), [p] * x.q.shape[1], (FORCED, FORCED))
        for p in BY_MASS
        if p.kind == "vertical_slash"
    ]
    key, small = torch.arange(k_len, device=device), _small_blocks(x)
    sums = torch.zeros(len(BY_MASS), *x.q.shape[:2], device=device)
    for position, probs in _attention(x, AFTER):
        distance = (position[:, None] - key).clamp(min=0)
        sums[0] += (probs * ((key < A_SHAPE.first) | (distance <= A_SHAPE.second))).sum((-1, -2))
        for number, (diagonals, columns, counts) in enumerate(chosen, 1):
            in_count = torch.arange(columns.shape[-1], device=device) < counts[..., None]
            marked = torch.zeros(*columns.shape[:2], k_len + 1, dtype=torch.bool, device=device)
            single = marked.scatter_(-1, torch.where(in_count, columns, k_len).long(), True)[..., :k_len]
            sums[number] += (probs * (single[:, :, None] | diagonals[..., distance])).sum((-1, -2))
        rows = small[:, :, position // SMALL_BLOCK].repeat_interleave(SMALL_BLOCK, -1)[..., :k_len]
        sums[-1] += (probs * rows).sum((-1, -2))
    return sums / (k_len - AFTER)


def _attention(x: LayerInputs, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield positions [R] from `first` on, a few at a time, and their attention [B,H,R,K] in float32."""
    (batch, heads, q_len, _), group = x.q.shape, x.q.shape[1] // x.k.shape[1]
    step = max(1, SCORES // (batch * heads * x.k.shape[2]))
    keys = x.k.float().repeat_interleave(group, 1)
    for begin in range(first, q_len, step):
        position = torch.arange(begin, min(begin + step, q_len), device=x.q.device)
        logits = x.q[:, :, position].float() @ keys.mT * x.scale
        future = torch.arange(x.k.shape[2], device=x.q.device) > position[:, None]
        yield position, logits.masked_fill_(future, float("-inf")).softmax(-1)


def _small_blocks(x: LayerInputs) -> Tensor:
    """Return bool [B,H,N,N], an eighth of the blocks of 32 keys for each 32 queries, by the product of their means.

    What fills up the last block counts as zeros.
    """
    group, short = x.q.shape[1] // x.k.shape[1], -x.k.shape[2] % SMALL_BLOCK
    q, k = (
        torch.nn.functional.pad(t.float(), (0, 0, 0, short)).unflatten(2, (-1, SMALL_BLOCK)).mean(3)
        for t in (x.q, x.k.repeat_interleave(group, 1))
    )
    products = q @ k.mT
    future = torch.ones(products.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    best = products.masked_fill(future, float("-inf")).topk(products.shape[-1] // SMALL_SHARE, dim=-1).indices
    return torch.zeros_like(products, dtype=torch.bool).scatter_(-1, best, True)


def _a_shape_output(x: LayerInputs, v: Tensor, pattern: Pattern) -> Tensor:
    """Return the output [B,H,Q,D] of heads that attend to the first tokens and to a window of the latest, token by token."""
    key, out, values = torch.arange(x.k.shape[2], device=x.q.device), torch.empty_like(x.q), v.float()
    values = values.repeat_interleave(x.q.shape[1] // x.k.shape[1], 1)
    for position, probs in _attention(x, 0):
        seen = (key < pattern.first) | (position[:, None] - key < pattern.second)
        own = probs * seen
        out[:, :, position] = (own / own.sum(-1, keepdim=True) @ values).to(out.dtype)
    return out
