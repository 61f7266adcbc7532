"""One look for all pictures: fonts, a palette that colour-blind readers can tell apart, markers, labels, saving."""

from __future__ import annotations

import os
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLCONFIGDIR", str(Path(".cache/matplotlib").resolve()))  # nothing outside the working folder
Path(os.environ["MPLCONFIGDIR"]).mkdir(parents=True, exist_ok=True)

import matplotlib  # noqa: E402  (reads MPLCONFIGDIR when imported)
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patheffects import withStroke  # noqa: E402

from harness.core.question import QUESTION_TITLES  # noqa: E402
from harness.report.common_tasks import comparable  # noqa: E402
from harness.report.leaderboard import FULL, is_baseline_row  # noqa: E402
from harness.study.schema import Status  # noqa: E402

Row = dict[str, Any]
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
"""Okabe & Ito (2008) in the order that keeps neighbours apart, and two more; black is dense."""
MARKERS = "osD^vPX*"
MANY = 8
"""Methods that lines and names beside them can tell apart."""
Dash = str | tuple[int, tuple[float, ...]]
"""A line's style, as matplotlib takes it."""
DASHES: tuple[Dash, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1, 2)))
"""Line styles of the variants of one method."""
NARROWEST = 6.4
"""Inches that title and small print need in lines that one likes to read."""
TITLE_LETTER, NAME_LETTER, SMALL_LETTER = 0.105, 0.08, 0.063
"""Inches of an average letter: bold of 12 points, of 9, of 8."""
INK, GREY = "#222222", "#6b6b6b"
RC = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "savefig.dpi": 160,
}


def figure(width: float, height: float) -> Figure:
    """A figure of width × height inches that needs no display; as wide as the text around a picture needs at least."""
    with matplotlib.rc_context(RC):
        made = Figure(figsize=(max(width, NARROWEST), height), layout="constrained")
        FigureCanvasAgg(made)
    return made


def save(made: Figure, path: Path) -> Path:
    """Write the figure in one step: readers see the old picture or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.png")
    with matplotlib.rc_context(RC):
        made.savefig(temporary, format="png")
    os.replace(temporary, path)
    return path


def title(made: Figure, text: str, *, beside: float = 0.0) -> None:
    """The picture's title at its left, in as many lines as its width needs; `beside` inches at the right stay free."""
    columns = int((made.get_figwidth() - beside) / TITLE_LETTER)
    lines = textwrap.fill(text, max(20, columns))
    made.suptitle(lines, x=0.01, ha="left", fontsize=12, fontweight="bold")


def foot(made: Figure, text: str) -> None:
    """Small print at the picture's lower left, its lines folded to the width."""
    columns = int(made.get_figwidth() / SMALL_LETTER)
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, columns)]
    made.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8, color=GREY)


def by_model(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """The average rows that have an accuracy and compare (`harness.report.common_tasks`), by model and device: what one
    picture may hold together. Those whose question was not seen with the context are of a model whose name says so."""
    sets: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in comparable(rows)[0]:
        sets[model_of(row), row["device"]].append(row)
    return sets


def model_of(row: Row) -> str:
    """A row's model, and how it was asked where that was not with the context."""
    return str(row["model"]) + (f", {QUESTION_TITLES[row['question']]}" if row["question"] in QUESTION_TITLES else "")


def note(rows: Sequence[Row], device: str, *, bars: str = "bars", gated: str = "hollow") -> str:
    """What the reader must know, below a picture; `gated` says how rows that a gate holds back look there."""
    counts = sorted({r["samples"] for r in rows})
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    held = f"; {gated}: held back by a sanity gate" if any(r["status"] == Status.GATED for r in rows) else ""
    sparse = [r for r in rows if not is_baseline_row(r)]
    how = "Sparse prefill, full attention at decode. " if all(str(r["decode"]).startswith(FULL) for r in rows) else ""
    if sparse and all(r["block_size"] is None for r in sparse):
        how = "Dense prefill, sparse decode. "
    if sparse and sparse[0]["question"] in QUESTION_TITLES:  # a picture holds one of them
        how += f"The {QUESTION_TITLES[sparse[0]['question']]} had full attention. "
    interval = f", {bars}: 95 % interval" if bars else ""
    return f"Mean over tasks, {each} samples a point{interval}{held}.\n{how}Measured on {device}."


def looks(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every name, the same in all pictures of the same names."""
    found = {}
    for i, name in enumerate(sorted(set(names))):
        turn = i // len(PALETTE)  # a colour that comes again has another marker
        found[name] = PALETTE[i % len(PALETTE)], MARKERS[(i + 3 * turn) % len(MARKERS)]
    return found


def tokens(length: int) -> str:
    """4096 as "4k"; a length that is no multiple of 1024 as it is."""
    return f"{length // 1024}k" if length % 1024 == 0 else f"{length:,}"


def percent_axis(axes: Axes) -> None:
    """Accuracy in per cent on the y axis, with room for bars at 0 and 100."""
    axes.set_ylim(-4, 104)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("accuracy (%)")


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions as near to `wanted` as can be with at least `gap` between neighbours, within [low, high]."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[tuple[list[int], float]] = []  # members, centre
    for i in order:
        members, centre = [i], wanted[i]
        while groups:
            before, at = groups[-1]
            if at + gap * len(before) / 2 <= centre - gap * len(members) / 2:
                break
            groups.pop()
            members = before + members
            centre = sum(wanted[m] for m in members) / len(members)
        half = gap * (len(members) - 1) / 2
        centre = min(max(centre, low + half), high - half)
        groups.append((members, centre))
    placed = [0.0] * len(wanted)
    for members, centre in groups:
        for rank, i in enumerate(members):
            placed[i] = centre + gap * (rank - (len(members) - 1) / 2)
    return placed


def error_bars(row: Row) -> tuple[float, float]:
    """Lengths of the bar below and above the accuracy, per cent."""
    mean = 100 * row["accuracy"]
    return max(0.0, mean - 100 * row["accuracy_low"]), max(0.0, 100 * row["accuracy_high"] - mean)


def name(axes: Axes, text: str, point: tuple[float, float], height: float, colour: str, *, side: str) -> None:
    """Write a line's name beside its end `point`, at `height` on the y axis, on its left or right side, or below it. A
    white halo keeps it readable on another line."""
    away, align = {"left": (-11, "right"), "right": (11, "left"), "below": (0, "center")}[side]
    axes.annotate(
        text,
        (point[0], height),
        xytext=(away, 0),
        textcoords="offset points",
        ha=align,
        va="center",
        fontsize=9.5,
        color=colour,
        fontweight="bold",
        zorder=6,
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )
