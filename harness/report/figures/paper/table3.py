"""Table 3: short tasks through lm-eval, with their mean length and the measured sparsity.

Rows are what `python -m harness.lm_eval` leaves in an output path below results/: lm-eval's own results files, of which
`config.sparse_attention` says which method ran and at which density.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.input_files import read_json_object
from harness.report.figures.paper.drawing import Drawing, Value, suffix_of
from harness.report.figures.paper.item import Item
from harness.report.figures.paper.published import Published, by_series, of_item, sources
from harness.report.figures.paper.recorded import Recorded, fullest, grouped
from harness.report.figures.paper.table_sheet import TableRow, draw_table, number

FILES = "**/results_*.json"
"""How lm-eval calls its results files, in folders by model."""
METRICS = ("acc_norm,none", "acc,none", "exact_match,strict-match", "exact_match,flexible-extract")
"""lm-eval's metrics in the order in which one is taken, as the paper's tasks are scored."""


@dataclass(frozen=True)
class ShortTask:
    """What an arm reached on a task of lm-eval: accuracy in per cent, measured sparsity, mean length of the prompts in
    tokens."""

    study: str
    model: str
    arm: str
    task: str
    accuracy: float
    sparsity: float | None
    length: float


def draw(item: Item, recorded: Recorded) -> list[Drawing]:
    """Return a table for each model that lm-eval scored under a method; one at least."""
    values = of_item(item.name)
    tasks = list(dict.fromkeys(value.x for value in values))
    scored = [one for store in recorded.stores for one in read_scores(store.folder, tasks, recorded)]
    sets = grouped(scored, lambda one: (one.model, one.study))
    shown = fullest(sets, len, bool)
    return [_draw(item, values, tasks, sets[key], place) for place, key in enumerate(shown)] or [
        _draw(item, values, tasks, [], 0)
    ]


def read_scores(folder: Path, tasks: Sequence[str], recorded: Recorded) -> Iterator[ShortTask]:
    """Yield what lm-eval's results files in a study's folder say of these tasks; a file that can't be read is a problem."""
    for path in sorted((folder / "lm_eval").glob(FILES)):
        try:
            content = read_json_object(path)
            ran = content.get("config", {}).get("sparse_attention")
            if isinstance(ran, dict):
                yield from _scores_of(folder.name, content, ran, tasks)
        except (UserError, KeyError, TypeError, ValueError) as error:
            recorded.say(f"{path} is left out: {error}")


def _scores_of(study: str, content: Mapping[str, Any], ran: Mapping[str, Any], tasks: Sequence[str]) -> Iterator[ShortTask]:
    for task in tasks:
        scores = content["results"].get(task, {})
        metric = next((name for name in METRICS if name in scores), None)
        below = [name for name in ran["tasks"] if name == task or name.startswith(f"{task}_")]
        if metric is None or not below:
            continue
        parts = [ran["tasks"][name] for name in below]
        prompts = [float(part["prompts"]) for part in parts]
        densities = [part.get("density") for part in parts]
        known = all(density is not None for density in densities)
        density = sum(d * n for d, n in zip(densities, prompts, strict=True)) / sum(prompts) if known else None
        length = sum(part["mean"] * n for part, n in zip(parts, prompts, strict=True)) / sum(prompts)
        sparsity = ran.get("sparsity")
        arm = str(ran["method"]) + (f" at sparsity {sparsity:g}" if sparsity else "")
        accuracy = 100 * float(scores[metric])
        yield ShortTask(study, str(ran["model"]), arm, task, accuracy, None if density is None else 1 - density, length)


def _draw(item: Item, values: Sequence[Published], tasks: Sequence[str], scored: Sequence[ShortTask], place: int) -> Drawing:
    rows = [TableRow("published, Llama-3.1-8B-Instruct", published=True)]
    for series, members in by_series(values).items():
        cells = []
        for task in tasks:
            own = {value.unit: value.y for value in members if value.x == task}
            cells.append(_cell(own.get("%"), own.get("sparsity"), own.get("tokens")))
        rows.append(TableRow(series, cells, published=True))
    note = f"Grey: {sources(values)}. Each cell: accuracy in %, measured sparsity, mean length in tokens. "
    title = f"{item.number}: {item.shows}"
    if not scored:
        figure = draw_table(title, tasks, [*rows, TableRow("measured: nothing yet")], note + item.how_to_make, first=0.24)
        return Drawing(figure, (), values)
    rows.append(TableRow(f"measured, {scored[0].model}"))
    for arm, reached in sorted(grouped(scored, lambda one: one.arm).items()):
        by_task = {one.task: _cell(one.accuracy, one.sparsity, one.length) for one in reached}
        rows.append(TableRow(arm, [by_task.get(task, number(None)) for task in tasks]))
    figure = draw_table(title, tasks, rows, f"{note}Study: {scored[0].study}.", first=0.24)
    ours = [value for one in scored for value in _values(one)]
    measured = [task for task in tasks if any(one.task == task for one in scored)]
    missing = [task for task in tasks if task not in measured]
    return Drawing(figure, ours, values, scored[0].model, "", suffix_of(place, scored[0].model), measured, missing)


def _cell(accuracy: float | None, sparsity: float | None, length: float | None) -> str:
    parts = [number(accuracy)]
    parts += [] if sparsity is None else [f"{sparsity:.3f}".lstrip("0")]
    parts += [] if length is None else [f"{length:.0f}"]
    return ", ".join(parts)


def _values(one: ShortTask) -> list[Value]:
    numbers = (("accuracy", one.accuracy, "%"), ("sparsity", one.sparsity, "sparsity"), ("mean length", one.length, "tokens"))
    return [Value(panel, one.arm, one.task, y, unit, one.study) for panel, y, unit in numbers if y is not None]
