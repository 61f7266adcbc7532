"""MoA's offline search: what every head loses by every span, and the rules that lose least within a budget at all lengths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from methods.parts.base import LayerInputs
from methods.parts.head_spans import LEAST_BLOCKS, span

PARTS = (0.25, 0.5, 1.0)
"""The lengths that are measured, as shares of the prompt: under causal attention its first rows are a shorter prompt's. The
release profiles prompts of 2k, 4k and 8k."""
EXTENSION = 2
"""The budget holds at so many times the longest length too, though nothing is measured there: 16k in the release."""
ALPHA_STEPS = 2
"""Steps of alpha in the shortest length: the release's are of 1024 tokens beside prompts of 2k."""
BETAS = tuple(eighths / 8 for eighths in range(9))
"""The release's."""
LOW_BETAS = (1 / 64, 1 / 32, 1 / 16, 3 / 32, 3 / 16)
LOW_ALPHAS = (2, 4, 8)
"""In blocks. With the release's grid alone, of no less than an eighth of the prompt, no budget below that could be met."""
TRIED = 8
"""Rules of each head that come into question once the worth of the budgets is known: more cost time and find nothing better."""
GAP = 1e-3
"""How far from the best, relative, the solver may stop."""


class SpanSearch:
    """Measures the error of every head's output at every span, and solves for the best rules at each budget.

    A head with a span of w blocks attends, in each row, to the row's own block, the sinks and the latest, w blocks in all. Its
    loss is ‖output - dense output‖² over the squared norm of the dense output of all heads of the layer: losses of the heads of
    a layer add up. All spans of a row come out of one pass over its keys. Nothing is trained, and no gradient is taken; the
    release takes that of the loss on the dense model's own answers.
    """

    def __init__(self, layers: int, heads: int, *, block: int, sinks: int, budgets: Sequence[float]) -> None:
        self.layers, self.heads = layers, heads
        self.block, self.sinks = block, sinks
        self.budgets = tuple(sorted(budgets, reverse=True))
        self.losses: dict[int, list[Tensor]] = {}
        """Of each layer, for each prompt, [parts, heads, blocks]: the loss at spans of 1, 2, … blocks."""
        self.tokens: dict[int, list[int]] = {}

    @torch.no_grad()
    def observe(self, x: LayerInputs, v: Tensor) -> None:
        """Take in one layer of one prompt, v [B,Hkv,K,D]. Raises ValueError for a part of a prompt."""
        if x.q.shape[2] != x.k.shape[2]:
            raise ValueError(f"the search needs whole prompts, not {x.q.shape[2]} queries of {x.k.shape[2]} keys")
        self.losses.setdefault(x.layer, []).append(span_losses(x, v, block=self.block, sinks=self.sinks).cpu())
        self.tokens.setdefault(x.layer, []).append(x.k.shape[2])

    def result(self) -> dict[str, Any]:
        """Return under `plans`, for each budget, `alphas` and `betas` [layer][head], and their losses and spans by length.

        A layer never seen, of a sliding window, has empty lists. A budget that pays no least span has no plan. Raises
        ValueError where no layer was seen, or no budget has a plan.
        """
        if not self.losses:
            raise ValueError("no layer was seen: their attention has a sliding window, or no prompt was given")
        longest = -(-max(map(max, self.tokens.values())) // (8 * self.block)) * 8 * self.block
        lengths = [max(LEAST_BLOCKS * self.block, round(part * longest)) for part in PARTS]
        rules = candidate_rules(lengths, self.block)
        losses = np.concatenate([self._rule_losses(layer, rules) for layer in sorted(self.losses)], axis=1)
        costs = np.array([[self._share(rule, n) for rule in rules] for n in (*lengths, EXTENSION * longest)])
        plans = {}
        for budget in self.budgets:
            # of lengths where the budget pays hardly more than the least span, none could be chosen by its loss
            tight = [n for n in range(len(costs)) if costs[n].min() <= budget / 2] or [len(costs) - 1]
            if costs[tight[-1]].min() > budget:
                continue
            chosen = best_rules(losses.sum(0), costs[tight], budget)
            plans[f"{budget:g}"] = self._plan([rules[i] for i in chosen]) | {
                "losses": [round(float(loss[range(len(chosen)), chosen].sum()) / len(self.losses), 5) for loss in losses],
                "spans": [round(float(cost[chosen].mean()), 4) for cost in costs],
            }
        if not plans:
            least = LEAST_BLOCKS * self.block
            most = f"a budget of {self.budgets[0]:g}"
            raise ValueError(f"prompts of {longest} tokens are too short for spans of {least} at {most}: take longer ones")
        return {"block_size": self.block, "sinks": self.sinks, "lengths": [*lengths, EXTENSION * longest], "plans": plans}

    def _share(self, rule: tuple[float, float], tokens: int) -> float:
        """Return a rule's span as a share of a prompt, in whole blocks."""
        blocks = -(-span(*rule, tokens, LEAST_BLOCKS * self.block) // self.block)
        return min(1.0, blocks * self.block / tokens)

    def _rule_losses(self, layer: int, rules: Sequence[tuple[float, float]]) -> np.ndarray:
        """Return the loss of each rule in each head of a layer, a mean over prompts, float64 [parts, heads, rules]."""
        means = torch.zeros(len(PARTS), self.heads, len(rules), dtype=torch.float64)
        for loss, tokens in zip(self.losses[layer], self.tokens[layer], strict=True):
            for n, part in enumerate(PARTS):
                spans = [span(*rule, round(part * tokens), LEAST_BLOCKS * self.block) for rule in rules]
                places = torch.tensor([min(loss.shape[-1], -(-tokens // self.block)) - 1 for tokens in spans])
                means[n] += loss[n][:, places] / len(self.tokens[layer])
        return means.numpy()

    def _plan(self, rules: Sequence[tuple[float, float]]) -> dict[str, list[list[float]]]:
        """Return the alphas and betas [layer][head] of rules given for the heads of the layers that were seen, in order."""
        by_layer = {layer: rules[n * self.heads :][: self.heads] for n, layer in enumerate(sorted(self.losses))}
        return {
            name: [[rule[at] for rule in by_layer.get(layer, ())] for layer in range(self.layers)]
            for at, name in enumerate(("alphas", "betas"))
        }


def candidate_rules(lengths: Sequence[int], block: int) -> list[tuple[float, float]]:
    """Return the rules (alpha, beta) that heads choose from: the release's grid for these lengths, and finer ones below it.

    As in the release a rule asks for more than nothing at the shortest length and for no more than all at the longest. Of rules
    with the same spans, in blocks, at all lengths, the one with the least alpha, up or down, is taken.
    """
    step = lengths[0] / ALPHA_STEPS
    alphas = [step * n for n in range(-ALPHA_STEPS, round(lengths[-1] / step) + 1)]
    alphas += [float(block * n) for n in LOW_ALPHAS if block * n < step]
    rules: dict[tuple[int, ...], tuple[float, float]] = {}
    for alpha, beta in sorted(product(alphas, (*BETAS, *LOW_BETAS)), key=lambda rule: (abs(rule[0]), rule)):
        if alpha + beta * lengths[0] > 0 and alpha + beta * lengths[-1] <= lengths[-1]:
            spans = (span(alpha, beta, n, LEAST_BLOCKS * block) for n in (*lengths, EXTENSION * lengths[-1]))
            rules.setdefault(tuple(-(-tokens // block) for tokens in spans), (alpha, beta))
    return list(rules.values())


def best_rules(losses: np.ndarray, costs: np.ndarray, budget: float) -> list[int]:
    """Return the number of each head's rule: those with the least loss of all whose mean cost is within the budget.

    losses: [heads, rules]. costs: [lengths, rules], alike in all heads; the mean over heads must be at most `budget` at every
    length. It is a mixed-integer programme, as the release's; that has one more constraint, two rules at most in a layer. The
    linear programme, which may split a head between rules, tells what a budget is worth at each length, and so the few rules
    of each head that come into question. Of these the best are found to a relative gap of `GAP`.
    """
    from scipy import sparse  # takes half a second to import, and only a search needs it
    from scipy.optimize import Bounds, LinearConstraint, linprog, milp

    heads, rules = losses.shape
    budgets = np.full(len(costs), heads * budget + 1e-9)
    split = linprog(
        losses.ravel(),
        A_ub=np.tile(costs, heads),
        b_ub=budgets,
        A_eq=sparse.kron(sparse.eye_array(heads), np.ones((1, rules)), format="csr"),
        b_eq=np.ones(heads),
        bounds=(0, 1),
        method="highs",
    )
    if split.x is None:
        raise ValueError(f"no rules keep within a budget of {budget:g}: {split.message}")
    prices = losses - split.ineqlin.marginals @ costs  # a head's loss and what its span costs the others
    tried = prices.argsort(1, kind="stable")[:, :TRIED]
    tried[:, -1] = costs.sum(0).argmin()  # with every head's narrowest they never cost too much
    solution = milp(
        np.take_along_axis(losses, tried, 1).ravel(),
        integrality=np.ones(tried.size),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(sparse.kron(sparse.eye_array(heads), np.ones((1, tried.shape[1])), format="csr"), 1, 1),
            LinearConstraint(costs[:, tried.ravel()], ub=budgets),
        ],
        options={"mip_rel_gap": GAP},
    )
    if solution.x is None:
        raise ValueError(f"no rules keep within a budget of {budget:g}: {solution.message}")
    return [int(rule) for rule in tried[range(heads), solution.x.reshape(tried.shape).argmax(1)]]


def span_losses(x: LayerInputs, v: Tensor, *, block: int, sinks: int) -> Tensor:
    """Return the loss of each query head at spans of 1, 2, … blocks, over the rows of each part, float64 [parts, Hq, blocks].

    v [B,Hkv,K,D]. sinks: tokens, in whole blocks. The span of w blocks is a row's own block, then the sinks, then the latest.
    """
    (_, heads, tokens, _), kv_heads = x.q.shape, x.k.shape[1]
    rows, sink_blocks = -(-tokens // block), -(-sinks // block)
    padding = (0, 0, 0, rows * block - tokens)
    q = x.q.float().unflatten(1, (kv_heads, -1))
    k, v = (torch.nn.functional.pad(t.float(), padding) for t in (x.k, v))
    ends = [max(1, round(part * rows)) for part in PARTS]
    wrong = torch.zeros(heads, rows, dtype=torch.float64, device=x.q.device)
    norm = torch.zeros((), dtype=torch.float64, device=x.q.device)
    parts: list[Tensor] = []
    for row in range(rows):
        first, seen = row * block, row + 1
        queries = q[..., first : first + block, :]
        scores = torch.einsum("bhgqd,bhkd->bhgqk", queries, k[:, :, : seen * block]) * x.scale
        future = torch.arange(seen * block, device=q.device) > first + torch.arange(queries.shape[3], device=q.device)[:, None]
        weights = scores.masked_fill_(future, -torch.inf)
        weights = (weights - weights.amax(-1, keepdim=True)).exp_().unflatten(-1, (seen, block))
        values = v[:, :, : seen * block].unflatten(2, (seen, block))
        order = [row, *range(min(sink_blocks, row)), *range(row - 1, min(sink_blocks, row) - 1, -1)]
        sums = torch.einsum("bhgqnt,bhntd->bhgqnd", weights, values)[..., order, :].cumsum_(-2)
        totals = weights.sum(-1)[..., order].cumsum_(-1)
        # a span whose keys weigh nothing beside those that are left out has an output of 0, not 0 / 0
        outputs = sums.div_(totals.clamp_(min=torch.finfo(torch.float32).tiny)[..., None])
        dense = outputs[..., -1:, :]
        norm = norm + dense.double().square().sum()
        wrong[:, :seen] += (outputs - dense).square().sum((0, 3, 5)).flatten(0, 1).double()
        parts += [wrong / norm] * ends.count(seen)
    return torch.stack(parts)
