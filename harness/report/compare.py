"""Every line of a study beside one of them, on the same samples, and `compare_LINE.csv`.

The leaderboard compares with dense; this compares methods with each other, at one model, length and sparsity asked for, on one
set of prompts. Rows off the density asked for are compared with nothing; of two whole numbers beside it what lies between is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.core.errors import UserError
from harness.report.at_request import at_request, is_interpolated
from harness.report.common_tasks import compared_rows
from harness.report.csv_file import write_csv
from harness.report.leaderboard import leaderboard_rows
from harness.report.lines import line_names, rows_by_line
from harness.report.rows import Row
from harness.stats import scores
from harness.stats.paired import difference_interval, mean_difference
from harness.study.schema import Status
from harness.study.store import Store

Panel = tuple[str, str, int, str, str]
"""What is shown together: model, device, length, when the question was asked, and the set of prompts."""
TaskScores = Mapping[tuple[str, str], Mapping[int, float]]
"""Scores by task (with what says which samples it had) and sample."""


@dataclass(frozen=True)
class LinePair:
    """One line beside another at one sparsity; the columns of compare_LINE.csv.

    difference: accuracy of `line` minus that of `beside` with its 95 % interval, each task weighing the same; both ran the same
    `samples`. p_holm: over all lines and sparsities of one model, device, length, question and set of prompts. prompt_set:
    empty for the one that most arms have, else how many prompts it has. interpolated: which of the two are between the rows of
    two whole numbers, "line", "beside" or "both"; their density is then the one asked for. decode_density,
    beside_decode_density: of those that decode sparsely; nothing matches them.
    """

    model: str
    device: str
    length: int
    question: str
    sparsity: float
    line: str
    density: float | None
    accuracy: float
    beside: str
    beside_density: float | None
    beside_accuracy: float
    difference: float
    difference_low: float
    difference_high: float
    p_value: float
    p_holm: float
    samples: int
    status: str
    prompt_set: str = ""
    interpolated: str = ""
    decode_density: float | None = None
    beside_decode_density: float | None = None

    @property
    def panel(self) -> Panel:
        """Return what it is shown together with."""
        return self.model, self.device, self.length, self.question, self.prompt_set


INTERPOLATED = {(False, False): "", (True, False): "line", (False, True): "beside", (True, True): "both"}
"""The column `interpolated`, by whether the line and the one beside it are."""
COLUMNS = tuple(LinePair.__dataclass_fields__)
"""Columns of compare_LINE.csv, in order."""


@dataclass(frozen=True)
class _LineRow:
    """An average row with the name of its line and the scores behind it. name: its own, which says how many full rows it has
    where not all fitted."""

    line: str
    row: Row
    scores: TaskScores
    name: str


@dataclass(frozen=True)
class LeftOut:
    """An average that is in no pair, as its density is not the one asked for, and what its line is called."""

    line: str
    panel: Panel


@dataclass(frozen=True)
class Comparisons:
    """The pairs of every line beside one, and the averages that are in none."""

    pairs: list[LinePair]
    left_out: list[LeftOut]


def compare_lines(store: Store, name: str) -> list[LinePair]:
    """Return the pairs of `comparisons`."""
    return comparisons(store, name).pairs


def comparisons(store: Store, name: str) -> Comparisons:
    """Compare every line and sparsity that has a partner in the line called `name` (in figures and tables, or a part of that
    which no other line of the study has). In the order of panels, sparsities and differences.

    Raises UserError where there is no such line, or none beside it on the same samples.
    """
    panels, left_out = _lines_by_panel(leaderboard_rows(store))
    if not panels and not left_out:
        raise UserError(f"study={store.folder.name}: it has no accuracies of methods: nothing to compare")
    beside = _line_called(name, sorted({named.line for panel in panels.values() for named in panel}), left_out)
    pairs: list[LinePair] = []
    for panel in panels.values():
        partners = _by_sparsity([named for named in panel if named.line == beside])
        compared = [
            pair
            for named in panel
            if named.line != beside and named.row.sparsity in partners
            if (pair := _pair(named, partners[named.row.sparsity])) is not None
        ]
        adjusted = scores.holm_adjusted([pair.p_value for pair in compared])
        pairs += [replace(pair, p_holm=p) for pair, p in zip(compared, adjusted, strict=True)]
    if not pairs:
        raise UserError(
            f"job.to={name}: no other line has accuracies of the same samples at a sparsity of {beside}: nothing to compare"
            + (f": {off}" if (off := _off_request(left_out)) else "")
        )
    pairs.sort(key=lambda p: (p.model, p.device, p.question, p.length, p.prompt_set, p.sparsity, -p.difference))
    return Comparisons(pairs, left_out)


def write_pairs(path: Path, pairs: Sequence[LinePair]) -> Path:
    """Write compare_LINE.csv. Raises UserError where it can't be written."""
    return write_csv(path, COLUMNS, ([getattr(pair, column) for column in COLUMNS] for pair in pairs))


def by_panel(pairs: Sequence[LinePair]) -> dict[Panel, list[LinePair]]:
    """Return the pairs that are shown together, panels in the order of their first pairs."""
    panels: dict[Panel, list[LinePair]] = defaultdict(list)
    for pair in pairs:
        panels[pair.panel].append(pair)
    return panels


