"""What pictures and tables say of the rows in them: on how many prompts they are, at which densities, and what is left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.report.at_request import is_interpolated
from harness.report.lines import rows_by_line
from harness.report.rows import Row
from harness.study.matching import TOLERANCE, Match


def count_range(counts: Iterable[int | None], between: str, form: str = "") -> str:
    """Return how many samples (or documents) points have: a number, or the least and the most with `between` them. form: the
    format of a number."""
    ordered = sorted({count or 0 for count in counts})
    texts = [f"{ordered[0]:{form}}", f"{ordered[-1]:{form}}"]
    return texts[0] if len(ordered) == 1 else between.join(texts)


def same_prompts(rows: Sequence[Row]) -> str:
    """Return how many prompts all points are on, or the least and the most where lengths differ in that."""
    several = len({row.length for row in rows}) > 1
    return f"the same {count_range((row.samples for row in rows), '–')} prompts for all{' of a length' if several else ''}"


def request_note(shown: Sequence[Row], left_out: Sequence[Row]) -> str:
    """Return what the reader must know of a picture at a requested density: what was measured, which methods are interpolated
    between two neighbours, and how many rows are left out, and why."""
    asked = [row for row in shown if row.sparsity is not None and row.match is not None]
    between = sorted(rows_by_line([row for row in asked if is_interpolated(row)], beside=[*shown, *left_out]))
    measured = sorted({f"{row.density:.3f}" for row in asked if row.density is not None and not is_interpolated(row)})
    text = f"Measured densities: {'–'.join(dict.fromkeys([measured[0], measured[-1]]))}. " if measured else ""
    if between:
        text += f"Interpolated at the density between two whole knobs: {', '.join(between)}. "
    return text + left_out_note(left_out, shown)


def left_out_note(rows: Sequence[Row], shown: Sequence[Row] = ()) -> str:
    """Return how many rows a picture leaves out whose densities are off the request, and whose they are, by names that tell
    them from the lines that are shown; else nothing."""
    return left_out_text(len(rows), rows_by_line(rows, along="length", beside=shown))


def left_out_text(count: int, names: Iterable[str]) -> str:
    """Return how many rows are left out, of which lines; nothing for none."""
    if not count:
        return ""
    return f"Left out, more than {100 * TOLERANCE:g} % off the density asked for: {count} of {', '.join(sorted(names))}. "


def off_density(row: Row) -> bool:
    """Return whether a row is not at the density that it was asked for."""
    return row.match == Match.OFF_DENSITY
