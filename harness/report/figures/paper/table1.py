"""Table 1: LongBench-E by bucket of lengths, with the measured sparsity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from harness.report.figures.paper.drawing import Drawing, Value, command_of, suffix_of
from harness.report.figures.paper.item import Item
from harness.report.figures.paper.published import Published, by_series, of_item, sources
from harness.report.figures.paper.recorded import Recorded, fullest, grouped
from harness.report.figures.paper.table_sheet import TableRow, draw_table, number, of_method
from harness.report.figures.picture_rows import with_tasks
from harness.report.lines import line_names
from harness.report.notes import off_density
from harness.report.rows import Answer, Row
from harness.study.columns import AVERAGE
from harness.study.schema import Status
from harness.study.store import Store
from harness.tasks.longbench.names import BUCKETS, DATASETS_E, PREFIX, PREFIX_E, TASKS_E

TASKS = (*TASKS_E, *(PREFIX + name for name in DATASETS_E))
"""The tasks of LongBench-E, and those of LongBench that are of the same data sets."""
MEAN, SPARSITY = "mean", "sparsity"
"""The last columns."""
Tokens = Mapping[tuple[str, int], int]
"""Tokens of prompts before any were cut, by cell and index."""


@dataclass(frozen=True)
class Line:
    """One arm: its average row, its answers by bucket and data set, and whether buckets are LongBench-E's own, by words."""

    row: Row
    answers: Mapping[str, Mapping[str, Sequence[Answer]]]
    by_words: bool

    def score(self, bucket: str) -> float | None:
        """Return the mean over data sets in a bucket, in per cent; None where it has no prompts."""
        sets = [fmean(answer.score for answer in answers) for answers in self.answers.get(bucket, {}).values()]
        return 100 * fmean(sets) if sets else None

    @property
    def mean(self) -> float | None:
        """Return the mean over the buckets, None where one has no prompts."""
        scores = [self.score(bucket) for bucket in BUCKETS]
        known = [score for score in scores if score is not None]
        return fmean(known) if len(known) == len(scores) else None

    @property
    def sparsity(self) -> float | None:
        """Return the sparsity that was measured, the mean over all prompts; None where one has none."""
        if self.row.is_baseline:
            return 0.0
        densities = [a.density for sets in self.answers.values() for answers in sets.values() for a in answers]
        known = [density for density in densities if density is not None]
        return 1 - fmean(known) if known and len(known) == len(densities) else None

    def prompts(self, bucket: str) -> int:
        """Return how many prompts of a bucket it answered."""
        return sum(map(len, self.answers.get(bucket, {}).values()))


def draw(item: Item, recorded: Recorded) -> list[Drawing]:
    """Return a table for each model that answered these data sets under methods, of the study with most of them."""
    sets: dict[tuple[str, str, str], list[Line]] = {}
    for study, rows in recorded.task_rows(TASKS).items():
        tokens = _tokens(recorded.store_of(study))
        for (model, device), (averages, tasks) in with_tasks(rows).items():
            if averages[0].model == model:
                lines = _lines(averages, tasks, tokens)
                if any(not line.row.is_baseline for line in lines):
                    sets[model, device, study] = lines
    shown = fullest(sets, lambda lines: 1000 * len(_data_sets(lines)) + len(lines), lambda lines: bool(lines))
    values = of_item(item.name)
    if not shown:
        return [_draw(item, values, [], 0)]
    return [_draw(item, values, sets[key], place) for place, key in enumerate(shown)]


def _tokens(store: Store) -> Tokens:
    """Return how long the prompts of a study were, by cell and index."""
    return {(one["cell"], one["index"]): one["tokens"] + one.get("cut", 0) for one in store.samples.read()}


def _lines(averages: Sequence[Row], tasks: Sequence[Row], tokens: Tokens) -> list[Line]:
    """Return the arms of average rows with their answers to prompts of these data sets."""
    of_group = grouped((row for row in tasks if row.task in TASKS), lambda row: row.group)
    lines = []
    for row in averages:
        if row.group in of_group and row.task == AVERAGE and row.decode.method is None:
            answers: dict[str, dict[str, list[Answer]]] = defaultdict(lambda: defaultdict(list))
            for task in of_group[row.group]:
                for index, answer in task.answers.items():
                    name, bucket = _place(task, tokens[task.cell, index])
                    answers[bucket][name].append(answer)
            lines.append(Line(row, answers, all(task.task.startswith(PREFIX_E) for task in of_group[row.group])))
    return lines


