"""Table 4: perplexity of a model that was fine-tuned with sparse attention, by the sparsity of its training."""

from __future__ import annotations

from collections.abc import Sequence

from harness.report.common_documents import on_common_documents
from harness.report.figures.paper.drawing import Drawing, Value, command_of, suffix_of
from harness.report.figures.paper.item import Item
from harness.report.figures.paper.published import Published, by_series, of_item, sources
from harness.report.figures.paper.recorded import Recorded, fullest, grouped
from harness.report.figures.paper.table_sheet import TableRow, draw_table, number
from harness.report.lines import rows_by_line
from harness.report.notes import off_density
from harness.report.rows import Row
from harness.study.columns import PERPLEXITY


def draw(item: Item, recorded: Recorded) -> list[Drawing]:
    """Return a table for each model of the study that is called as the experiment; one at least."""
    rows = [row for row in recorded.perplexity_rows() if row.study == item.experiment and row.task == PERPLEXITY]
    measured = [row for row in on_common_documents([row for row in rows if row.perplexity is not None]) if not row.prompt_set]
    sets = grouped(measured, lambda row: (row.model, row.device, row.haystack, str(row.length)))
    values = of_item(item.name)
    shown = fullest(sets, len, bool)
    return [_draw(item, values, sets[key], place) for place, key in enumerate(shown)] or [_draw(item, values, [], 0)]


def _draw(item: Item, values: Sequence[Published], rows: Sequence[Row], place: int) -> Drawing:
    places = sorted({value.place for value in values} | {row.sparsity or 0.0 for row in rows})
    columns = [f"{sparsity:g}" for sparsity in places]
    lines = [TableRow("published, Llama-3-8B, 8k to 32k by YaRN, PG19", published=True)]
    for series, members in by_series(values).items():
        cells = {value.place: number(value.y, ".2f") for value in members}
        lines.append(TableRow(series, [cells.get(sparsity, number(None)) for sparsity in places], published=True))
    note = f"Grey: {sources(values)}. Columns: the sparsity, 0 is dense attention. "
    title = f"{item.number}: {item.shows}"
    if not rows:
        figure = draw_table(title, columns, [*lines, TableRow("measured: nothing yet")], note + item.how_to_make)
        return Drawing(figure, (), values)
    first = rows[0]
    lines.append(TableRow(f"measured, {first.model}, {first.device}"))
    ours: list[Value] = []
    for name, own in sorted(rows_by_line(rows).items()):
        by_sparsity = {row.sparsity or 0.0: row for row in own if not off_density(row)}
        texts = {
            s: number(None if row.perplexity is None else row.perplexity.perplexity, ".2f") for s, row in by_sparsity.items()
        }
        lines.append(TableRow(name, [texts.get(sparsity, number(None)) for sparsity in places]))
        ours += [_value(name, row) for row in own]
    figure = draw_table(title, columns, lines, f"{note}Measured on {first.haystack} at {first.length:,} tokens.")
    return Drawing(figure, ours, values, first.model, first.device, suffix_of(place, first.model), columns)


def _value(name: str, row: Row) -> Value:
    if row.perplexity is None:
        raise ValueError(f"row of {row.method} at {row.length}: it has no perplexity")
    shown = "no" if off_density(row) else "yes"
    low, high = row.perplexity.perplexity_low, row.perplexity.perplexity_high
    own = (row.haystack, name, row.sparsity or 0.0, row.perplexity.perplexity, "perplexity", row.study, row.device, low, high)
    return Value(*own, shown, command_of(row.settings))
