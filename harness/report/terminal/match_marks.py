"""Marks at measured densities that are not the ones asked for, and what they mean."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from harness.report.density_match import decode_match, prefill_match
from harness.report.rows import Row
from harness.report.terminal import formats
from harness.study.matching import TOLERANCE, Match

MARKS = {Match.NEAREST: "≈", Match.OFF_DENSITY: "≠"}
"""Written after a density that is not the one asked for."""
MEANINGS = {
    Match.NEAREST: "beside the density asked for, as its knob is a whole number: interpolate between the two neighbours",
    Match.OFF_DENSITY: f"more than {100 * TOLERANCE:g} % off the density asked for: compares with no row at that density",
}
"""What the marks mean."""


def marked_density(row: Row) -> str:
    """Return the measured density at prefill, marked where it is not the one asked for."""
    off = row.match is not None and prefill_match(row) not in (None, Match.MATCHED)
    return formats.number(row.density, ".3f") + (MARKS.get(row.match, "") if row.match is not None and off else "")


def marked_decode_density(row: Row) -> str:
    """Return the measured density at decode, marked where it is not the one asked for."""
    match = decode_match(row)
    return formats.number(row.decode_density, ".3f") + ("" if match is None else MARKS.get(match, ""))


def explain_marks(console: Console, rows: Iterable[Row]) -> None:
    """Print what the marks of rows mean."""
    marked = {row.match for row in rows}
    for match in (match for match in MARKS if match in marked):
        console.print(f"{MARKS[match]} {MEANINGS[match]}", style="yellow", highlight=False, soft_wrap=True)
