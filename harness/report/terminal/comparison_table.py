"""The tables of job=compare in the terminal: every line beside one of them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from harness.report.compare import LeftOut, LinePair, by_panel
from harness.report.notes import count_range, left_out_text
from harness.report.row_texts import question_title
from harness.report.terminal import formats
from harness.study.schema import Status

INTERPOLATED = "≈"
"""Written after a density that nothing was measured at."""
HEADINGS = ("line", "sparsity", "density", "acc.", "diff.", "95 %", "p (Holm)")


def show_pairs(console: Console, pairs: Sequence[LinePair], left_out: Sequence[LeftOut] = ()) -> None:
    """Print a table for every model, device, length, time of the question and set of prompts; then how many rows are in none,
    as their densities are not those asked for."""
    for (model, device, length, question, _), members in by_panel(pairs).items():
        counts = count_range((pair.samples for pair in members), " to ")
        where = f"{model} at {length} tokens on {device}{question_title(question)}, {counts} prompts"
        table = formats.PlainTable(f"accuracy (%) and its difference to {pairs[0].beside}: {where}", keys=2)
        decoded = any(pair.decode_density is not None or pair.beside_decode_density is not None for pair in members)
        for heading in HEADINGS:
            table.add_column(heading, justify="left" if heading == "line" else "right", no_wrap=heading != "line")
            if decoded and heading == "density":
                table.add_column("decode", justify="right", no_wrap=True)
        for pair in members:
            table.add_row(
                pair.line + (" (gated)" if pair.status == Status.GATED else ""),
                f"{pair.sparsity:g}",
                formats.number(pair.density, ".3f") + (INTERPOLATED if pair.interpolated in ("line", "both") else ""),
                *([formats.number(pair.decode_density, ".3f")] if decoded else []),
                f"{100 * pair.accuracy:.1f}",
                f"{100 * pair.difference:+.1f}",
                f"{100 * pair.difference_low:+.1f} to {100 * pair.difference_high:+.1f}",
                f"{pair.p_holm:.3f}",
            )
        table.show(console)
        if decoded:
            beside = formats.number(members[0].beside_decode_density, ".3f") or "1"
            text = f"decode: its density, of {members[0].beside} {beside}; nothing matches those"
            console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)
        console.print()
    if any(pair.interpolated for pair in pairs):
        console.print(f"{INTERPOLATED} interpolated between the rows of two whole knobs", style="dim", soft_wrap=True)
    if off := left_out_text(len(left_out), {average.line for average in left_out}):
        console.print(off.strip(), style="yellow", markup=False, soft_wrap=True)
