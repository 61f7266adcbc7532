"""MInference: every head has a pattern, searched offline; where it lies is found online, from the prompt's last queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from attention_kernels.block_index import BlockIndex
from attention_kernels.column_index import ColumnIndex

from methods import register
from methods.parts.base import HeadSearch, Knob, LayerInputs, Method
from methods.parts.head_patterns import FALLBACK, Pattern, by_release_rules, parse_patterns, select_patterns
from methods.parts.release import Release
from methods.searches.minference_release import ReleasedSearch
from methods.searches.minference_search import PatternSearch

Score = Literal["mass", "output"]

GOLDEN_RATIO = 0.6180339887498949
"""Its multiples modulo 1 are spread evenly, however many are taken."""


@register("minference")
class MInference(Method):
    """Selects in each query head by the head's own pattern, one of three (see methods.parts.head_patterns).

    vertical_slash keeps the v columns and s diagonals that the last 64 queries attend to most, the first 30 columns and the
    nearest 100 diagonals before all others, v at least 30 and s at least 50; diagonals in whole blocks, columns as single
    keys. block_sparse keeps the best blocks of each row by mean query · mean key. a_shape keeps sinks and a window, in whole
    blocks. Patterns come from job=search_heads (`minference-patterns.json`, optional).

    patterns: auto (the model's searched file where there is one, else every head vertical_slash with 1000 columns and 6096
    diagonals, the release's fallback), fallback, or the path of a file. release_rules: replaces block_sparse by the fallback,
    and a_shape by vertical_slash of the same numbers, as the release does with the patterns of its search. score,
    search_density: of the search, see methods.searches.minference_search. The release's blocks are of 64 tokens.

    With a sparsity, all budgets are multiplied by one factor, which is searched, and the floors of 30 and 50 don't hold. Of two
    whole numbers heads take the lower or the higher one by a fixed sequence, so that their mean is the factor's.
    Budgets beyond the prompt's length are cut to it. In a chunk of a prompt the last queries are the chunk's.

    As released, the diagonals are covered by tiles that begin at any key (methods.parts.release_tiles), and the search is the
    release's own (methods.searches.minference_release): by `score` its first or its second version.
    """

    paper = "MInference 1.0, arXiv 2407.02490"
    knob = "factor"
    family = "threshold"
    reads_end = True
    columns = True
    searched = "minference-patterns.json"
    release = Release(
        "microsoft/MInference",
        source="minference/modules/minference_forward.py",
        settings={"block_size": 64, "release_rules": True},
        quirks={
            "a tile over diagonals begins at any key": "csrc/vertical_slash_index.cu",
            "the search keeps single-token diagonals, 30 of them forced": "minference/modules/minference_forward.py",
            "the search compares block-sparse by blocks of 32": "minference/modules/minference_forward.py",
            "score=output counts elements off by more than 5e-3, over eight candidates": (
                "minference/modules/minference_forward.py"
            ),
        },
    )

    def __init__(
        self,
        *,
        block_size: int = 64,
        sparsity: float | None = None,
        seed: int = 0,
        patterns: str = "auto",
        release_rules: bool = False,
        score: Score = "mass",
        search_density: float | None = 0.2,
    ) -> None:
        super().__init__(block_size=block_size, sparsity=sparsity, seed=seed)
        if score not in get_args(Score):
            raise ValueError(f"score={score}: must be one of {', '.join(get_args(Score))}")
        if search_density is not None and not 0 < search_density < 1:
            raise ValueError(f"search_density={search_density}: must be above 0 and below 1, or null (the release's budgets)")
        self.patterns = patterns
        self.release_rules = release_rules
        self.score = score
        self.search_density = search_density
        self.factor = 1.0
        self.head_patterns: tuple[tuple[Pattern, ...], ...] | None = None

    def search_file(self) -> str | None:
        return {"auto": self.searched, "fallback": None}.get(self.patterns, self.patterns)

    def search(self, *, layers: int, heads: int, kv_heads: int, head_dim: int) -> HeadSearch:
        if self.as_released:
            return ReleasedSearch(layers, heads, block=self.block_size, score=self.score)
        return PatternSearch(layers, heads, block=self.block_size, score=self.score, density=self.search_density)

    def load_search(self, result: Mapping[str, Any], *, layers: int, heads: int, kv_heads: int, head_dim: int) -> None:
        if "patterns" not in result:
            raise ValueError("it has no patterns")
        self.head_patterns = parse_patterns(result["patterns"], layers=layers, heads=heads)

    def calibrates(self) -> Knob | None:
        return Knob("factor", low=1e-4, high=2e3, rising=True, log=True) if self.sparsity else None

    def layer_patterns(self, layer: int, heads: int) -> tuple[Pattern, ...]:
        """Return the patterns of a layer's heads, with the budgets that they run with."""
        patterns = (FALLBACK,) * heads if self.head_patterns is None else self.head_patterns[layer]
        if self.release_rules:
            patterns = tuple(by_release_rules(pattern) for pattern in patterns)
        if self.sparsity is None:
            return tuple(pattern.floored() for pattern in patterns)
        places = range(layer * heads, (layer + 1) * heads)  # heads of one pattern don't all step to the next block at once
        return tuple(p.scaled(self.factor, place * GOLDEN_RATIO % 1) for p, place in zip(patterns, places, strict=True))

    @torch.no_grad()
    def select(self, x: LayerInputs) -> BlockIndex | ColumnIndex:
        if self.sparsity == 0:
            return BlockIndex.full(x.q.shape[0], x.k.shape[1], device=x.q.device, **self.grid(x))
        patterns = self.layer_patterns(x.layer, x.q.shape[1])
        return select_patterns(x, self.grid(x), patterns, tiles=self.as_released)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        patterns = "fallback" if self.head_patterns is None else "searched"
        factor = self.factor if self.sparsity else None
        return {"patterns": patterns, "release_rules": self.release_rules, "factor": factor}


if __name__ == "__main__":
    from methods.parts.demo import demo

    demo("minference")
