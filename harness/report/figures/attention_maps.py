"""A picture of one layer's attention, heads as columns: the true map, its blocks, what a method expects, what it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, PowerNorm
from matplotlib.image import AxesImage

from harness.report.figures import style

if TYPE_CHECKING:
    from torch import Tensor

    from harness.measure.attention_maps import LayerMaps

FAINTEST = 1e-4
"""The probability at the dark end of the scale; what is below is drawn as this."""
FUTURE = "#ececec"
"""The colour of what a query may not see."""


def draw_layer(layer: LayerMaps, method: str, note: str, path: Path) -> Path:
    """Draw the maps of a layer to `path`, and return it. method: its name and settings, for the title; note: goes below."""
    rows = _rows(layer)
    width, height = 2.1 * len(layer.heads) + 1.9, 2.0 * len(rows) + 1.5
    with matplotlib.rc_context(style.HEATMAP_RC):
        figure = style.new_figure(width, height)
        grid = figure.subplots(len(rows), len(layer.heads), squeeze=False, sharex=True, sharey=True)
        for panels, (label, part) in zip(grid, rows, strict=True):
            norm = PowerNorm(0.5, 0, 1) if part == "attended" else LogNorm(FAINTEST, 1)
            for axes, head in zip(panels, layer.heads, strict=True):
                colours = "Greys" if part == "attended" else "inferno"
                image = _draw_map(axes, getattr(head, part), layer.cells[part], layer.tokens, norm, colours)
                if part == "attended":
                    axes.set_title(f"{head.density:.0%} of the blocks,\n{head.mass:.1%} of the attention", fontsize=8.5)
            panels[0].set_ylabel(label, fontsize=9)
            bar = figure.colorbar(image, ax=list(panels), fraction=0.04, pad=0.01, aspect=22)
            bar.outline.set_visible(False)  # type: ignore[operator]
            bar.ax.tick_params(labelsize=8)
        for axes, head in zip(grid[0], layer.heads, strict=True):
            axes.set_title(f"head {head.head}", fontsize=10, fontweight="bold")
        for axes in grid[-1]:
            axes.set_xlabel("key", fontsize=8, labelpad=1)
        style.set_title(figure, f"Layer {layer.layer}, {layer.tokens:,} tokens: {method}")
        style.set_small_print(figure, note)
        return style.save(figure, path)


def _rows(layer: LayerMaps) -> list[tuple[str, str]]:
    """Return the labels of the rows, and the field of HeadMaps that each draws."""
    tile = f"largest in {layer.tile} × {layer.tile} tokens" if layer.tile > 1 else "each pair of tokens"
    rows = [
        (f"true attention\n{tile}", "true"),
        (f"true, in blocks\nlargest in {layer.block} × {layer.block},\nrows sum to 1", "truth"),
    ]
    if all(head.expected is not None for head in layer.heads):
        rows.append(("what the method expects\nrows sum to 1", "expected"))
    return [*rows, ("kept\nshare of the keys", "attended")]


def _draw_map(
    axes: Axes, tensor: Tensor, cell: tuple[int, int], tokens: int, norm: LogNorm | PowerNorm, colours: str
) -> AxesImage:
    """Draw one map [rows, columns] over positions in tokens, a row and a column of it being `cell` tokens, its future in light
    grey; return the image."""
    values = tensor.numpy()
    y, x = np.indices(values.shape)
    future = x * cell[1] >= (y + 1) * cell[0]  # it begins after the row's last query
    if isinstance(norm, LogNorm):
        values = np.clip(values, FAINTEST, 1)
    colour = matplotlib.colormaps[colours].with_extremes(bad=FUTURE)
    image = axes.imshow(
        np.ma.masked_array(values, future),
        norm=norm,
        cmap=colour,
        interpolation="nearest",
        extent=(0, values.shape[1] * cell[1], values.shape[0] * cell[0], 0),
    )
    axes.set(xlim=(0, tokens), ylim=(tokens, 0))  # the last row and column may reach beyond the prompt
    ticks = [0, tokens // 2, tokens]
    axes.set_xticks(ticks, [style.tokens(t) if t else "0" for t in ticks], fontsize=8)
    axes.set_yticks(ticks, [style.tokens(t) if t else "0" for t in ticks], fontsize=8)
    axes.tick_params(length=2)
    axes.spines[["left", "bottom"]].set_visible(False)
    return image
