"""The costs on the x axis of a Pareto picture, what dense attention costs on each, and the limits of an axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from harness.report.figures import looks, style
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

    def cost_of(self, row: Row) -> float | None:
        """Return what a row costs, dense attention's by its fastest kernel."""
        return self.dense_cost(row) if row.is_baseline else self.cost(row)


DENSITY = Axis(lambda row: row.density, lambda row: row.density, "density (share of causal blocks kept)")
DECODE = Axis(lambda row: row.decode_density, lambda row: 1.0, "density at decode (share of the cache's blocks kept)")
TOTAL = Axis(
    lambda row: row.total_ms,
    lambda row: row.dense_ms,
    f"time per attention layer call, with selection (ms), {style.LOG}",
    log=True,
)

RELATIVE = Axis(
    lambda row: None if row.times is None else 1 / row.times.speedup,
    lambda row: None if row.times is None else 1.0,
    f"attention time ÷ dense attention's, {style.LOG}",
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


def set_limits(axes: Axes, costs: Sequence[float], axis: Axis) -> None:
    """Have the axis show where the costs are, with a little room at both ends. Says "not measured" where there are none."""
    if not costs:
        axes.set_xlim(0, 1)
        axes.set_xticks([])
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=looks.GREY)
        return
    low, high = min(costs), max(costs)
    if axis.log:
        span = max(high / low, 1.5)
        axes.set_xscale("log")
        axes.set_xlim(low / span**0.1, high * span**0.1)
        style.log_axis(axes.xaxis)
        return
    room = 0.08 * (high - low) if high - low > 0.02 else 0.1
    axes.set_xlim(low - room, high + room)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
