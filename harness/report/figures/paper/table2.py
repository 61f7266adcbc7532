"""Table 2: RULER by length, with the mean speed-up of the time to first token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from statistics import fmean

from harness.report.at_request import at_request
from harness.report.figures import style
from harness.report.figures.paper.drawing import Drawing, Value, command_of, suffix_of
from harness.report.figures.paper.fig9 import prefills
from harness.report.figures.paper.item import Item
from harness.report.figures.paper.published import Published, by_series, of_item, sources
from harness.report.figures.paper.recorded import Recorded, fullest
from harness.report.figures.paper.table_sheet import TableRow, accuracy, draw_table, held_back, number, of_method
from harness.report.figures.picture_rows import usual_sparsity, with_tasks
from harness.report.lines import rows_by_line
from harness.report.notes import left_out_note, same_prompts
from harness.report.rows import Row
from harness.study.columns import AVERAGE
from harness.tasks.ruler.names import TASKS

MEAN, SPEED = "mean", "speed-up"
"""The last columns: over lengths, and that of the time to first token."""
WIDTH = 0.28
"""Share of the width of the first column."""
FEWEST_LENGTHS = 2
"""Lengths that a model needs for a table of its own beside the first."""


@dataclass(frozen=True)
class Scores:
    """What a table shows of one model on a device: lines of average rows at one sparsity by length, dense attention among
    them, the rows left out, the speed-ups of prefills by arm, and how many tasks a row is the mean of."""

    lines: Mapping[str, Mapping[int, Row]]
    left_out: Sequence[Row]
    speedups: Mapping[str, float]
    sparsity: float
    rows: Sequence[Row]


def draw(item: Item, recorded: Recorded) -> list[Drawing]:
    """Return a table for each model that answered RULER under methods at two lengths at least, on its fullest device."""
    sets: dict[tuple[str, str, str], list[Scores]] = {}
    for study, rows in recorded.task_rows(TASKS).items():
        if any(row.task not in ("", AVERAGE, *TASKS) for row in rows):
            continue
        for (model, device), (averages, tasks) in with_tasks(rows).items():
            if averages[0].model == model:  # asked with the context, on the main set of prompts
                scores = _scores(averages, tasks, rows)
                if scores is not None:
                    sets[model, device, study] = [scores]
    values = of_item(item.name)
    columns = list(dict.fromkeys(value.x for value in values))

    def fill(own: list[Scores]) -> int:
        return sum(len(line) for line in own[0].lines.values())

    shown = fullest(
        sets, fill, lambda own: len({length for line in own[0].lines.values() for length in line}) >= FEWEST_LENGTHS
    )
    if not shown:
        return [_draw(item, values, columns, None, 0)]
    return [_draw(item, values, columns, sets[key][0], place) for place, key in enumerate(shown)]


def _scores(averages: Sequence[Row], tasks: Sequence[Row], rows: Sequence[Row]) -> Scores | None:
    """Return what a table shows of average rows, None where no method is among them."""
    compared = at_request([row for row in averages if row.decode.method is None and row.prefill_chunk is None], tasks)
    sparsities = [row.sparsity for row in compared.averages if not row.is_baseline and row.sparsity is not None]
    if not sparsities:
        return None
    sparsity = usual_sparsity(sparsities)
    own = [row for row in compared.averages if row.is_baseline or row.sparsity == sparsity]
    left_out = [row for row in compared.left_out if row.sparsity == sparsity]
    named = rows_by_line(own, along="length", beside=left_out)
    lines = {name: {row.length: row for row in members} for name, members in named.items()}
    timed = [row for row in rows if row.times is not None and row.task in ("", AVERAGE)]
    return Scores(lines, left_out, {one.row.arm: one.speedup for one in prefills(timed)}, sparsity, own)


def _draw(item: Item, values: Sequence[Published], columns: Sequence[str], scores: Scores | None, place: int) -> Drawing:
    names = [column for column in columns if column != MEAN]
    rows = [TableRow("published, Llama-3.1-8B-Instruct, A100", published=True), *_published_rows(values, columns)]
    note = f"Grey: {sources(values)}. "
    if scores is None:
        rows.append(TableRow("measured: nothing yet"))
        figure = draw_table(f"{item.number}: RULER by length, %", [*columns, SPEED], rows, note + item.how_to_make, first=WIDTH)
        return Drawing(figure, (), values, missing=names)
    model, device = scores.rows[0].model, scores.rows[0].device
    rows.append(TableRow(f"measured, {model}, {device}, at density {1 - scores.sparsity:.3g}"))
    ours: list[Value] = []
    baselines = [name for name, line in scores.lines.items() if next(iter(line.values())).is_baseline]
    lengths = {length for name in baselines for length in scores.lines[name]}
    lines = scores.lines
    for name in sorted(lines, key=lambda name: (name not in baselines, -len(lines[name]), -_mean(lines[name]), name)):
        line = lines[name]
        by_name = {style.tokens(length): row for length, row in line.items()}
        whole = fmean(row.scored.percent for row in line.values()) if set(names) <= set(by_name) else None
        speed = 1.0 if name in baselines else _speed(line, scores.speedups, lengths)
        cells = [accuracy(by_name.get(n)) for n in names]
        rows.append(TableRow(of_method(name, line.values()), [*cells, number(whole), number(speed, ".2f")]))
        ours += _values(name, line, whole, speed)
    tasks = scores.rows[0].tasks
    note += (
        f"Measured: mean over {tasks} tasks of RULER, {same_prompts(scores.rows)}; speed-up: the time to first token of dense "
        f"attention ÷ the method's, mean over all lengths here. 95 % intervals stand in the CSV. {held_back(scores.rows)}"
        f"{left_out_note(scores.left_out, scores.rows)}Study: {scores.rows[0].study}."
    )
    figure = draw_table(f"{item.number}: RULER by length, %", [*columns, SPEED], rows, note, first=WIDTH)
    measured = [n for n in names if any(n in map(style.tokens, line) for line in scores.lines.values())]
    missing = [n for n in names if n not in measured]
    return Drawing(figure, ours, values, model, device, suffix_of(place, model), measured, missing)


def _published_rows(values: Sequence[Published], columns: Sequence[str]) -> list[TableRow]:
    rows = []
    for series, members in by_series(values).items():
        accuracy = {value.x: value.y for value in members if value.unit == "%"}
        speed = next((value.y for value in members if value.unit == "times"), None)
        cells = [number(accuracy.get(column)) for column in columns]
        rows.append(TableRow(series, [*cells, number(speed, ".2f")], published=True))
    return rows


def _mean(line: Mapping[int, Row]) -> float:
    return fmean(row.scored.percent for row in line.values())


def _speed(line: Mapping[int, Row], speedups: Mapping[str, float], lengths: Set[int]) -> float | None:
    """Return the mean speed-up of a line's arms over these lengths; None where one was not timed."""
    timed = {length: speedups[row.arm] for length, row in line.items() if row.arm in speedups}
    return fmean(timed.values()) if timed and timed.keys() >= lengths else None


def _values(name: str, line: Mapping[int, Row], whole: float | None, speed: float | None) -> list[Value]:
    values = []
    for length, row in sorted(line.items()):
        score = row.scored
        low, high = 100 * score.accuracy_low, 100 * score.accuracy_high
        own = ("accuracy", name, style.tokens(length), score.percent, "%", row.study, row.device, low, high, "yes")
        values.append(Value(*own, command_of(row.settings)))
    any_row = next(iter(line.values()))
    means = (("accuracy", whole, "%"), (SPEED, speed, "times"))
    values += [Value(panel, name, MEAN, y, unit, any_row.study, any_row.device) for panel, y, unit in means if y is not None]
    return values
