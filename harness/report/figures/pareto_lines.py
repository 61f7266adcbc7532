"""The lines of a Pareto picture: their rows, names and looks, the same in all its panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from harness.core.knob_names import RELEASED
from harness.report.figures.few import MOST, best_few
from harness.report.figures.looks import LineLook, line_looks
from harness.report.figures.pareto_axes import DECODE, Axis
from harness.report.front import front_rows, is_bound_row
from harness.report.lines import rows_by_line
from harness.report.row_texts import FULL
from harness.report.rows import Row


@dataclass(frozen=True)
class ParetoLines:
    """The lines of a picture by their names, how each is drawn, and those of them that are pale, as there are too many."""

    rows: Mapping[str, list[Row]]
    looks: Mapping[str, LineLook]
    pale: frozenset[str] = field(default_factory=frozenset)

    @property
    def told_apart(self) -> list[str]:
        """Return the names of the lines that are not pale, the most accurate first."""
        names = [name for name in self.rows if name not in self.pale]
        return sorted(names, key=lambda name: -_accuracy(self.rows[name]))


def colour_name(row: Row) -> str:
    """Return whose colour a row has: its method, or the one that decodes after a dense prefill."""
    return row.method if row.block_size is not None else row.decode.method or FULL


def lines_of(rows: Sequence[Row], axis: Axis) -> dict[str, list[Row]]:
    """Return the lines of a panel by the names that stand at them. After a dense prefill they are told apart by what decodes:
    "dense (quest)" is quest there."""
    if axis is not DECODE:
        return rows_by_line(rows)
    lines = rows_by_line(rows, along="decode_density")
    return {name.partition(" (")[2].removesuffix(")") or colour_name(members[0]): members for name, members in lines.items()}


def pareto_lines(rows: Sequence[Row], kinds: Sequence[Axis]) -> ParetoLines:
    """Return the lines of the sparse rows of a figure, the same in all panels. Lines of a method share colour and marker; the
    first one is solid. Of too many lines those are told apart that have most points on a front, after the most accurate
    bound, and of equal ones the most accurate."""
    lines = _with_native(rows, kinds[0])
    methods = {name: colour_name(members[0]) for name, members in lines.items()}
    on_front = set[int]()
    for length in {row.length for row in rows}:
        at_length = [row for row in rows if row.length == length]
        for axis in kinds:
            on_front |= {id(row) for row in front_rows(at_length, axis.cost_of)}

    bound = max((name for name in lines if is_bound_row(lines[name][0])), key=lambda name: _accuracy(lines[name]), default="")

    def order(name: str) -> tuple[bool, int, float]:
        """Return the place of a line among the others, the first ones the smallest."""
        points = sum(id(row) in on_front for row in lines[name])
        return name != bound, -points, -_accuracy(lines[name])

    first: list[str] = best_few(lines, order, MOST - 1)
    pale = frozenset(set(lines) - set(first))
    ordered = sorted(lines, key=lambda name: (name in pale, name))
    bounds = [name for name in lines if is_bound_row(lines[name][0])]
    return ParetoLines(lines, line_looks({name: methods[name] for name in ordered}, bounds=bounds), pale)


def is_native(row: Row) -> bool:
    """Return whether a row is of a method at its own defaults, which was asked for no density at prefill."""
    return row.sparsity is None and row.block_size is not None


def _with_native(rows: Sequence[Row], axis: Axis) -> dict[str, list[Row]]:
    """Return the lines of the sparse rows by their names. Points at native defaults do not tell lines apart: they go with the
    line of their name, or with the only one of their method, unless they ran as released."""
    lines = lines_of([row for row in rows if not row.is_baseline and not is_native(row)], axis)
    natives = lines_of(list(filter(is_native, rows)), axis)
    for name, members in natives.items():
        method, released = members[0].method, members[0].knobs.get(RELEASED)
        own = [line for line, others in lines.items() if others[0].method == method]
        alone = sum(others[0].method == method for others in natives.values()) == 1
        line = own[0] if name not in lines and len(own) == 1 and alone and not released else name
        lines.setdefault(line, []).extend(members)
    return lines


def _accuracy(rows: Sequence[Row]) -> float:
    return fmean(row.scored.accuracy for row in rows)