def _lines_by_panel(rows: Sequence[Row]) -> tuple[dict[Panel, list[_LineRow]], list[LeftOut]]:
    """Return the comparable averages of methods with the names of their lines, which are the same at all lengths, and the
    averages off the density asked for. How a question is asked moves thresholds, so it doesn't split lines."""
    compared = compared_rows(rows)
    matched = at_request([row for row in compared.averages if not row.is_baseline], compared.tasks)
    scores_of: dict[tuple[str | None, str], dict[tuple[str, str], dict[int, float]]] = defaultdict(dict)
    for row in matched.tasks:
        answers = {index: answer.score for index, answer in row.answers.items()}
        scores_of[row.group, row.prompt_set][row.task, row.samples_seen] = answers
    machines: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
    for row in [*matched.averages, *matched.left_out]:
        machines[row.model, row.device, row.question, row.prompt_set].append(row)
    off = set(map(id, matched.left_out))
    panels: dict[Panel, list[_LineRow]] = defaultdict(list)
    left_out = []
    for members in machines.values():
        names = line_names(members)
        for line, line_rows in rows_by_line(members, asked=True).items():
            for row in line_rows:
                panel = row.model, row.device, row.length, row.question, row.prompt_set
                if id(row) in off:
                    left_out.append(LeftOut(names[id(row)], panel))
                else:
                    panels[panel].append(_LineRow(line, row, scores_of[row.group, row.prompt_set], names[id(row)]))
    return panels, left_out


def _line_called(name: str, lines: Sequence[str], left_out: Sequence[LeftOut]) -> str:
    """Return the line of that name, or else the only one whose name has it as a part. Raises UserError otherwise; left_out:
    averages that are in no pair."""
    fit = [line for line in lines if line == name] or [line for line in lines if name in line]
    if len(fit) == 1:
        return fit[0]
    off = _off_request([average for average in left_out if name in average.line])
    if not fit and not lines:
        raise UserError(f"job.to={name}: the study has no rows at a density asked for{f': {off}' if off else ''}")
    problem = f"{len(fit)} lines have that in their names" if fit else off or "the study has no such line"
    raise UserError(f"job.to={name}: {problem}; name one of: {', '.join(fit or lines)}")


def _off_request(left_out: Sequence[LeftOut]) -> str:
    """Return that rows are off the density asked for, and whose; nothing where none is."""
    names = ", ".join(sorted({average.line for average in left_out}))
    return f"rows of {names} are off the density asked for and compare with nothing" if left_out else ""


def _by_sparsity(members: Sequence[_LineRow]) -> dict[float | None, _LineRow]:
    """Return the rows of a line that were asked for a sparsity, by it. Raises UserError for two at one."""
    by_sparsity: dict[float | None, _LineRow] = {}
    for named in members:
        row = named.row
        if row.sparsity is None:
            continue
        if row.sparsity in by_sparsity:
            raise UserError(
                f"{named.line} has two rows at sparsity {row.sparsity:g} and length {row.length}, of other weights or "
                "prompts, that nothing tells apart: measure one of them in a study of its own"
            )
        by_sparsity[row.sparsity] = named
    return by_sparsity


def _pair(named: _LineRow, partner: _LineRow) -> LinePair | None:
    """Compare two rows over the tasks and samples that both have; None where they have none: of another seed, say. `p_holm` is
    not adjusted yet."""
    row, beside = named.row, partner.row
    tasks = list(_paired_tasks(named.scores, partner.scores))
    if not tasks or row.sparsity is None:
        return None
    row_scores, beside_scores = [task[0] for task in tasks], [task[1] for task in tasks]
    low, high = difference_interval(row_scores, beside_scores, seed=row.seed)
    p_value = scores.average_p(row_scores, beside_scores, seed=row.seed)
    return LinePair(
        model=row.model,
        device=row.device,
        length=row.length,
        question=row.question,
        sparsity=row.sparsity,
        line=named.name,
        density=row.density,
        accuracy=_mean(row_scores),
        beside=partner.name,
        beside_density=beside.density,
        beside_accuracy=_mean(beside_scores),
        difference=mean_difference(row_scores, beside_scores),
        difference_low=low,
        difference_high=high,
        p_value=p_value,
        p_holm=p_value,
        samples=sum(map(len, row_scores)),
        status=Status.GATED if Status.GATED in (row.status, beside.status) else Status.OK,
        prompt_set=row.prompt_set,
        interpolated=INTERPOLATED[is_interpolated(row), is_interpolated(beside)],
        decode_density=row.decode_density,
        beside_decode_density=beside.decode_density,
    )


def _paired_tasks(row_tasks: TaskScores, beside_tasks: TaskScores) -> Iterator[tuple[list[float], list[float]]]:
    """Yield the scores of both for each task, on the samples that both have."""
    for task in sorted(row_tasks.keys() & beside_tasks.keys()):
        row_scores, beside_scores = row_tasks[task], beside_tasks[task]
        if indices := sorted(row_scores.keys() & beside_scores.keys()):
            yield [row_scores[index] for index in indices], [beside_scores[index] for index in indices]


def _mean(tasks: Sequence[Sequence[float]]) -> float:
    return sum(sum(task) / len(task) for task in tasks) / len(tasks)
