"""Table 4: perplexity of models that were fine-tuned with sparse attention or before their gates, by the sparsity used."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from harness.report.common_documents import on_common_documents
from harness.report.figures.paper.drawing import Drawing, Value, command_of, suffix_of
from harness.report.figures.paper.item import Item
from harness.report.figures.paper.published import Published, by_series, of_item, sources
from harness.report.figures.paper.recorded import Recorded, fullest, grouped
from harness.report.figures.paper.table_sheet import TableRow, draw_table, number
from harness.report.figures.paper.trainings import Trained, base_of, read_trainings, training_text
from harness.report.lines import rows_by_line
from harness.report.notes import off_density
from harness.report.perplexity_rows import perplexity_of
from harness.report.rows import Row
from harness.study.columns import PERPLEXITY
from harness.study.store import Record

WIDE = 0.46
"""The share of the width that names have."""
MARGIN = 0.02
"""How much higher, of itself, a perplexity may be and still be called non-inferior."""
MARGIN_NOTE = f" ✓: at 95 % shown to be at most {100 * MARGIN:g} % higher."
RATIO = "÷ that of the model trained with dense attention, used with it"


def draw(item: Item, recorded: Recorded) -> list[Drawing]:
    """Return a table for each model of the study that is called as the experiment; one at least."""
    rows = [row for row in recorded.perplexity_rows() if row.study == item.experiment and row.task == PERPLEXITY]
    measured = [row for row in on_common_documents([row for row in rows if row.perplexity is not None]) if not row.prompt_set]
    trainings = read_trainings(
        record for store in recorded.stores if store.folder.name == item.experiment for record in store.finetune_steps.read()
    )
    sets = grouped(measured, lambda row: (base_of(row.model, trainings), row.device, row.haystack, str(row.length)))
    values = of_item(item.name)
    shown = fullest(sets, len, bool)
    drawings = [_draw(item, values, sets[key], place, trainings) for place, key in enumerate(shown)]
    return drawings or [_draw(item, values, [], 0, {})]


def _draw(item: Item, values: Sequence[Published], rows: Sequence[Row], place: int, trainings: dict[str, Trained]) -> Drawing:
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
    first, base = rows[0], base_of(rows[0].model, trainings)
    lines.append(TableRow(f"measured, {base}, {first.device}"))
    ours: list[Value] = []
    for name, own in _lines(rows, trainings).items():
        by_sparsity = grouped([row for row in own if not off_density(row)], lambda row: row.sparsity or 0.0)
        lines.append(TableRow(name, [_cell(by_sparsity.get(sparsity, ())) for sparsity in places]))
        ours += [_value(name, row) for row in own]
    ratios, of_ratios = _ratios(rows, places, trainings)
    lines += ratios
    ours += of_ratios
    seeds = max(len({one.seed for one in trainings.values() if base_of(one.name, trainings) == base}), 1)
    of_seeds = f" Means over the seeds of training, {seeds} at most." if seeds > 1 else ""
    of_ratio = MARGIN_NOTE if ratios else ""
    words = f"{note}Measured on {first.haystack} at {first.length:,} tokens.{of_seeds}{of_ratio}"
    figure = draw_table(title, columns, lines, words, first=WIDE)
    return Drawing(figure, ours, values, base, first.device, suffix_of(place, base), columns)


def _lines(rows: Sequence[Row], trainings: dict[str, Trained]) -> dict[str, list[Row]]:
    """Return the rows of every line by its name: how the model was trained, then what it was measured with. Those of several
    seeds of one training are of one line."""
    lines: dict[str, list[Row]] = {}
    for measured, members in sorted(rows_by_line(rows).items()):
        for trained, own in grouped(members, lambda row: training_text(row.model, trainings)).items():
            before = trained or ("not fine-tuned" if trainings else "")
            lines.setdefault(f"{before}: {measured}" if before else measured, []).extend(own)
    return dict(sorted(lines.items()))


def _ratios(rows: Sequence[Row], places: Sequence[float], trainings: dict[str, Trained]) -> tuple[list[TableRow], list[Value]]:
    """Return lines and values of each line's perplexity ÷ that of the model trained with dense attention, used with it, on the
    same documents and seeds; none where no such model was measured."""
    trained = [row for row in rows if row.model in trainings]
    dense = {trainings[row.model].seed: row for row in trained if row.is_baseline and row.method == trainings[row.model].method}
    lines, values = [], []
    for name, own in _lines(trained, trainings).items():
        cells = {}
        by_sparsity = grouped([row for row in own if not off_density(row)], lambda row: row.sparsity or 0.0)
        for sparsity, members in by_sparsity.items():
            pairs = [(row, dense[seed]) for row in members if (seed := trainings[row.model].seed) in dense]
            ours, beside = (_documents([pair[side] for pair in pairs]) for side in (0, 1))
            compared = perplexity_of(ours, beside, 0).comparison if ours and beside else None
            if compared is None or all(row is other for row, other in pairs):
                continue
            low, high = compared.perplexity_ratio_low, compared.perplexity_ratio_high
            sign = "✓" if high is not None and high <= 1 + MARGIN else ""
            cells[sparsity] = f"{compared.perplexity_ratio:.3f}{sign}"
            where = (members[0].study, members[0].device, low, high)
            values.append(Value(RATIO, name, sparsity, compared.perplexity_ratio, "times", *where))
        if cells:
            lines.append(TableRow(name, [cells.get(sparsity, number(None)) for sparsity in places]))
    return ([TableRow(RATIO), *lines] if lines else []), values


def _documents(rows: Sequence[Row]) -> list[Record]:
    """Return the documents that all rows have, each with its mean loss over them."""
    common = set.intersection(*(set(row.documents) for row in rows)) if rows else set()
    losses = {index: [row.documents[index]["nll"] for row in rows] for index in sorted(common)}
    return [{**rows[0].documents[index], "nll": fmean(own)} for index, own in losses.items() if None not in own]


def _cell(rows: Sequence[Row]) -> str:
    """Return the mean perplexity of rows as a cell has it."""
    seen = [row.perplexity.perplexity for row in rows if row.perplexity is not None]
    return number(fmean(seen) if seen else None, ".2f")


def _value(name: str, row: Row) -> Value:
    if row.perplexity is None:
        raise ValueError(f"row of {row.method} at {row.length}: it has no perplexity")
    shown = "no" if off_density(row) else "yes"
    low, high = row.perplexity.perplexity_low, row.perplexity.perplexity_high
    own = (row.haystack, name, row.sparsity or 0.0, row.perplexity.perplexity, "perplexity", row.study, row.device, low, high)
    return Value(*own, shown, command_of(row.settings))
