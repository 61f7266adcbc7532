"""Pictures of block maps in the terminal, for the demos of methods."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.parts.demo_layers import Landmark

SHADES = "·░▒▓█"
KEPT_LEVELS = (1e-9, 1 / 3, 2 / 3, 1 - 1e-6)
"""Shares of a cell's (query, key) pairs from which on the next shade of a kept map holds."""
MASS_LEVELS = (0.01, 0.03, 0.1, 0.3)
"""The same of an attention map: shares of a row's attention."""


@dataclass(frozen=True)
class HeadChoice:
    """What one head attends to, and what a method keeps of it, for R queries and K keys.

    positions: int64 [R], where the queries stand. attention: float32 [R,K], the true softmax. keys: bool [R,K], the keys that
    are kept, those in the future of a query left out.
    """

    positions: Tensor
    attention: Tensor
    keys: Tensor

    def mass(self) -> float:
        """Return the share of the attention that is kept, mean over queries."""
        return float((self.attention * self.keys).sum(-1).mean())

    def kept_of(self, landmark: Landmark) -> float:
        """Return the share of a landmark's (query, key) pairs that is kept."""
        pairs = landmark.pairs[self.positions]
        return float((self.keys & pairs).sum() / pairs.sum())


def draw(choice: HeadChoice, cell: int, width: int, titles: tuple[str, str]) -> str:
    """Return two maps beside each other, the attention and what is kept of it, with a title above each.

    A cell of the picture is `cell` × `cell` tokens. width: columns of the terminal; cells are two characters wide where both
    maps fit so, else one.
    """
    causal = torch.arange(choice.keys.shape[1]) <= choice.positions[:, None]
    queries = (choice.positions // cell).unique(return_counts=True)[1]
    seen = _sums(causal.float(), choice.positions, cell)
    mass = _sums(choice.attention, choice.positions, cell) / queries[:, None]
    share = _sums(choice.keys.float(), choice.positions, cell) / seen.clamp(min=1)
    characters = 2 if 4 * seen.shape[1] + 3 <= width else 1
    attention_lines = _lines(mass, seen > 0, MASS_LEVELS, characters)
    kept_lines = _lines(share, seen > 0, KEPT_LEVELS, characters)
    size = max(characters * seen.shape[1], len(titles[0]))
    rows = [titles, *zip(attention_lines, kept_lines, strict=True)]
    return "\n".join(f"{attention:<{size}}   {kept_line}".rstrip() for attention, kept_line in rows)


def _sums(x: Tensor, positions: Tensor, cell: int) -> Tensor:
    """Return float32 [rows, columns], x [R,K] summed over cells; queries of the same `cell` tokens are one row."""
    row = (positions // cell).unique(return_inverse=True)[1]
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % cell)).unflatten(1, (-1, cell)).sum(-1)
    return torch.zeros(int(row.max()) + 1, padded.shape[1]).index_add_(0, row, padded)


def _lines(x: Tensor, causal: Tensor, levels: tuple[float, ...], characters: int) -> list[str]:
    """Return a line of shades for each row of x [rows, columns], blank where nothing is causal."""
    shades = torch.bucketize(x, torch.tensor(levels), right=True)
    return [
        "".join(SHADES[shade] * characters if seen else " " * characters for shade, seen in zip(row, line, strict=True))
        for row, line in zip(shades.tolist(), causal.tolist(), strict=True)
    ]
