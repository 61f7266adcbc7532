"""How well gates find the blocks that matter, before any task is run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TypedDict

import torch
from attention_kernels.block_index import BlockIndex, causal_blocks, diagonal_start
from attention_kernels.block_map import log_sum_exp
from attention_kernels.selection import row_budget, select_topk
from torch import Tensor

from harness.core.errors import UserError
from harness.models.loading import LoadedModel
from harness.models.rope import ModelRope
from harness.training.gates.capture import Capture
from harness.training.gates.target_map import gate_grid, true_map
from methods.gates.gate import Gate
from methods.parts.base import Grid

DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05)

PART = 1 << 27
"""Elements of a map from which blocks are chosen at once; each takes about 30 bytes meanwhile, and a map of single queries
has a billion."""

SAMPLED_ROWS = 256
"""Rows of a head's map at most that tell its recall while training: choosing blocks in all rows of a long text takes longer
than its loss, and where rows are single queries, longer than the model."""


class Recall(TypedDict):
    """One layer at one density, mean over sequences, heads and query blocks.

    recall: share of the k truly best blocks that are among the gate's best k, the diagonal block, which all selections
    keep, counted in; chance: what random blocks beside the diagonal would reach. kept_mass: share of the attention
    that falls on the gate's blocks; oracle_mass: on the best blocks there are; kept_ratio: the first ÷ the second.
    heads: recall of each head of the gate, heads_kept: its kept_ratio.
    """

    layer: int
    density: float
    recall: float
    chance: float
    kept_mass: float
    oracle_mass: float
    kept_ratio: float
    tokens: int
    sequences: int
    heads: list[float]
    heads_kept: list[float]


def recall_rows(truth: BlockIndex, guess: BlockIndex) -> Tensor:
    """Return |guess ∩ truth| ÷ |truth| of every row: [B,H,Mq] float32."""
    both = truth.to_mask() & guess.to_mask()
    return both.sum(-1) / truth.counts


def chance(budget: tuple[int, ...], causal: Tensor) -> float:
    """Return the expected recall of a random choice of `budget` blocks of `causal` [Mq], the diagonal always among them."""
    k, c = torch.tensor(budget).double(), causal.double()
    return float(((1 + (k - 1).square() / (c - 1).clamp(min=1)) / k).mean())


def sampled_recall(truth: Tensor, guess: Tensor, density: float, grid: Grid) -> Tensor:
    """Return the mean of recall_rows over SAMPLED_ROWS evenly spaced rows of two maps [B,H,Mq,Nk], on their device."""
    rows, counts, width, causal, diagonal = _sampled_rows(density, SAMPLED_ROWS, truth.device, **grid)

    def best(scores: Tensor) -> Tensor:
        ranks = scores[:, :, rows].masked_fill_(diagonal, float("inf")).masked_fill_(~causal, float("-inf"))
        return ranks.topk(width).indices

    guessed, filled = best(guess), torch.arange(width, device=truth.device) < counts[:, None]
    among_best = torch.zeros(*truth.shape[:2], *causal.shape, dtype=torch.bool, device=truth.device)
    among_best.scatter_(-1, best(truth), filled.expand(guessed.shape))
    return ((among_best.gather(-1, guessed) & filled).sum(-1) / counts).mean()


@cache  # as many as a training has lengths; a CUDA graph reads them by their address
def _sampled_rows(
    density: float, most: int, device: torch.device, *, q_block: int, k_block: int, q_len: int, k_len: int
) -> tuple[Tensor, Tensor, int, Tensor, Tensor]:
    """Return evenly spaced rows, the last one among them, the same for all layers.

    That is their numbers int64 [R] and the blocks each keeps, the largest of these, and bool [R,Nk] where a block is causal
    and where it lies over the row's own tokens.
    """
    shape = (q_len, k_len, q_block, k_block)
    causal, starts = causal_blocks(*shape), diagonal_start(*shape)
    count = min(most, len(causal))
    rows = torch.arange(1, count + 1) * len(causal) // count - 1
    causal, starts = causal[rows], starts[rows]
    budget = torch.tensor(row_budget(density, *shape))[rows]
    budget = torch.minimum(torch.maximum(budget, causal - starts), causal)
    columns = torch.arange(-(-k_len // k_block))
    past = columns < causal[:, None]
    own = (columns >= starts[:, None]) & past
    with torch.inference_mode(False):  # a tensor made in inference mode could not take part in training later
        return rows.to(device), budget.to(device), int(budget.max()), past.to(device), own.to(device)


@torch.no_grad()
def gate_recall(
    loaded: LoadedModel,
    gates: Sequence[Gate],
    sequences: Iterable[Tensor],
    *,
    densities: Sequence[float] = DENSITIES,
    pool: str = "max",
) -> list[Recall]:
    """Return recall and kept attention mass of every layer at every density, over token sequences [N] or [B,N] int64.

    pool: what "truly best" means, as for the oracle. Layers that were never shown (sliding windows) have no row. Raises
    UserError where there are no sequences.
    """
    sums: dict[tuple[int, float], Tensor] = {}
    counts: dict[tuple[int, float], int] = {}
    chances: dict[tuple[int, float], float] = {}
    ropes: dict[int, ModelRope] = {}

    def visit(layer: int, q: Tensor, k: Tensor, scale: float, lse: Tensor | None) -> None:
        if layer not in ropes:
            ropes[layer] = ModelRope(loaded.model, layer)
        gate = gates[layer]
        q = gate.learns_from(q)
        lse = lse[:, :, -q.shape[2] :] if lse is not None else log_sum_exp(q, k, scale=scale)
        grid = gate_grid(gate, q, k)
        mass, truth = (true_map(q, k, gate, scale=scale, pool=how, lse=lse) for how in ("mass", pool))
        logits = gate(q, k, ropes[layer])
        maps = (logits, truth, mass)
        step = max(1, PART // logits[:, :1].numel())
        for density in densities:
            budget = row_budget(density, **grid)
            head_means: list[Tensor] = []
            for parts in zip(*(heads_map.split(step, 1) for heads_map in maps), strict=True):
                chosen, best, heaviest = (select_topk(part, budget, **grid) for part in parts)
                values = (
                    recall_rows(best, chosen),
                    (parts[2] * chosen.to_mask()).sum(-1),
                    (parts[2] * heaviest.to_mask()).sum(-1),
                )
                head_means.append(torch.stack([value.double().mean((0, 2)) for value in values]))
            sums[layer, density] = sums.get((layer, density), 0) + torch.cat(head_means, 1)  # [3, heads]
            counts[layer, density] = counts.get((layer, density), 0) + 1
            chances[layer, density] = chances.get((layer, density), 0.0) + chance(budget, causal_blocks(**grid))

    tokens = seen = 0
    with Capture(loaded.model, visit) as capture:
        for sequence in sequences:
            batch = torch.atleast_2d(sequence).to(loaded.device)
            capture.run(batch)
            tokens, seen = tokens + batch.numel(), seen + 1
    if not seen:
        raise UserError("no sequences to measure recall on: give at least one")
    rows: list[Recall] = []
    for (layer, density), total in sorted(sums.items(), key=lambda item: (item[0][0], -item[0][1])):
        means = total / counts[layer, density]  # [3, heads]
        recall, kept_mass, oracle_mass = means.mean(1).tolist()
        rows.append(
            Recall(
                layer=layer,
                density=density,
                recall=recall,
                chance=chances[layer, density] / counts[layer, density],
                kept_mass=kept_mass,
                oracle_mass=oracle_mass,
                # with no room but for a row's own blocks, which weigh nothing here, there is nothing to lose
                kept_ratio=kept_mass / oracle_mass if oracle_mass else 1.0,
                tokens=tokens,
                sequences=seen,
                heads=means[0].tolist(),
                heads_kept=[kept / best if best else 1.0 for kept, best in means[1:].T.tolist()],
            )
        )
    return rows


def mean_recall(rows: Sequence[Recall]) -> dict[float, dict[str, float]]:
    """Return means over the layers, by density: {density: {"recall": …, "chance": …, "kept_ratio": …}}."""
    means: dict[float, dict[str, float]] = {}
    for density in dict.fromkeys(row["density"] for row in rows):
        own = [row for row in rows if row["density"] == density]
        means[density] = {
            "recall": sum(r["recall"] for r in own) / len(own),
            "chance": sum(r["chance"] for r in own) / len(own),
            "kept_ratio": sum(r["kept_ratio"] for r in own) / len(own),
        }
    return means
