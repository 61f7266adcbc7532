"""The table of job=power in the terminal: samples by claim and margin, a column for each power."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from harness.report.power import SamplesNeeded
from harness.report.terminal import formats

EXPLANATION = (
    "samples in all, to be shared out over the tasks; discordance: the share that only one of method and dense gets right"
)


def show_samples_needed(console: Console, rows: Sequence[SamplesNeeded]) -> None:
    """Print how many samples each claim needs, and what the numbers mean."""
    powers = sorted({row.power for row in rows})
    table = formats.PlainTable(f"samples that a claim needs (alpha={rows[0].alpha:g})", keys=4)
    for heading in ("discordance", "from", "claim", "margin"):
        table.add_column(heading, justify="left" if heading in ("from", "claim") else "right")
    for power in powers:
        table.add_column(f"power {power:g}", justify="right")
    by_claim: dict[tuple[float, str, str, float], dict[float, int | None]] = {}
    for row in rows:
        by_claim.setdefault((row.discordance, row.source, row.claim, row.margin), {})[row.power] = row.samples
    for (discordance, source, claim, margin), samples in by_claim.items():
        counts = [_count(samples[power]) for power in powers]
        table.add_row(f"{discordance:.3f}", source, claim, f"{margin:g}", *counts)
    table.show(console)
    console.print(EXPLANATION, style="dim", highlight=False, soft_wrap=True)
    console.print()


def _count(samples: int | None) -> str:
    return "out of reach" if samples is None else f"{samples:,}"
