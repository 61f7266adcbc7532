"""Accuracy against what it costs: density in one panel, time in the other, one line a method, dense as a band."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from harness.report import variants
from harness.report.figures import style
from harness.report.leaderboard import is_baseline_row
from harness.study.schema import Status

Row = style.Row
COLUMNS = 3
"""Lengths beside each other before a new pair of panel rows begins."""


LEGEND = 0.9
"""Inches of what stands beside the names next to the panels: line, marker and margins."""


Label = tuple[str, float, float, str]
"""A line's name, its cheapest point and its colour."""


NEAR = 0.08
"""Share of the panel's width by which a name may stand off its line to leave another line's point in sight."""


LONGEST = 26
"""Letters of a name that leave a panel room for its lines."""


NEAR_DENSE = 0.75
"""A density from which on dense attention's own is in the picture too."""


@dataclass(frozen=True)
class Axis:
    """One cost: its column, the label of its axis and whether the axis is logarithmic."""

    column: str
    label: str
    log: bool


DENSITY = Axis("density", "density (share of causal blocks kept)", False)
DECODE = Axis("decode_density", "density at decode (share of the cache's blocks kept)", False)
TOTAL = Axis("total_ms", "time per attention layer call, selection included (ms)", True)


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `pareto.png` (all lengths) and, of several lengths, one `pareto_LENGTH.png` each; one set per model and
    device, whose names the files then carry. Rows without accuracy are left out; gated ones are hollow. A study of dense
    attention alone, or of block sizes at one sparsity (see `blocks`), has no curves and gets none."""
    sets = style.by_model(rows)
    paths = []
    for (model, device), members in sets.items():
        if _points_only(members):
            continue
        suffix = f"_{_slug(model)}_{_slug(device)}" if len(sets) > 1 else ""
        lengths = sorted({r["length"] for r in members})
        paths.append(style.save(draw(members, lengths, model, device), folder / f"pareto{suffix}.png"))
        for length in lengths if len(lengths) > 1 else []:
            single = [r for r in members if r["length"] == length]
            paths.append(style.save(draw(single, [length], model, device), folder / f"pareto{suffix}_{length}.png"))
    return paths


def _points_only(rows: Sequence[Row]) -> bool:
    """Nothing but single points, or no sparse method at all."""
    sparse = [r for r in rows if not _dense(r)]
    if not sparse:
        return True
    return len({r["block_size"] for r in sparse}) > 1 and len({r["sparsity"] for r in sparse}) == 1


def _slug(text: str) -> str:
    words = "".join(c if c.isalnum() else " " for c in text.split("(")[0]).split()
    return "-".join(words).lower()


def draw(rows: Sequence[Row], lengths: Sequence[int], model: str, device: str) -> Figure:
    """The figure for average rows of one model and device: for one length two panels side by side, for several a
    panel above the other, lengths from left to right. Methods that decode sparsely after a dense prefill have one panel each:
    the timings are of prefill."""
    kinds = _axes(rows)
    many = _many(rows, kinds[0])
    looks = style.looks(_who(r) for r in rows if not _dense(r))
    dashes = _dashes(rows, kinds[0], own=many)
    names = LEGEND + style.NAME_LETTER * max(map(len, [*dashes, *looks]), default=0)
    if len(lengths) == 1:
        made = style.figure((10.5 if len(kinds) > 1 else 6.0) + (1.5 if many else 0.0), 4.6)
        grid = [[(lengths[0], kind) for kind in kinds]]
    else:
        grid = []
        for start in range(0, len(lengths), COLUMNS):
            part = lengths[start : start + COLUMNS]
            grid += [[(n, kind) for n in part] for kind in kinds]
        made = style.figure(4.6 * min(COLUMNS, len(lengths)) + (names if many else 0.0), 3.7 * len(grid))
    with matplotlib.rc_context(style.RC):
        width = max(len(line) for line in grid)
        inches = (made.get_figwidth() - (names if many and len(lengths) > 1 else 0.0)) / width - 0.7
        for i, line in enumerate(grid):
            for j, (length, axis) in enumerate(line):
                axes = made.add_subplot(len(grid), width, i * width + j + 1)
                _panel(axes, rows, length, axis, looks, dashes, inches, named=not many)
                if len(lengths) > 1:
                    axes.set_title(f"{style.tokens(length)} tokens", loc="left", fontweight="bold")
        style.title(made, _title(rows, lengths, model), beside=names if many else 0.0)
        if many:
            _legend(made, rows, kinds[0], looks, dashes)
        native = "Ringed: at the method's own defaults. " if many and any(r["sparsity"] is None for r in rows) else ""
        style.foot(made, native + style.note(rows, device, bars="" if many else "bars"))
    return made


def _many(rows: Sequence[Row], axis: Axis) -> bool:
    """Whether methods or lines are too many, or their names too long, to stand at the lines."""
    lines = _lines(_asked(rows, own=True), axis)
    methods = {r["method"] for r in rows if not _dense(r)}
    return max(len(methods), len(lines)) > style.MANY or max(map(len, lines), default=0) > LONGEST


def _legend(
    made: Figure, rows: Sequence[Row], axis: Axis, looks: Mapping[str, tuple[str, str]], dashes: Mapping[str, style.Dash]
) -> None:
    """Names beside the panels where there are too many to stand at their lines, by mean accuracy."""
    lines = _lines(_asked(rows, own=True), axis)
    order = sorted(lines, key=lambda name: fmean(r["accuracy"] for r in lines[name]), reverse=True)
    handles = []
    for name in order:
        colour, marker = looks[_who(lines[name][0])]
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle=dashes[name], linewidth=1.8, markersize=6))
    alone = [name for name in looks if name not in {_who(part[0]) for part in lines.values()}]  # ringed points, no line
    handles += [Line2D([], [], color=looks[name][0], marker=looks[name][1], linestyle="", markersize=6) for name in alone]
    made.legend(handles, order + alone, loc="outside right upper", frameon=False, fontsize=9, handlelength=4)


def _asked(rows: Sequence[Row], *, own: bool) -> list[Row]:
    """The rows that make lines. own: points at native defaults are no part of one."""
    return [r for r in rows if not _dense(r) and not (own and r["sparsity"] is None)]


def _dashes(rows: Sequence[Row], axis: Axis, *, own: bool) -> dict[str, style.Dash]:
    """How each line of the figure is drawn, the same in all panels: a method's first one solid."""
    drawn: Counter[str] = Counter()
    found = {}
    for name, members in sorted(_lines(_asked(rows, own=own), axis).items()):
        method = _who(members[0])
        found[name] = style.DASHES[drawn[method] % len(style.DASHES)]
        drawn[method] += 1
    return found


