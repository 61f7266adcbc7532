"""XAttention's offline search: a threshold for each head, lowered where that loses least attention mass."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attention_kernels.block_index import causal_total
from attention_kernels.block_map import block_map
from torch import Tensor

from methods.parts.base import LayerInputs, Method
from methods.parts.top_p import top_p_mask

LEVELS = (1.0, 0.995, 0.98, 0.96, 0.93, *(0.9**step for step in range(1, 41)))
"""A head's thresholds, one step after the other: from 0.9 on each is 10 % lower, as in the paper, which starts there; above,
where density falls fastest, steps are smaller."""


class ThresholdSearch:
    """Measures, for each head, density and kept attention mass at every threshold of LEVELS, and orders the steps of all
    heads by the mass that each loses per block that it leaves out.

    The paper lowers one head's threshold by a tenth at each step, to the best accuracy that so many steps can have, by dynamic
    programming. Here the measure is attention mass, which costs a map per layer and no generation. Mass and blocks of heads
    add up, so for any number of blocks the best choice takes the cheapest steps first (a multiple-choice knapsack, on the
    upper hull of each head's curve): one order of steps answers for all of them.
    """

    def __init__(self, method: Method, scores: Any, forced: Any, *, layers: int, heads: int, threshold: float) -> None:
        """Prepare for a model of so many layers and heads.

        scores(x): the method's block scores [B,Hq,Mq,Nk]. forced(x): bool [Mq,Nk], the blocks kept whatever they score.
        threshold: the one for all heads that the result is compared with.
        """
        self.method, self.scores, self.forced = method, scores, forced
        self.threshold = threshold
        self.levels = [*LEVELS, threshold]
        self.prompts = 0
        self._last = -1
        self._density = torch.zeros(layers, heads, len(self.levels), dtype=torch.float64)
        self._mass = torch.zeros_like(self._density)

    @torch.no_grad()
    def observe(self, x: LayerInputs, v: Tensor) -> None:
        """Take in one layer of one prompt; v is not looked at."""
        if x.layer <= self._last or not self.prompts:
            self.prompts += 1
        self._last = x.layer
        grid = self.method.grid(x)
        scores, forced = self.scores(x), self.forced(x)
        truth = block_map(x.q, x.k, q_block=grid["q_block"], k_block=grid["k_block"], scale=x.scale, pool="mass")
        causal = causal_total(**grid)
        for step, level in enumerate(self.levels):
            mask = top_p_mask(scores, forced, level)
            self._density[x.layer, :, step] += (mask.sum((-2, -1)).double() / causal).mean(0).cpu()
            self._mass[x.layer, :, step] += (truth * mask).sum(-1).mean(-1).double().mean(0).cpu()

    def curves(self) -> tuple[Tensor, Tensor]:
        """Return density and kept mass at every level, the one threshold's last: float64 [layers · heads, levels] each.

        Raises ValueError where nothing was observed.
        """
        if not self.prompts:
            raise ValueError("no prompt was observed: there is nothing to search in")
        density, mass = (x.flatten(0, 1) / self.prompts for x in (self._density, self._mass))
        return density, mass

    def result(self) -> dict[str, Any]:
        """Return the `path` of steps, and how many `steps` of it keep the mass of the one threshold, with both measured."""
        density, mass = self.curves()
        path = cheapest_steps(density[:, :-1], mass[:, :-1])
        steps = steps_for(mass[:, :-1], path, float(mass[:, -1].mean()))
        taken = counts_of(path[:steps], len(density))
        return {
            "layers": self._density.shape[0],
            "heads": self._density.shape[1],
            "prompts": self.prompts,
            "threshold": self.threshold,
            "one_threshold": {"density": round(float(density[:, -1].mean()), 4), "mass": round(float(mass[:, -1].mean()), 4)},
            "searched": {"density": round(mean_at(density, taken), 4), "mass": round(mean_at(mass, taken), 4)},
            "steps": steps,
            "path": path,
        }


def cheapest_steps(density: Tensor, mass: Tensor) -> list[int]:
    """Return the heads in the order in which they take their steps, for density and mass [heads, steps + 1], both falling.

    The mass that is lost per block left out rises along the path. Steps that are cheaper together are taken together.
    """
    segments: list[tuple[float, int, int, int]] = []
    for head, (blocks, masses) in enumerate(zip(density.tolist(), mass.tolist(), strict=True)):
        at = 0
        while at < len(blocks) - 1:
            prices = [
                ((masses[at] - masses[to]) / max(blocks[at] - blocks[to], 1e-12), -to) for to in range(at + 1, len(blocks))
            ]
            price, to = min(prices)  # of equal prices the longest way
            segments.append((price, head, at, -to - at))
            at = -to
    return [head for _, head, _, steps in sorted(segments) for _ in range(steps)]


def counts_of(path: Sequence[int], heads: int) -> Tensor:
    """Return the steps that each head has taken along a path: int64 [heads]."""
    return torch.bincount(torch.tensor(path, dtype=torch.int64), minlength=heads)


def mean_at(curve: Tensor, taken: Tensor) -> float:
    """Return the mean over heads of curve [heads, …], each at its own step."""
    return float(curve.gather(1, taken[:, None]).mean())


def steps_for(mass: Tensor, path: Sequence[int], least: float) -> int:
    """Return the most steps of a path after which the heads keep `least` of mass [heads, steps + 1] on average."""
    taken, total, most = [0] * len(mass), float(mass[:, 0].sum()), 0
    rows = mass.tolist()
    for number, head in enumerate(path, 1):
        taken[head] += 1
        total += rows[head][taken[head]] - rows[head][taken[head] - 1]
        if total >= least * len(rows) - 1e-9:
            most = number
    return most


def parse_path(result: Mapping[str, Any], *, layers: int, heads: int) -> tuple[list[int], int]:
    """Return the path and the steps of a search's result. Raises ValueError, one line, where it doesn't fit the model."""
    try:
        shape = operator.index(result["layers"]), operator.index(result["heads"])
        path, steps = [operator.index(head) for head in result["path"]], operator.index(result["steps"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not what a search for thresholds writes: {error!r} is wrong; search again") from error
    if shape != (layers, heads):
        raise ValueError(f"searched in {shape[0]} layers of {shape[1]} heads; the model has {layers} of {heads}")
    longest = max(Counter(path).values(), default=0)
    inside = all(0 <= head < layers * heads for head in path)
    if not 0 <= steps <= len(path) or not inside or longest >= len(LEVELS):
        raise ValueError(f"{steps} steps along a path of {len(path)} through {layers * heads} heads: not a path of this model")
    return path, steps
