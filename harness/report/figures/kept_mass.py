"""The attention mass that methods keep: `kept_mass.csv`, a line per arm and layer, and a heatmap of methods by layers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from attention_kernels.kept_mass import ROWS
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report import leaderboard, variants
from harness.report.figures import heatmap, style
from harness.study.store import Record, Store

COLUMNS = (
    "study",
    "model",
    "method",
    "knob",
    "sparsity",
    "length",
    "block_size",
    "layer",
    "kept_mass",
    "lowest_head",
    "lowest_kept_mass",
    "density",
    "prompts",
    "dtype",
    "device",
    "torch",
    "commit",
    "seed",
    "command",
    "date",
)
"""Of kept_mass.csv: `kept_mass` is the mean (see `schema.MassRecord`) over a layer's query heads and `prompts`, `lowest_head`
the head that keeps the least, `density` that of the layer."""
PREFERRED = 0.9


def write(store: Store) -> list[Path]:
    """Write `kept_mass.csv`, `kept_mass.png` (the sparsity that most methods have, the nearest to 0.9) and
    `kept_mass_native.png` (methods at their native knobs), as far as there are records."""
    records = list({r["arm"]: r for r in store.mass.read()}.values())
    if not records:
        return []
    runs = {r["run"]: r for r in store.runs.read()}
    rows = [_row(record, runs, store.folder.name) for record in records]
    rows.sort(key=lambda r: (r["model"], r["length"], r["method"], r["sparsity"] is None, r["sparsity"] or 0, str(r["knob"])))
    table = [line for row in rows for line in _lines(row)]
    paths = [leaderboard.write_csv(store.folder / "kept_mass.csv", COLUMNS, table)]
    sets: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        sets[row["model"], row["device"]].append(row)
    for number, ((model, device), members) in enumerate(sorted(sets.items())):
        suffix = f"_{number}" if number else ""
        usual = _usual(members)
        for name, mine, what in (
            ("kept_mass", [r for r in members if r["sparsity"] == usual], f"at sparsity {usual:g}"),
            ("kept_mass_native", [r for r in members if r["sparsity"] is None], "at native defaults"),
        ):
            if mine:
                paths.append(
                    style.save(draw(mine, f"{model}: attention mass kept {what}", device), store.folder / f"{name}{suffix}.png")
                )
    return paths


def _row(record: Record, runs: Mapping[str, Record], study: str) -> dict[str, Any]:
    row = leaderboard.mass_row(record, runs) | {"study": study}
    return row | {n: record[n] for n in ("layers", "kept", "prompts")} | {"densities": record["density"]}


def _lines(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    made = []
    for layer, heads, density in zip(row["layers"], row["kept"], row["densities"], strict=True):
        low = min(range(len(heads)), key=heads.__getitem__)
        mass = {"kept_mass": fmean(heads), "lowest_head": low, "lowest_kept_mass": heads[low]}
        made.append({**row, **mass, "layer": layer, "density": density})
    return made


def _usual(rows: Sequence[Mapping[str, Any]]) -> float:
    counts = Counter(r["sparsity"] for r in rows if r["sparsity"] is not None)
    return max(counts, key=lambda s: (counts[s], -abs(s - PREFERRED)), default=PREFERRED)


def draw(rows: Sequence[dict[str, Any]], title: str, device: str) -> Figure:
    """A panel per length; methods from top to bottom by the mass they keep, layers from left to right, then their mean and
    the density."""
    named = variants.lines(rows, along="length")
    means = {name: fmean(_mean(r) for r in mine) for name, mine in named.items()}
    order = sorted(named, key=means.__getitem__, reverse=True)
    lengths = sorted({r["length"] for r in rows})
    layers = sorted({layer for r in rows for layer in r["layers"]})
    made = style.figure(2.2 + len(lengths) * (1.3 + 0.34 * min(len(layers), 20)), 1.7 + 0.3 * len(order))
    with matplotlib.rc_context(style.RC | {"axes.grid": False}):
        for i, length in enumerate(lengths):
            axes = made.add_subplot(1, len(lengths), i + 1)
            at = {name: next((r for r in named[name] if r["length"] == length), None) for name in order}
            _panel(axes, at, layers)
            axes.set_title(f"{style.tokens(length)} tokens", loc="left", fontweight="bold")
            if i:
                axes.set_yticklabels([])
        style.title(made, title)
        prompts = "–".join(str(n) for n in sorted({min(r["prompts"] for r in rows), max(r["prompts"] for r in rows)}))
        note = f"Per cent of the true attention of up to {ROWS} query blocks, first and last among them, mean over query heads"
        note += f" and {prompts} prompts, prefilled densely."
        note += f" Measured on {device}."
        style.foot(made, note)
    return made


def _mean(row: Mapping[str, Any]) -> float:
    return fmean(fmean(heads) for heads in row["kept"])


def _panel(axes: Axes, rows: Mapping[str, dict[str, Any] | None], layers: Sequence[int]) -> None:
    table = np.full((len(rows), len(layers)), np.nan)
    for y, row in enumerate(rows.values()):
        for layer, heads in zip(row["layers"], row["kept"], strict=True) if row else ():
            table[y, layers.index(layer)] = 100 * fmean(heads)
    beside = [
        ("mean", ["" if r is None else f"{100 * _mean(r):.0f}" for r in rows.values()]),
        ("density", ["" if r is None else f"{fmean(r['densities']):.2f}".lstrip("0") for r in rows.values()]),
    ]
    heatmap.panel(axes, table, list(rows), list(map(str, layers)), label="layer", beside=beside)