def _axes(rows: Sequence[Row]) -> tuple[Axis, ...]:
    """The costs to show: of a study of decoding alone, density at decode; of one without times, density alone."""
    sparse = [r for r in rows if not _dense(r)]
    if sparse and all(r["block_size"] is None for r in sparse):
        return (DECODE,)
    return (DENSITY, TOTAL) if any(r["total_ms"] is not None for r in sparse) else (DENSITY,)


def _title(rows: Sequence[Row], lengths: Sequence[int], model: str) -> str:
    at = f" at {style.tokens(lengths[0])} tokens" if len(lengths) == 1 else ""
    if _axes(rows) == (DECODE,):
        return f"{model}{at}: accuracy of sparse decoding"
    if _axes(rows) == (DENSITY,):
        return f"{model}{at}: accuracy against density"
    return f"{model}{at}: what is left of the accuracy, and what it costs"


def _who(row: Row) -> str:
    """Whose colour a row has: its method, or the one that decodes after a dense prefill."""
    return str(row["method"]) if row["block_size"] is not None else variants.decoding(row)[0]


def _lines(rows: Sequence[Row], axis: Axis) -> dict[str, list[Row]]:
    """The lines of a panel by the names that stand at them. After a dense prefill they are told apart by what decodes:
    "dense (quest)" is quest there."""
    if axis is not DECODE:
        return variants.lines(rows)
    found = variants.lines(rows, along=axis.column)
    return {name.partition(" (")[2].removesuffix(")") or _who(members[0]): members for name, members in found.items()}


def _dense(row: Row) -> bool:
    return is_baseline_row(row)


def _dense_cost(row: Row, axis: Axis) -> Any:
    """What dense attention costs: by its fastest kernel, whichever one the model ran."""
    if axis is DECODE:
        return 1.0
    return row["dense_ms"] if axis is TOTAL else row[axis.column]