def _place(row: Row, tokens: int) -> tuple[str, str]:
    """Return data set and bucket of a prompt: by the task's name, or else by its tokens."""
    if row.task.startswith(PREFIX_E):
        name, _, bucket = row.task.removeprefix(PREFIX_E).rpartition("_")
        return name, bucket
    bucket = next(name for name, (_, end) in BUCKETS.items() if end is None or tokens < end)
    return row.task.removeprefix(PREFIX), bucket


def _data_sets(lines: Iterable[Line]) -> set[str]:
    return {name for line in lines for sets in line.answers.values() for name in sets}


def _draw(item: Item, values: Sequence[Published], lines: Sequence[Line], place: int) -> Drawing:
    columns = [*BUCKETS, MEAN, SPARSITY]
    rows = [TableRow("published, Llama-3.1-8B-Instruct", published=True), *_published_rows(values)]
    note = f"Grey: {sources(values)}. "
    title = f"{item.number}: LongBench-E by length, LongBench's score"
    if not lines:
        figure = draw_table(title, columns, [*rows, TableRow("measured: nothing yet")], note + item.how_to_make)
        return Drawing(figure, (), values, missing=list(BUCKETS))
    first = lines[0].row
    rows.append(TableRow(f"measured, {first.model}, {first.device}"))
    names = line_names([line.row for line in lines])
    ours: list[Value] = []
    for line in sorted(lines, key=lambda line: _rank(line, names[id(line.row)])):
        name = names[id(line.row)]
        mark = "≠ " if off_density(line.row) else ""
        cells = [number(line.score(bucket)) for bucket in BUCKETS]
        cells = [f"[{cell}]" if line.row.status == Status.GATED else cell for cell in cells]
        sparsity = number(line.sparsity, ".3f")
        rows.append(TableRow(of_method(name, [line.row]), [*cells, number(line.mean), mark + sparsity]))
        ours += _values(name, line)
    by_words = all(line.by_words for line in lines)
    buckets = "buckets by words, as LongBench-E has them" if by_words else "buckets by tokens of the prompt"
    note += (
        f"Measured: {len(_data_sets(lines))} of LongBench-E's {len(DATASETS_E)} data sets, {_prompts(lines[0])} prompts of "
        f"{first.haystack}, {buckets}, the same for all rows; mean over the data sets that have prompts in a bucket, without "
        f"intervals. Sparsity: as measured on them; ≠: off the density asked for, to be compared with nothing. "
        f"Study: {first.study}."
    )
    measured = [bucket for bucket in BUCKETS if lines[0].score(bucket) is not None]
    missing = [bucket for bucket in BUCKETS if bucket not in measured]
    if not by_words:
        missing.append("LongBench-E itself")
    figure = draw_table(title, columns, rows, note)
    return Drawing(figure, ours, values, first.model, first.device, suffix_of(place, first.model), measured, missing)


def _rank(line: Line, name: str) -> tuple[bool, bool, float, str]:
    """Return what orders lines: dense attention first, then what is at its density by its mean, the others by their names."""
    off = off_density(line.row)
    return not line.row.is_baseline, off, 0.0 if off else -(line.mean or 0.0), name


def _prompts(line: Line) -> str:
    """Return how many prompts there are in each bucket."""
    return " + ".join(str(line.prompts(bucket)) for bucket in BUCKETS)


def _published_rows(values: Sequence[Published]) -> list[TableRow]:
    rows = []
    for series, members in by_series(values).items():
        cells = {value.x: number(value.y) for value in members if value.unit == "%"}
        sparsity = next((value for value in members if value.unit == SPARSITY), None)
        text = number(None if sparsity is None else sparsity.y, ".2f")
        rows.append(TableRow(series, [*(cells[column] for column in (*BUCKETS, MEAN)), text], published=True))
    return rows


def _values(name: str, line: Line) -> list[Value]:
    row, command = line.row, command_of(line.row.settings)
    shown = "hollow" if off_density(row) else "yes"
    scores = [(bucket, line.score(bucket)) for bucket in BUCKETS] + [(MEAN, line.mean)]
    values = [
        Value("accuracy", name, column, y, "%", row.study, row.device, shown=shown, command=command)
        for column, y in scores
        if y is not None
    ]
    if line.sparsity is not None:
        values.append(Value(SPARSITY, name, MEAN, line.sparsity, SPARSITY, row.study, row.device, shown=shown, command=command))
    return values
