"""What job=prune is about to take out, in the terminal: a line for each arm, and what that does to the others."""

from __future__ import annotations

from collections import Counter

from rich.console import Console

from harness.report.terminal import formats
from harness.study import verdict
from harness.study.full_rows import arm_name
from harness.study.selection import Selection
from harness.study.store import Record, Store

HEADINGS = ("arm", "id", "sparsity", "length", "cells", "samples", "others")
"""Columns of the table; cells are those of accuracy or, of kernels, the cases, others every other record of the arm."""


def show_selection(console: Console, selection: Selection, store: Store) -> None:
    """Print the arms that go with their cells, samples and other records, and how many stay."""
    measured = Counter(record["cell"] for file in (store.samples, store.perplexity) for record in file.read())
    whole, cases = len(selection.gone.keys() | selection.left.keys()), {record["case"] for record in selection.cases}
    table = formats.PlainTable(f"to be taken out of {store.folder}", keys=4)
    for heading in HEADINGS:
        table.add_column(
            heading, justify="left" if heading in HEADINGS[:2] else "right", overflow="fold", no_wrap=heading != "arm"
        )
    for arm, records in sorted(selection.gone.items(), key=lambda item: _order(item[1][0])):
        cells = {record["cell"] for record in records if "cell" in record}
        samples, others = sum(measured[cell] for cell in cells), sum("cell" not in record for record in records)
        table.add_row(
            arm_name(records[0]["identity"]), arm[:8], *_setting(records[0]), str(len(cells)), str(samples), str(others)
        )
    for name, count in sorted(Counter((_case_name(record), *_setting(record)) for record in _once(selection.cases)).items()):
        table.add_row(name[0], "", *name[1:], str(count), "", "")
    table.show(console)
    stays = f"{len(selection.left)} of {whole} arms stay" if whole else f"{len(cases)} cases of kernels go"
    fewer = len(selection.gone.keys() & selection.left.keys())
    console.print(f"{stays}, {fewer} of them without these cells" if fewer else stays, highlight=False, soft_wrap=True)
    gone = [record for records in selection.gone.values() for record in records if "cell" in record]
    if lonely := _without_baseline(gone, selection):
        console.print(f"{lonely} lose what they are compared with: dense attention goes", style="yellow", soft_wrap=True)


def _order(record: Record) -> tuple[str, int, float]:
    identity = record["identity"]
    return arm_name(identity), identity["length"], identity["sparsity"] or 0.0


def _setting(record: Record) -> tuple[str, str]:
    sparsity = record["identity"]["sparsity"]
    return "" if sparsity is None else f"{sparsity:g}", str(record["identity"]["length"])


def _once(cases: list[Record]) -> list[Record]:
    """Return the last state of each case."""
    return list({record["case"]: record for record in cases}.values())


def _case_name(record: Record) -> str:
    identity = record["identity"]
    return " ".join(filter(None, (identity["op"], identity["method"], identity["kernel"])))


def _without_baseline(cells: list[Record], selection: Selection) -> str:
    """Return how many of the arms that stay are compared with cells that go; nothing for none."""
    pairs = {cell["pair"] for cell in cells if verdict.is_baseline(cell)}
    arms = {arm for arm, records in selection.left.items() for record in records if record.get("pair") in pairs}
    return f"{len(arms)} arm{'' if len(arms) == 1 else 's'}" if arms else ""
