"""job=compare: every line of a study beside one of them, on the same samples, as a table, `compare_LINE.csv` and a figure.

The leaderboard compares with dense; this compares methods with each other, at one model, length and sparsity asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.core.errors import UserError
from harness.core.question import QUESTION_TITLES
from harness.report import leaderboard
from harness.report.common_tasks import comparable
from harness.report.leaderboard import Row, is_baseline_row
from harness.report.variants import lines
from harness.stats import scores
from harness.stats.paired import difference_interval, mean_difference
from harness.study.identity import digest
from harness.study.schema import AVERAGE, Status
from harness.study.store import Store

COLUMNS = (
    "model",
    "device",
    "length",
    "question",
    "sparsity",
    "line",
    "density",
    "accuracy",
    "beside",
    "beside_density",
    "beside_accuracy",
    "difference",
    "difference_low",
    "difference_high",
    "p_value",
    "p_holm",
    "samples",
    "status",
)
"""Of compare_LINE.csv. difference: accuracy of `line` minus that of `beside`, each task weighing the same; both ran the same
samples. p_holm: over all lines and sparsities of one model, device, length and question."""
PANEL = ("model", "device", "length", "question")
SAME = ("model", "model_hash", "length", "seed", "task", "generator", "data", "chat_template", "files", "question")
"""What of a cell's identity says which samples it saw."""


def table(store: Store, wanted: str) -> list[Row]:
    """A row for every line and sparsity that has a partner in the line called `wanted`, in the order of the panels, sparsities
    and differences. `wanted`: its name in figures and tables, or a part of it that no other line of the study has."""
    everything = leaderboard.rows(store)
    cells: dict[str, list[Row]] = defaultdict(list)
    for row in everything:
        if row["cell"] and row["task"] != AVERAGE and "_group" in row:
            cells[row["_group"]].append(row)
    machines: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in comparable(everything)[0]:
        if not is_baseline_row(row):
            machines[row["model"], row["device"], row["question"]].append(row)
    panels: dict[tuple[Any, ...], list[tuple[str, Row]]] = defaultdict(list)
    for together in machines.values():  # one name at all lengths; how a question is asked moves thresholds
        for name, members in lines(together).items():
            for row in members:
                panels[tuple(row[column] for column in PANEL)].append((name, row))
    if not panels:
        raise UserError(f"study={store.folder.name}: it has no accuracies of methods: nothing to compare")
    chosen = _line(wanted, sorted({name for panel in panels.values() for name, _ in panel}))
    records = store.samples_of()
    samples = {cell["cell"]: (_seen(cell["identity"]), records.get(cell["cell"], [])) for cell in store.latest_cells().values()}
    found: list[Row] = []
    for key, panel in panels.items():
        partners = _partners([row for name, row in panel if name == chosen and row["sparsity"] is not None], chosen)
        pairs = [
            _pair(row, name, partners[row["sparsity"]], chosen, cells, samples)
            for name, row in panel
            if name != chosen and row["sparsity"] in partners
        ]
        mine = [pair for pair in pairs if pair is not None]
        for row, p in zip(mine, scores.holm([r["p_value"] for r in mine]), strict=True):
            found.append(row | dict(zip(PANEL, key, strict=True)) | {"p_holm": p})
    if not found:
        raise UserError(
            f"job.to={wanted}: no other line has accuracies of the same samples at a sparsity of {chosen}: nothing to compare"
        )
    return sorted(found, key=_order)


def _order(row: Row) -> tuple[Any, ...]:
    return (*(str(row[c]) for c in ("model", "device", "question")), row["length"], row["sparsity"], -row["difference"])


def _line(wanted: str, names: Sequence[str]) -> str:
    fit = [name for name in names if name == wanted] or [name for name in names if wanted in name]
    if len(fit) == 1:
        return fit[0]
    what = f"{len(fit)} lines have that in their names" if fit else "the study has no such line"
    raise UserError(f"job.to={wanted}: {what}; name one of: {', '.join(fit or names)}")


def _partners(rows: Sequence[Row], chosen: str) -> dict[float, Row]:
    """The rows of the chosen line, by sparsity."""
    found: dict[float, Row] = {}
    for row in rows:
        if row["sparsity"] in found:
            raise UserError(
                f"{chosen} has two rows at sparsity {row['sparsity']:g} and length {row['length']}, of other weights or "
                "prompts, that nothing tells apart: measure one of them in a study of its own"
            )
        found[row["sparsity"]] = row
    return found


def _seen(identity: Mapping[str, Any]) -> tuple[str, str]:
    """The task, and what is equal for cells that saw the same samples, whatever computed the answers."""
    return identity["task"], digest({name: identity.get(name) for name in SAME})


def _pair(
    row: Row, name: str, partner: Row, chosen: str, cells: Mapping[str, list[Row]], samples: Mapping[str, Any]
) -> Row | None:
    """One comparison, over the tasks and samples that both have; None where they have none: of another seed, say."""
    mine, theirs = (
        {seen: _scores(records) for seen, records in (samples[task["cell"]] for task in cells[r["_group"]])}
        for r in (row, partner)
    )
    pairs = []
    for task in sorted(mine.keys() & theirs.keys()):
        if both := sorted(mine[task].keys() & theirs[task].keys()):
            pairs.append([(mine[task][index], theirs[task][index]) for index in both])
    ours, others = ([[pair[side] for pair in task] for task in pairs] for side in (0, 1))
    if not pairs:
        return None
    low, high = difference_interval(ours, others, seed=row["seed"])
    gated = Status.GATED in (row["status"], partner["status"])
    return {
        "sparsity": row["sparsity"],
        "line": name,
        "density": row["density"],
        "accuracy": _mean(ours),
        "beside": chosen,
        "beside_density": partner["density"],
        "beside_accuracy": _mean(others),
        "difference": mean_difference(ours, others),
        "difference_low": low,
        "difference_high": high,
        "p_value": scores.average_p(ours, others, seed=row["seed"]),
        "samples": sum(map(len, pairs)),
        "status": Status.GATED if gated else Status.OK,
    }


def _scores(records: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    return {record["index"]: record["score"] for record in records}


def _mean(tasks: Sequence[Sequence[float]]) -> float:
    return sum(sum(task) / len(task) for task in tasks) / len(tasks)


def show(console: Console, rows: Sequence[Row]) -> None:
    """A table for every model, device, length and question."""
    panels: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        panels[tuple(row[column] for column in PANEL)].append(row)
    for (model, device, length, question), members in panels.items():
        asked = f", {QUESTION_TITLES[question]}" if question in QUESTION_TITLES else ""
        title = f"accuracy (%) beside {rows[0]['beside']}: {model} at {length} tokens on {device}{asked}"
        shown = Table(title=title, box=None, padding=(0, 1, 0, 0), title_justify="left", title_style="bold", header_style="dim")
        for heading in ("line", "sparsity", "density", "acc.", "diff.", "95 %", "p (Holm)"):
            shown.add_column(heading, justify="left" if heading == "line" else "right", no_wrap=heading != "line")
        for row in members:
            low, middle, high = (100 * row[c] for c in ("difference_low", "difference", "difference_high"))
            shown.add_row(
                row["line"] + (" (gated)" if row["status"] == Status.GATED else ""),
                *(f"{row['sparsity']:g}", f"{row['density']:.3f}", f"{100 * row['accuracy']:.1f}", f"{middle:+.1f}"),
                *(f"{low:+.1f} to {high:+.1f}", f"{row['p_holm']:.3f}"),
            )
        console.print(shown)
        console.print()
