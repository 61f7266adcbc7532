"""A heatmap panel of per cents: names from top to bottom, columns from left to right, and columns of text at its right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from harness.report.figures import style
from harness.report.figures.looks import GREY

WRITTEN = 16
"""Columns at most whose cells have their numbers written into them."""


def columns_of(panels: int, width: float, names: float) -> int:
    """Return how many panels stand beside each other in a column of text: `width` inches each, after `names` inches for the
    names of their rows."""
    return max(1, min(panels, int((style.WIDEST_PAGE + 0.5 - names) / width)))


def panel(
    axes: Axes,
    table: np.ndarray,
    names: Sequence[str],
    columns: Sequence[str],
    *,
    label: str,
    beside: Sequence[tuple[str, Sequence[str]]] = (),
    low: float = 0.0,
    gated: np.ndarray | None = None,
) -> None:
    """Draw table [names, columns] in per cent, NaN where nothing was measured.

    label: of the columns' axis. beside: headings at the right with a text a row, the first bold. low: the value that the
    darkest colour stands for. gated [names, columns]: cells whose numbers stand in brackets.
    """
    axes.imshow(table, aspect="auto", cmap="cividis", vmin=low, vmax=100)
    dark = low + 0.55 * (100 - low)
    if len(columns) <= WRITTEN:
        for y, x in np.argwhere(~np.isnan(table)):
            colour = "white" if table[y, x] < dark else "black"
            text = number(table[y, x], gated=gated is not None and gated[y, x])
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=colour)
    end = len(columns) - 0.5
    for i, (heading, texts) in enumerate(beside):
        x = end + 0.65 + 1.1 * i
        axes.text(x, -0.75, heading, ha="center", fontsize=7.5, color=GREY)
        for y, text in enumerate(texts):
            axes.text(x, y, text, ha="center", va="center", fontsize=8.5, fontweight="normal" if i else "bold")
    axes.set_xlim(-0.5, end + 1.1 * len(beside) + 0.1)
    axes.set_yticks(range(len(names)), list(names))
    step = max(1, len(columns) // 12)
    axes.set_xticks(range(0, len(columns), step), list(columns[::step]))
    axes.set_xlabel(label, loc="left")
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)


def number(value: float, *, gated: bool) -> str:
    """Return a per cent as it stands in a cell, in brackets where a sanity gate holds it back."""
    return f"({value:.0f})" if gated else f"{value:.0f}"
