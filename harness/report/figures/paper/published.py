"""What the paper, its first version and its release say, as `published.csv` beside this file holds it.

A line is one value: `item`, `panel` and `series` say where it stands, `x` is its place (a sparsity, a length in tokens, a
column of a table), `y` the value in its `unit`, `source` where it was read, and `certainty` how: "printed" as a number,
"read-off" from the pixels of a figure, "computed" from what the release's code allocates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harness.report.csv_file import read_csv

FILE = Path(__file__).with_name("published.csv")
"""The one file of published values."""
CERTAINTIES = ("printed", "read-off", "computed")
"""How a value was read."""


@dataclass(frozen=True)
class Published:
    """One published value, as the file has it; `x` is a text, which may be a number."""

    item: str
    panel: str
    series: str
    x: str
    y: float
    unit: str
    source: str
    certainty: str

    @property
    def place(self) -> float:
        """Return the place on an axis of numbers. Raises ValueError for the column of a table."""
        return float(self.x)


@lru_cache(maxsize=1)
def published() -> tuple[Published, ...]:
    """Return all published values, in the order of the file."""
    return tuple(Published(**(row | {"y": float(row["y"])})) for row in read_csv(FILE))  # type: ignore[arg-type]


def of_item(item: str, *, panel: str | None = None, unit: str | None = None) -> list[Published]:
    """Return the values of an item, of one panel and unit where they are named."""
    return [
        value for value in published() if value.item == item and panel in (None, value.panel) and unit in (None, value.unit)
    ]


def by_series(values: Sequence[Published]) -> dict[str, list[Published]]:
    """Return values by their series, in the order in which they come."""
    series: dict[str, list[Published]] = {}
    for value in values:
        series.setdefault(value.series, []).append(value)
    return series


def sources(values: Sequence[Published]) -> str:
    """Return where values were read and how sure they are, for the small print of a picture."""
    texts = dict.fromkeys(f"{value.source} ({value.certainty})" for value in values)
    return "; ".join(texts)
