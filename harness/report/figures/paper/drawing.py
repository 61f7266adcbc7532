"""An item of the paper as it was drawn: its values, ours and published, the picture, and what is said of it in the
checklist."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from matplotlib.figure import Figure

from harness.report.csv_file import write_csv
from harness.report.figures.paper.published import Published
from harness.study.identity import digest

COLUMNS = (
    "panel",
    "series",
    "origin",
    "x",
    "y",
    "low",
    "high",
    "unit",
    "shown",
    "study",
    "device",
    "source",
    "certainty",
    "command",
)
"""The columns of the CSV of an item. `origin` is "ours" or "published"; `shown` is "yes", "hollow" (off the density that
was asked for), or "no" (left out of the picture, which says why); `low` and `high` are ends of an interval: of 95 %, or of
a time or speed-up from the 10th to the 90th percentile of the calls."""


LONGEST = 80
"""Letters of a model in the name of a file."""


@dataclass(frozen=True)
class Value:
    """One value of a picture: `COLUMNS` says what its fields hold. x is a number, or the name of a column."""

    panel: str
    series: str
    x: float | int | str
    y: float
    unit: str
    study: str = ""
    device: str = ""
    low: float | None = None
    high: float | None = None
    shown: str = "yes"
    command: str = ""

    def cells(self) -> tuple[object, ...]:
        """Return the cells of its line in the CSV."""
        own = (self.panel, self.series, "ours", self.x, self.y, self.low, self.high, self.unit, self.shown)
        return (*own, self.study, self.device, "", "", self.command)


@dataclass(frozen=True)
class Drawing:
    """A picture of an item: of `model` on `device` as studies measured it, both empty where nothing of ours is in it.

    suffix: what its file's name ends in, after the item's; empty of the first. measured, missing: the names of the panels, or
    of the columns, that hold values of ours, and of those that do not.
    """

    figure: Figure
    values: Sequence[Value] = ()
    published: Sequence[Published] = ()
    model: str = ""
    device: str = ""
    suffix: str = ""
    measured: Sequence[str] = ()
    missing: Sequence[str] = field(default_factory=tuple)

    @property
    def studies(self) -> list[str]:
        """Return the studies that its values come from."""
        return sorted({value.study for value in self.values})

    @property
    def status(self) -> str:
        """Return in a few words what of it is measured."""
        if not self.values:
            return "not measured"
        return f"measured but for {', '.join(self.missing)}" if self.missing else "measured"


def write_values(path: Path, drawing: Drawing) -> Path:
    """Write the values of a drawing, ours before the published ones, and return the path."""
    ours = [value.cells() for value in drawing.values]
    others = [
        (
            *(value.panel, value.series, "published", value.x, value.y, None, None, value.unit),
            *("yes", "", "", value.source, value.certainty, ""),
        )
        for value in drawing.published
    ]
    return write_csv(path, COLUMNS, [*ours, *others])


def suffix_of(number: int, model: str) -> str:
    """Return what the name of a picture's file ends in, of the first model nothing."""
    slug = "-".join(re.findall(r"[a-z0-9]+", model.lower()))
    if slug and len(slug) <= LONGEST:
        return f"_{slug}" if number else ""
    return f"_{slug[:LONGEST]}-{digest(model)[:8]}" if number else ""


def command_of(settings: Iterable[str]) -> str:
    """Return the command that measures a row again, by the settings that the row holds."""
    from harness.study.command_settings import as_command_line

    text = as_command_line(tuple(settings))
    return f"python -m harness {text}" if text else ""


def named_apart(drawings: Sequence[Drawing]) -> list[Drawing]:
    """Return drawings of which no two would be written into one file: those of models whose names differ in signs alone get a
    number."""
    suffixes: set[str] = set()
    apart = []
    for drawing in drawings:
        suffix, number = drawing.suffix, 1
        while suffix in suffixes:
            number += 1
            suffix = f"{drawing.suffix}-{number}"
        suffixes.add(suffix)
        apart.append(replace(drawing, suffix=suffix))
    return apart
