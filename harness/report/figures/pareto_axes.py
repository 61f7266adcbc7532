"""The costs on the x axis of a Pareto picture, what dense attention costs on each, and the limits of an axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from harness.report.figures import style
from harness.report.rows import Row

Cost = Callable[[Row], float | None]
"""What a row costs; None where that was not measured."""


@dataclass(frozen=True)
class Axis:
    """One cost: of a row, of dense attention from its row (by its fastest kernel, whichever one the model ran), the label and
    whether the axis is logarithmic."""

    cost: Cost
    dense_cost: Cost
    label: str
    log: bool = False


DENSITY = Axis(lambda row: row.density, lambda row: row.density, "density (share of causal blocks kept)")
DECODE = Axis(lambda row: row.decode_density, lambda row: 1.0, "density at decode (share of the cache's blocks kept)")
TOTAL = Axis(
    lambda row: row.total_ms,
    lambda row: row.dense_ms,
    "time per attention layer call, selection included (ms)",
    log=True,
)

RELATIVE = Axis(
    lambda row: None if row.times is None else 1 / row.times.speedup,
    lambda row: None if row.times is None else 1.0,
    "attention time ÷ dense attention's, in the same rounds",
    log=True,
)
"""The time of rows whose dense attention was timed with them: what their speed-up says, whatever the machine did in between."""


def axes_of(rows: Sequence[Row]) -> tuple[Axis, ...]:
    """Return the costs to show: of a study of decoding alone, density at decode; of one without times, density alone. Times are
    shown as the rows' own speed-ups, in milliseconds where one was recorded before there were pairs."""
    sparse = [row for row in rows if not row.is_baseline]
    if sparse and all(row.block_size is None for row in sparse):
        return (DECODE,)
    timed = [row.times for row in sparse if row.times is not None]
    return (DENSITY, RELATIVE if all(times.paired for times in timed) else TOTAL) if timed else (DENSITY,)


def set_limits(axes: Axes, costs: Sequence[float], axis: Axis, names: float) -> None:
    """Make room on the left for the names, a share `names` of the panel; they stand where the lines are apart: at the cheap
    end. Says "not measured" where there are no costs."""
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
    step = 1 if span < 0.6 else 2
    axes.xaxis.set_major_locator(FixedLocator([t / 10 for t in range(0, 11, step) if t / 10 <= high + 0.1]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
