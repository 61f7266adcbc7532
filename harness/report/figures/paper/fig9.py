"""Fig 9: how many times as fast as with dense attention a whole prefill is, bars by length: published above, measured
below."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from harness.report.density_match import arm_but_numbers, prefill_request
from harness.report.figures import style
from harness.report.figures.looks import BOUND_DASH, BOUND_SIGN, DENSE_DASH, DENSE_SIGN, GREY, INK, Look, is_bound, looks_of
from harness.report.figures.paper import sheet
from harness.report.figures.paper.drawing import Drawing, Value, command_of, suffix_of
from harness.report.figures.paper.item import Item
from harness.report.figures.paper.published import Published, by_series, of_item, sources
from harness.report.figures.paper.recorded import Recorded, fullest, grouped, notices_of, timed_alike
from harness.report.figures.picture_rows import usual_sparsity
from harness.report.lines import rows_by_line
from harness.report.notes import left_out_note, off_density
from harness.report.rows import Row
from harness.study.matching import Match

MOST_LINES = 8
"""Methods beside each other at most: those timed at most lengths, of these the fastest at the longest. All are in the CSV."""
FEWEST_METHODS = 3
"""Methods that make a comparison at a length."""
FEWEST_LENGTHS = 2
"""Lengths that a model needs for a picture of its own beside the first."""


@dataclass(frozen=True)
class Prefill:
    """A row with the milliseconds of its prefill, and of one with dense attention; paired: of the same rounds."""

    row: Row
    ms: float
    dense_ms: float
    paired: bool

    @property
    def speedup(self) -> float:
        """Return how many times as fast as with dense attention it is."""
        return self.dense_ms / self.ms

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """Return the speed-ups at the 90th and the 10th percentile of its times."""
        times = self.row.times
        if times is None or not times.ttft_low or not times.ttft_high:
            return None, None
        return self.dense_ms / times.ttft_high, self.dense_ms / times.ttft_low


def draw(item: Item, recorded: Recorded) -> list[Drawing]:
    """Return a picture for each of the models whose prefills were timed at two lengths at least, the fullest first; or one."""
    values = of_item(item.name)
    sets = grouped(prefills(recorded.timed_rows()), lambda prefill: (prefill.row.model, prefill.row.device))

    shown = fullest(sets, _fill, lambda own: _lengths(own) >= FEWEST_LENGTHS)
    if not shown:
        return [_draw(item, values, [], 0)]
    return [_draw(item, values, sets[key], number) for number, key in enumerate(shown)]


def _fill(own: Sequence[Prefill]) -> int:
    """Return how full a picture is: first by the lengths at which methods stand beside dense attention of the same rounds, then
    by all methods and lengths."""
    paired = grouped((one for one in own if one.paired), lambda one: one.row.length)
    compared = [length for length, members in paired.items() if len({one.row.method for one in members}) >= FEWEST_METHODS]
    return 10_000 * len(compared) + len({(one.row.method, one.row.length) for one in own})


def prefills(rows: Sequence[Row]) -> list[Prefill]:
    """Return the rows of methods beside dense attention of the same rounds, or else of the same study."""
    alike, timed = timed_alike(rows), []
    dense = {(row.study, row.model, row.device, row.length): row for row in alike if row.is_baseline}
    for row in alike:
        baseline = dense.get((row.study, row.model, row.device, row.length))
        beside = row.times.dense_ttft_ms if row.times is not None else None
        if row.is_baseline or row.times is None or not row.times.ttft_ms:
            continue
        if beside:
            timed.append(Prefill(row, row.times.ttft_ms, beside, True))
        elif baseline is not None and baseline.times is not None:
            timed.append(Prefill(row, row.times.ttft_ms, baseline.times.ttft_ms, False))
    return timed


def _lengths(own: Sequence[Prefill]) -> int:
    return len({prefill.row.length for prefill in own})


def lines_at(own: Sequence[Prefill], sparsity: float) -> tuple[dict[str, dict[int, Prefill]], list[Row]]:
    """Return the prefills at a sparsity by line and length, and the rows that are off it, which are left out. Of two whole
    knobs beside the request the nearer one stands: times can't be interpolated."""
    asked = [prefill for prefill in own if prefill.row.sparsity == sparsity]
    left_out = [prefill.row for prefill in asked if off_density(prefill.row)]
    nearest: dict[tuple[object, ...], Prefill] = {}
    for prefill in sorted(asked, key=lambda prefill: _distance(prefill.row)):
        if prefill.row not in left_out:
            one = prefill.row
            nearest.setdefault(arm_but_numbers(one) if one.match == Match.NEAREST else (one.arm, one.device), prefill)
    lines: dict[str, dict[int, Prefill]] = {}
    for length, members in grouped(nearest.values(), lambda prefill: prefill.row.length).items():
        of_row = {id(prefill.row): prefill for prefill in members}
        beside = [row for row in left_out if row.length == length]
        for name, rows in rows_by_line([prefill.row for prefill in members], beside=beside, asked=True).items():
            lines.setdefault(name, {})[length] = of_row[id(rows[0])]
    return lines, left_out


