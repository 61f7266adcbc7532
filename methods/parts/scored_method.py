"""The base class of methods that score blocks, and its three rules by which a row's scores become blocks."""

from __future__ import annotations

from typing import Literal, TypedDict, get_args

from methods.parts.base import Grid, Knob, LayerInputs, Method
from methods.parts.row_budgets import even_budget, nz_ratio_budget, nz_ratio_budget_with_full_rows

Selection = Literal["topk", "threshold", "nz_ratio"]


class SelectionRule(TypedDict, total=False):
    """The keywords by which attention_kernels.selection decides how many blocks a row keeps: one of the first two, and the
    rows at the end that keep all whatever these say."""

    budget: tuple[int, ...]
    threshold: float
    full_rows: int


class ScoredMethod(Method):
    """Keeps blocks by their share of the row's pooled attention: a gate's prediction, an estimate, or the truth.

    selection="topk": each row keeps its share of its causal blocks, so that the density of a prompt is 1 - sparsity.
    selection="threshold": blocks whose share is above `threshold`; given a sparsity instead, the threshold is searched.
    selection="nz_ratio": SeerAttention's rule, the same number of blocks in every row, rounded down; early rows have fewer.
    blocks: that number itself. Given a sparsity instead, it is searched: of the two whole numbers beside it the nearer one.

    last: query blocks at the end that keep everything, 0; SeerAttention's release has 2 but for perplexity. They count in the
    density: given a sparsity, they take at most half of the budget, and the other rows spend the remainder. Of a
    prompt in chunks they are the prompt's, and no earlier chunk has any.
    """

    def __init__(
        self,
        *,
        block_size: int,
        sparsity: float | None,
        seed: int,
        selection: Selection,
        threshold: float | None,
        nz_ratio: float | None,
        last: int = 0,
        blocks: int | None = None,
    ) -> None:
        super().__init__(block_size=block_size, sparsity=sparsity, seed=seed)
        if selection not in get_args(Selection):
            raise ValueError(f"selection={selection}: must be one of {', '.join(get_args(Selection))}")
        for name, value in (("threshold", threshold), ("nz_ratio", nz_ratio)):
            if value is not None and selection != name:
                raise ValueError(f"{name}={value} has no effect with selection={selection}: set selection={name}")
        if blocks is not None and selection != "nz_ratio":
            raise ValueError(f"blocks={blocks} has no effect with selection={selection}: set selection=nz_ratio")
        self.take_last(last)
        self.selection = selection
        self.threshold = self._threshold(threshold) if selection == "threshold" else None
        self.nz_ratio = self._nz_ratio(nz_ratio, blocks) if selection == "nz_ratio" else None
        self.blocks = blocks
        if selection == "topk":
            self.required_sparsity()

    def _threshold(self, threshold: float | None) -> float | None:
        self.one_of(threshold=threshold)
        if self.sparsity == 0:
            return -1.0  # below every probability, those that underflow to 0 included
        if threshold is None:
            self.required_sparsity(", or a threshold")
            return None  # to be calibrated
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold={threshold}: must be a probability, at least 0 and below 1")
        return threshold

    def calibrates(self) -> Knob | None:
        if self.selection == "topk" or not self.sparsity:
            return None
        if self.selection == "nz_ratio":
            return Knob("blocks", low=1, high=1 << 16, rising=True, log=True, whole=True)
        return Knob("threshold", low=1e-9, high=1.0, rising=False, log=True)

    def _nz_ratio(self, nz_ratio: float | None, blocks: int | None) -> float | None:
        self.one_of(nz_ratio=nz_ratio, blocks=blocks)
        if blocks is not None:
            if nz_ratio is not None:
                raise ValueError(f"nz_ratio={nz_ratio} and blocks={blocks}: give one of them")
            if not isinstance(blocks, int) or blocks < 1:
                raise ValueError(f"blocks={blocks}: must be at least 1 block")
            return None
        if nz_ratio is None:
            return 1 - self.required_sparsity(", or an nz_ratio")
        if not 0 < nz_ratio <= 1:
            raise ValueError(f"nz_ratio={nz_ratio}: must be above 0 and at most 1")
        return nz_ratio

    def rule(self, x: LayerInputs) -> SelectionRule:
        """Return the rule for a layer's call. Raises ValueError where a threshold is still to be calibrated."""
        full = self.rows_in_full(x)
        if self.selection == "topk":
            return SelectionRule(budget=self.budget(x), full_rows=full)
        if self.selection == "nz_ratio":
            return SelectionRule(budget=self._even_budget(self.prompt_grid(x))[self.rows(x)], full_rows=full)
        if self.threshold is None:
            raise ValueError(
                f"the threshold for sparsity={self.sparsity} has not been calibrated: see harness.arms.calibration"
            )
        return SelectionRule(threshold=self.threshold, full_rows=full)

    def _even_budget(self, grid: Grid) -> tuple[int, ...]:
        """Return the budget of all rows of a prompt, whose grid this is, with selection="nz_ratio"."""
        full = self.prompt_rows_in_full(grid)
        if self.blocks is not None:
            return even_budget(self.blocks, full, **grid)
        assert self.nz_ratio is not None
        if not full:
            return nz_ratio_budget(self.nz_ratio, **grid)
        return nz_ratio_budget_with_full_rows(self.nz_ratio, full, **grid, pays=self.sparsity is not None)
