"""The table of decoding speeds in the terminal: tokens a second of every batch, and how many times dense decoding that is."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from harness.report.lines import line_names
from harness.report.row_texts import FULL
from harness.report.rows import Row
from harness.report.terminal import formats
from harness.report.terminal.match_marks import marked_decode_density

NOTES = (
    "of all sequences of a batch together; × dense: how many times as fast as dense",
    "attention decodes after the same prefill, in turns; ✗: the record says why not",
)


def show_decoding(console: Console, rows: Sequence[Row]) -> None:
    """Print the decoding speeds of rows of one model and device; nothing where none was timed."""
    timed = [row for row in rows if row.times is not None and (row.times.decode or row.times.decode_failed)]
    if not timed:
        return
    names = line_names(rows)
    batches = sorted({batch for row in timed if row.times for batch in (*row.times.decode, *row.times.decode_failed)})
    table = formats.PlainTable(f"{timed[0].model}: decoding, tokens/s by batch", keys=4)
    for heading in ("method", "decode"):
        table.add_column(heading)
    for heading in ("len", "dens", *map(str, batches)):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in timed:
        cells = [_speed(row, batch) for batch in batches]
        length, density = formats.tokens(row.length), marked_decode_density(row)
        table.add_row(names[id(row)], row.decode.method or FULL, length, density, *cells)
    table.show(console)
    for note in NOTES:
        console.print(note, style="dim", highlight=False, soft_wrap=True)
    console.print()


def _speed(row: Row, batch: int) -> str | Text:
    """Return tokens a second and, of a method, how many times dense attention's that is."""
    assert row.times is not None
    speed = row.times.decode.get(batch)
    if speed is None:
        return "✗" if batch in row.times.decode_failed else ""
    own = f"{speed.tokens_s:,.0f}" if speed.tokens_s >= 100 else f"{speed.tokens_s:.3g}"
    return own if row.decode.method is None else formats.with_interval(own, f"{speed.speedup:.2f}×")