def _distance(row: Row) -> float:
    request = prefill_request(row)
    return 0.0 if request is None or row.density is None else abs(row.density - request)


def _draw(item: Item, values: Sequence[Published], own: Sequence[Prefill], number: int) -> Drawing:
    sparsity = usual_sparsity(prefill.row.sparsity for prefill in own)
    lines, left_out = lines_at(own, sparsity)
    shown = sorted(lines, key=lambda name: (-len(lines[name]), -_last(lines[name]).speedup, name))[:MOST_LINES]
    looks = looks_of(_last(line).row.method for line in lines.values())
    model, device = (own[0].row.model, own[0].row.device) if own else ("", "")
    at = f", {model} at density {1 - sparsity:.3g}" if own else ""
    figure = sheet.new_sheet(sheet.PAGE, 3.2, f"{item.number}: speed-up of the time to first token{at}")
    published = _speedups(values)
    lengths = sorted({length for line in lines.values() for length in line} | {x for by in published.values() for x in by})
    with matplotlib.rc_context(sheet.RC):
        upper, lower = figure.subplots(2, 1, sharex=True)
        greys = {series: sheet.published_look(place) for place, series in enumerate(published)}
        _draw_bars(upper, published, greys, lengths)
        upper.set_ylabel("times, published")
        if lines:
            bars = {name: {length: one.speedup for length, one in lines[name].items()} for name in shown}
            _draw_bars(lower, bars, {name: looks[_last(lines[name]).row.method] for name in shown}, lengths)
        else:
            sheet.set_empty(lower, "not measured")
        lower.set_ylabel("times, measured")
        lower.set_xticks(range(len(lengths)), [style.tokens(length) for length in lengths])
        lower.set_xlabel("length (tokens)")
        keys: list[Artist] = [Patch(label=name, **_bar_style(looks[_last(lines[name]).row.method], name)) for name in shown]
        keys += [Patch(color=look.colour, label=series) for series, look in greys.items()]
        sheet.finish(figure, _note(item, values, lines, left_out, shown), keys, 4)
    ours = [_value(name, one, shown=name in shown) for name, line in lines.items() for _, one in sorted(line.items())]
    names = {length: style.tokens(length) for length in lengths}
    measured = [names[length] for length in lengths if any(length in line for line in lines.values())]
    missing = [name for name in names.values() if name not in measured]
    return Drawing(figure, ours, values, model, device, suffix_of(number, model), measured, missing)


def _last(line: Mapping[int, Prefill]) -> Prefill:
    """Return the prefill of the longest length."""
    return line[max(line)]


