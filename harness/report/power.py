"""job=power: how many samples a claim needs, as a table, `power.csv` and a figure."""

from __future__ import annotations

import statistics
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.report import leaderboard
from harness.stats.power import independent, power_differs, power_noninferior, samples_for
from harness.study import verdict
from harness.study.store import Store

COLUMNS = ("claim", "source", "discordance", "difference", "margin", "alpha", "power", "samples", "reached")
"""Of power.csv: `samples` are pairs in all, to be shared out over the tasks (empty: more than a million, or impossible);
`reached` is the power that they have; `difference` the true one that is assumed."""

Row = dict[str, Any]


def plan_samples(settings: Settings, store: Store, console: Console) -> list[Path]:
    """Print the table and write `power.csv` and `power.png` into the study's folder."""
    from harness.report.figures import power as picture

    rows = table(settings, store)
    show(console, rows)
    path = leaderboard.write_csv(store.folder / "power.csv", COLUMNS, rows)
    return [path, picture.write(rows, store.folder)]


def table(settings: Settings, store: Store) -> list[Row]:
    """A row for each discordance, margin, claim and power. Raises UserError for settings out of range."""
    options = settings.options
    margins, powers = (_shares(name, options[name]) for name in ("margins", "powers"))
    (alpha,) = _shares("alpha", options["alpha"])
    assumed = options["difference"]
    if isinstance(assumed, bool) or not isinstance(assumed, int | float) or not -1 < assumed < 1:
        raise UserError(f"job.difference={assumed}: must be the true difference to dense, between -1 and 1; 0 is no difference")
    rows = []
    for source, discordance in discordances(options, store, max(margins)):
        if abs(assumed) > discordance:
            raise UserError(f"job.difference={assumed}: can't be larger than the discordance, {discordance:.3g} ({source})")
        for margin in margins:
            noninferior = lru_cache(
                partial(power_noninferior, discordance=discordance, margin=margin, difference=assumed, alpha=alpha)
            )
            claims: list[tuple[str, float, Any]] = [("non-inferior", assumed, noninferior)]
            if margin <= discordance:
                differs = lru_cache(partial(power_differs, discordance=discordance, effect=margin, alpha=alpha))
                claims.append(("differs", -margin, differs))
            for claim, difference, reach in claims:
                for power in powers:
                    n = samples_for(reach, power) if claim == "differs" or difference > -margin else None
                    rows.append(
                        {
                            "claim": claim,
                            "source": source,
                            "discordance": discordance,
                            "difference": difference,
                            "margin": margin,
                            "alpha": alpha,
                            "power": power,
                            "samples": n,
                            "reached": None if n is None else reach(n),
                        }
                    )
    return rows


def discordances(options: dict[str, Any], store: Store, margin: float) -> list[tuple[str, float]]:
    """What to plan with, and where it comes from: given, from an accuracy, or the least, the middle and the largest of a
    study's arms that lose less than `margin`."""
    given, accuracy = options["discordance"], options["accuracy"]
    if given is not None and accuracy is not None:
        raise UserError("job.discordance and job.accuracy: give one of them")
    if given is not None:
        return [("given", value) for value in _shares("discordance", given)]
    if accuracy is not None:
        return [(f"independent mistakes at {value:g}", independent(value)) for value in _shares("accuracy", accuracy)]
    seen = sorted(measured(store, margin), key=lambda pair: pair[1])
    if not seen:
        raise UserError(
            f"study={store.folder.name} has no method beside dense to learn from: name a study that has, or give "
            "job.discordance=0.1 (the share of samples that only one of the two gets right) or job.accuracy=0.9"
        )
    return [seen[i] for i in dict.fromkeys((0, len(seen) // 2, len(seen) - 1))]


def measured(store: Store, margin: float) -> list[tuple[str, float]]:
    """The discordance of each arm of a study with dense: the mean absolute difference of a sample, each task weighing the same.
    Of those that lose less than `margin`, where there are any: the others need no more samples. Arms that always agreed are
    left out, since they say only that it is small."""
    samples, cells = store.samples_of(), verdict.finished(store.cells.read())
    dense = {c["pair"]: c for c in cells.values() if verdict.is_baseline(c)}
    by_arm: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for cell in cells.values():
        if verdict.is_baseline(cell) or cell["pair"] not in dense:
            continue
        theirs = {s["index"]: s["score"] for s in samples.get(dense[cell["pair"]]["cell"], [])}
        changes = [s["score"] - theirs[s["index"]] for s in samples.get(cell["cell"], []) if s["index"] in theirs]
        if changes:
            identity = cell["identity"]
            sparsity = "" if identity["sparsity"] is None else f" {identity['sparsity']:g}"
            asked = f", question {identity['question']}" if "question" in identity else ""
            name = f"{identity['method']}{sparsity} at {identity['length']}{asked}"
            pair = statistics.fmean(map(abs, changes)), statistics.fmean(changes)
            by_arm.setdefault((cell["arm"], name), []).append(pair)
    means = [
        (name, statistics.fmean(apart for apart, _ in pairs), statistics.fmean(change for _, change in pairs))
        for (_, name), pairs in by_arm.items()
    ]
    near = [each for each in means if each[2] > -margin] or means
    return [(name, apart) for name, apart, _ in near if apart > 0]


def show(console: Console, rows: list[Row]) -> None:
    """The table in the terminal: samples by claim and margin, a column for each power."""
    powers = sorted({r["power"] for r in rows})
    alpha = rows[0]["alpha"]
    look: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "header_style": "dim"}
    made = Table(title=f"samples that a claim needs (alpha={alpha:g})", box=None, padding=(0, 1, 0, 0), **look)
    for name in ("discordance", "from", "claim", "margin"):
        made.add_column(name, justify="left" if name in ("from", "claim") else "right")
    for power in powers:
        made.add_column(f"power {power:g}", justify="right")
    lines: dict[tuple[Any, ...], dict[float, Any]] = {}
    for r in rows:
        lines.setdefault((r["discordance"], r["source"], r["claim"], r["margin"]), {})[r["power"]] = r["samples"]
    for (discordance, source, claim, margin), found in lines.items():
        needed = ["out of reach" if found[p] is None else f"{found[p]:,}" for p in powers]
        made.add_row(f"{discordance:.3f}", source, claim, f"{margin:g}", *needed)
    console.print(made)
    text = (
        "samples in all, to be shared out over the tasks; discordance: the share that only one of method and dense gets right"
    )
    console.print(text, style="dim", highlight=False, soft_wrap=True)
    console.print()


def _shares(name: str, value: Any) -> list[float]:
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(v, bool) or not isinstance(v, int | float) or not 0 < v < 1 for v in values):
        raise UserError(f"job.{name}={value}: must be above 0 and below 1, or a list of such numbers")
    return [float(v) for v in values]
