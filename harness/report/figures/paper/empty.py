"""The picture of an item that has neither rows nor published numbers yet: an empty panel, and how to fill it."""

from __future__ import annotations

import matplotlib

from harness.report.figures.paper import sheet
from harness.report.figures.paper.drawing import Drawing
from harness.report.figures.paper.item import Item


def empty_drawing(item: Item) -> Drawing:
    """Return a drawing of an item without values."""
    figure = sheet.new_sheet(sheet.COLUMN, 1.3, f"{item.number}: {item.shows}")
    with matplotlib.rc_context(sheet.RC):
        sheet.set_empty(figure.add_subplot(), "no rows yet")
        sheet.finish(figure, f"{item.how_to_make} The paper draws it without numbers that could be read off safely.")
    return Drawing(figure)