def _speedups(values: Sequence[Published]) -> dict[str, dict[int, float]]:
    """Return the published speed-ups by series and length: those that are printed, and seconds of dense attention ÷
    seconds."""
    seconds = by_series([value for value in values if value.unit == "s"])
    dense, *others = seconds.items()
    of_dense = {value.x: value.y for value in dense[1]}
    speedups = {
        f"{series}, published in {_version(members[0])}": {int(v.x): of_dense[v.x] / v.y for v in members}
        for series, members in others
    }
    for series, members in by_series([value for value in values if value.unit == "times"]).items():
        speedups[f"{series}, published in {_version(members[0])}"] = {int(value.x): value.y for value in members}
    return speedups


def _version(value: Published) -> str:
    """Return the version of the paper that a value is from."""
    match = re.search(r"v\d+", value.source)
    return match.group() if match else value.source


def _bar_style(look: Look, name: str) -> dict[str, Any]:
    """Return how the bars of a line look: a bound's are outlined by dots."""
    if is_bound(name.partition(" ")[0]):
        return {"facecolor": "white", "edgecolor": look.colour, "linestyle": BOUND_DASH, "linewidth": 0.8}
    return {"facecolor": look.colour, "linewidth": 0}


def _draw_bars(axes: Axes, bars: Mapping[str, Mapping[int, float]], looks: Mapping[str, Look], lengths: Sequence[int]) -> None:
    """Draw groups of bars, one a length, each with its number."""
    width, turned = 0.8 / max(1, len(bars)), 90 if len(bars) > 4 else 0
    for place, (name, by_length) in enumerate(bars.items()):
        for number, length in enumerate(lengths):
            if length in by_length:
                x, y = number - 0.4 + width * (place + 0.5), by_length[length]
                axes.bar(x, y, width * 0.9, **_bar_style(looks[name], name))
                at: dict[str, Any] = {
                    "textcoords": "offset points",
                    "ha": "center",
                    "va": "bottom",
                    "fontsize": 5,
                    "rotation": turned,
                }
                at["path_effects"] = [withStroke(linewidth=1.5, foreground="white")]
                axes.annotate(f"{y:.2f}", (x, y), (0, 1.5), **at)
    axes.axhline(1.0, color=INK, linewidth=0.8, linestyle=DENSE_DASH, zorder=1)
    _mark_empty(axes, bars, lengths)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.16)


def _mark_empty(axes: Axes, bars: Mapping[str, Mapping[int, float]], lengths: Sequence[int]) -> None:
    """Say at which lengths there is nothing."""
    for number, length in enumerate(lengths):
        if not any(length in by_length for by_length in bars.values()):
            axes.annotate("none", (number, 0), (0, 3), textcoords="offset points", ha="center", fontsize=5, color=GREY)


def _value(name: str, prefill: Prefill, *, shown: bool) -> Value:
    row = prefill.row
    panel, how = style.tokens(row.length), "yes" if shown else "no"
    own = (panel, name, row.length, prefill.speedup, "times", row.study, row.device, *prefill.ends, how)
    return Value(*own, command_of(row.settings))


def _note(
    item: Item,
    values: Sequence[Published],
    lines: Mapping[str, Mapping[int, Prefill]],
    left_out: Sequence[Row],
    shown: Sequence[str],
) -> str:
    text = f"Grey: {sources(values)}; seconds there are those of FlashAttention-2 divided by each. "
    every = [one for line in lines.values() for one in line.values()]
    if not every:
        return text + item.how_to_make
    loose = sorted({one.row.length for one in every if not one.paired})
    when = f" At {', '.join(map(style.tokens, loose))} both are of the same study, not of the same rounds." if loose else ""
    others = sorted(name for name in lines if name not in shown)
    only = f"In the CSV alone: {', '.join(others)}. " if others else ""
    bound = f"{BOUND_SIGN}. " if any(is_bound(one.row.method) for one in every) else ""
    studies = ", ".join(sorted({one.row.study for one in every}))
    return (
        f"{text}Measured on {every[0].row.device}: the whole prefill, dense attention's ÷ the method's, medians; the CSV has "
        f"10th and 90th percentiles.{when} {DENSE_SIGN}. {bound}"
        f"{left_out_note(left_out, [one.row for one in every])}{only}"
        f"{notices_of([one.row for one in every])}Studies: {studies}."
    )