def _panel(
    axes: Axes,
    figure: Sequence[Row],
    length: int,
    axis: Axis,
    looks: Mapping[str, tuple[str, str]],
    dashes: Mapping[str, style.Dash],
    width: float,
    *,
    named: bool,
) -> None:
    """The panel of one length, about `width` inches wide, of the whole figure's rows. named: names stand at the lines, and
    points at native defaults have lines of their own; else those are ringed, and names are in a legend."""
    rows = [r for r in figure if r["length"] == length]
    style.percent_axis(axes)
    axes.set_xlabel(axis.label)
    dense = next((r for r in rows if _dense(r)), None)
    points = [r for r in rows if not _dense(r) and r[axis.column] is not None]
    costs = [float(r[axis.column]) for r in points]
    if dense is not None and _dense_cost(dense, axis) is not None and (axis.log or max(costs, default=0.0) > NEAR_DENSE):
        costs.append(float(_dense_cost(dense, axis)))
    own = [] if named else [r for r in points if r["sparsity"] is None]
    here = set(map(id, points))
    everywhere = _lines(_asked(figure, own=not named), axis)  # so that a line has one name at all lengths
    lines = {name: part for name, members in everywhere.items() if (part := [r for r in members if id(r) in here])}
    longest = max(map(len, lines), default=0) if named else 0
    _limits(axes, costs, axis, (6.6 * longest + 18) / (72 * width))
    if dense is not None:
        _band(axes, dense, axis)
    for row in own:
        colour, marker = looks[_who(row)]
        x, y = row[axis.column], 100 * row["accuracy"]
        axes.plot(x, y, "o", color=style.INK, markerfacecolor="none", markersize=11, markeredgewidth=0.8, zorder=4)
        axes.plot(x, y, marker, color=colour, markerfacecolor="white" if row["status"] == Status.GATED else colour, zorder=4)
    labels = []
    for name, members in sorted(lines.items()):
        colour, marker = looks[_who(members[0])]
        members = sorted(
            members, key=lambda r: r[axis.column if axis is DECODE else "density"]
        )  # in the time panel too: a curve follows the sparsity
        xs = [r[axis.column] for r in members]
        ys = [100 * r["accuracy"] for r in members]
        below, above = zip(*(style.error_bars(r) for r in members), strict=True)
        if named:  # many bars would hide the points
            axes.errorbar(xs, ys, yerr=[below, above], fmt="none", ecolor=colour, elinewidth=1, capsize=2.5, alpha=0.45)
        axes.plot(xs, ys, linestyle=dashes[name], color=colour, linewidth=1.8, zorder=3)
        for x, y, row in zip(xs, ys, members, strict=True):
            face = "white" if row["status"] == Status.GATED else colour
            axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=6, zorder=4)
        cheapest = min(range(len(xs)), key=xs.__getitem__)
        labels.append((name, xs[cheapest], ys[cheapest], colour))
    if not named:
        return
    marks = [(name, float(r[axis.column]), 100 * r["accuracy"]) for name, members in lines.items() for r in members]
    if dense is not None and _dense_cost(dense, axis) is not None:
        marks.append(("", float(_dense_cost(dense, axis)), 100 * dense["accuracy"]))
    _labels(axes, labels, marks, width)


def _limits(axes: Axes, costs: Sequence[float], axis: Axis, names: float) -> None:
    """Room on the left for the names, a share `names` of the panel; they stand where the lines are apart: at the cheap
    end."""
    if not costs:
        axes.set_xlim(0, 1)
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=style.GREY)
        return
    low, high = min(costs), max(costs)
    right = 0.1
    left = (1 + right) * names / (1 - names)
    if axis.log:
        span = max(high / low, 1.5)
        axes.set_xscale("log")
        axes.set_xlim(low / span**left, high * span**right)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        return
    if high - low < 0.05:  # one density: shown on the whole axis, dense at its end
        low, high = 0.0, 1.0
    span = high - low
    axes.set_xlim(low - left * span, high + right * span)
    every = 1 if span < 0.6 else 2
    axes.xaxis.set_major_locator(FixedLocator([t / 10 for t in range(0, 11, every) if t / 10 <= high + 0.1]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _band(axes: Axes, dense: Row, axis: Axis) -> None:
    mean = 100 * dense["accuracy"]
    axes.axhspan(100 * dense["accuracy_low"], 100 * dense["accuracy_high"], color=style.INK, alpha=0.08, linewidth=0)
    axes.axhline(mean, color=style.INK, linewidth=1.2, linestyle=(0, (5, 3)))
    cost = _dense_cost(dense, axis)
    if cost is not None:
        axes.plot(cost, mean, "o", color=style.INK, markersize=6, zorder=4)
    above = mean < 97  # at the left end, where only names of methods are
    axes.annotate(
        str(dense["method"]),
        (0, mean),
        xycoords=("axes fraction", "data"),
        xytext=(3, 3 if above else -3),
        textcoords="offset points",
        ha="left",
        va="bottom" if above else "top",
        fontsize=9,
    )


def _labels(axes: Axes, labels: Sequence[Label], points: Sequence[tuple[str, float, float]], width: float) -> None:
    """Names at the left of the cheapest points, moved apart where they would overlap; a little further left, or below the
    point, where the name would cover a point of another line."""
    if not labels:
        return
    heights = style.spread([y for _, _, y, _ in labels], 7.0, 0.0, 100.0)
    low, high = axes.get_xlim()
    log = axes.get_xscale() == "log"

    def across(x: float) -> float:
        return math.log(x / low) / math.log(high / low) if log else (x - low) / (high - low)

    for (name, x, y, colour), height in zip(labels, heights, strict=True):
        start = across(x) - (6.6 * len(name) + 11) / (72 * width)
        hidden = [px for owner, px, py in points if owner != name and start < across(px) < across(x) and abs(py - height) < 4]
        if hidden and across(x) - across(min(hidden)) > NEAR:
            style.name(axes, name, (x, y), y - 8, colour, side="below")
        else:
            style.name(axes, name, (min([x, *hidden]), y), height, colour, side="left")
