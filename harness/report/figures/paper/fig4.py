"""Fig 4: perplexity by length of gates with and without RoPE at the positions of their blocks."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib

from harness.report.at_request import at_request
from harness.report.common_documents import on_common_documents
from harness.report.figures.looks import is_bound, line_looks, looks_of_one_method
from harness.report.figures.paper import sheet
from harness.report.figures.paper.drawing import Drawing, Value, command_of, suffix_of
from harness.report.figures.paper.empty import empty_drawing
from harness.report.figures.paper.item import Item
from harness.report.figures.paper.recorded import Recorded, fullest, grouped
from harness.report.figures.picture_rows import usual_sparsity
from harness.report.lines import rows_by_line
from harness.report.rows import Row
from harness.study.columns import PERPLEXITY

PANEL = "by length"
"""The one panel."""


def draw(item: Item, recorded: Recorded) -> list[Drawing]:
    """Return a picture for each model whose gates with and without were measured; one at least."""
    rows = [row for row in recorded.perplexity_rows() if row.study == item.experiment and row.task == PERPLEXITY]
    measured = [row for row in on_common_documents([row for row in rows if row.perplexity is not None]) if not row.prompt_set]
    sets = grouped(measured, lambda row: (row.model, row.device, row.haystack))
    shown = fullest(sets, len, bool)
    return [_draw(item, sets[key], number) for number, key in enumerate(shown)] or [empty_drawing(item)]


def _draw(item: Item, rows: Sequence[Row], number: int) -> Drawing:
    figure = sheet.new_sheet(sheet.COLUMN, 1.9, f"{item.number}: {item.shows}")
    compared = at_request(rows)
    sparsity = usual_sparsity(row.sparsity for row in compared.averages if not row.is_baseline)
    own = [row for row in compared.averages if row.is_baseline or row.sparsity == sparsity]
    values: list[Value] = []
    keys = []
    with matplotlib.rc_context(sheet.RC):
        axes = figure.add_subplot()
        lines = dict(sorted(rows_by_line(own, along="length", asked=True).items()))
        methods = {name: members[0].method for name, members in lines.items()}
        dense = [name for name, members in lines.items() if members[0].is_baseline]
        looks = line_looks(methods, bounds=[name for name, method in methods.items() if is_bound(method)], dense=dense)
        sparse = [name for name in methods if name not in dense]
        if len({methods[name] for name in sparse}) == 1:
            looks |= looks_of_one_method(sparse)
        for name, look in looks.items():
            points = [_value(name, row) for row in sorted(lines[name], key=lambda row: row.length)]
            axes.plot([float(point.x) for point in points], [point.y for point in points], **sheet.line_style(look))
            keys.append(sheet.styled_key(look, name))
            values += points
        sheet.set_log(axes, min(value.y for value in values), max(value.y for value in values))
        sheet.set_lengths(axes, sorted({row.length for row in own}))
        axes.set(xlabel="length (tokens)", ylabel="perplexity")
        note = f"Measured on {own[0].device}, {own[0].haystack}."
        sheet.finish(
            figure, f"{note} The paper draws lines from 8k to 128k, trained at 8k and at 64k, without numbers.", keys, 1
        )
    model, device = own[0].model, own[0].device
    return Drawing(figure, values, (), model, device, suffix_of(number, model), [PANEL])


def _value(name: str, row: Row) -> Value:
    perplexity = row.perplexity
    if perplexity is None:
        raise ValueError(f"row of {row.method} at {row.length}: it has no perplexity")
    low, high = perplexity.perplexity_low, perplexity.perplexity_high
    own = (PANEL, name, row.length, perplexity.perplexity, "perplexity", row.study, row.device, low, high, "yes")
    return Value(*own, command_of(row.settings))
