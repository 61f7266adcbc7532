"""The leaderboard's rows of perplexity: one for each arm, length and text, accuracy left empty."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from harness.report import leaderboard
from harness.stats import bootstrap, scores
from harness.study import verdict
from harness.study.schema import PERPLEXITY, Status
from harness.study.store import Record

Row = dict[str, Any]


def rows(
    cells: Mapping[str, Record],
    documents: Sequence[Record],
    runs: Mapping[str, Record],
    timed: Mapping[tuple[str, str], Record],
) -> list[Row]:
    """Rows from the last state of all cells, the records of documents, runs by id, and timings by (arm, device)."""
    mine = [c for c in cells.values() if c["identity"]["task"] == PERPLEXITY]
    dense = {c["pair"]: c["cell"] for c in mine if verdict.is_baseline(c)}
    by_cell: dict[str, list[Record]] = {}
    for record in documents:
        by_cell.setdefault(record["cell"], []).append(record)
    return [_row(cell, by_cell, dense.get(cell["pair"]), runs, timed) for cell in mine]


def _row(
    cell: Record,
    by_cell: Mapping[str, list[Record]],
    dense: str | None,
    runs: Mapping[str, Record],
    timed: Mapping[tuple[str, str], Record],
) -> Row:
    mine = sorted(by_cell.get(cell["cell"], []), key=lambda r: r["index"])
    row = leaderboard.base_row(cell) | leaderboard.provenance([runs[d["run"]] for d in mine] or [runs[cell["run"]]])
    row |= {"task": PERPLEXITY, "haystack": cell["haystack"], "samples": len(mine), "cell": cell["cell"], "date": cell["date"]}
    row |= {"status": cell["status"], "reason": cell["reason"]}
    row["kernel"] = "+".join(sorted({k for d in mine for k in d["kernels"]}))
    if cell["identity"]["kernel"] is None:
        row |= {"density": 1.0, "token_density": 1.0, "dense_kernel": cell["identity"]["dense_kernel"]}
    elif mine:
        row |= {name: _mean([d[name] for d in mine]) for name in ("density", "token_density")}
    if mine and cell["status"] != Status.FAILED:
        row |= summary(mine, by_cell.get(dense or "", []) if dense != cell["cell"] else [], cell["identity"]["seed"])
    if latency := timed.get((cell["arm"], row["device"])):
        row |= leaderboard.times(latency)
    return row


def summary(mine: Sequence[Record], dense: Sequence[Record], seed: int) -> Row:
    """The numbers of a row from its documents and, on those that dense has too, the comparison in pairs."""
    broken = [d for d in mine if d["status"] == Status.GATED]
    if broken:
        return {"status": Status.GATED, "reason": f"{len(broken)} of {len(mine)} documents: {broken[0]['reason']}"}
    tokens, losses = [d["tokens"] for d in mine], [d["nll"] for d in mine]
    mean = math.fsum(losses) / sum(tokens)
    low, high = bootstrap.exp_bounds(bootstrap.interval(losses, tokens, seed=seed))
    row: Row = {"nll": mean, "perplexity": bootstrap.exp(mean), "perplexity_low": low, "perplexity_high": high}
    row["tokens_s"] = statistics.median(d["read"] / d["seconds"] for d in mine)
    theirs = {d["index"]: d["nll"] for d in dense if d["nll"] is not None}
    both = [(d["tokens"], d["nll"], theirs[d["index"]]) for d in mine if d["index"] in theirs]
    return row | (_paired(both, seed) if both else {})


def _paired(both: Sequence[tuple[int, float, float]], seed: int) -> Row:
    """The comparison with dense from (tokens, loss, dense loss) of documents."""
    tokens, differences = [n for n, _, _ in both], [loss - full for _, loss, full in both]
    ratio = bootstrap.exp(math.fsum(differences) / sum(tokens))
    low, high = bootstrap.exp_bounds(bootstrap.interval(differences, tokens, seed=seed))
    row: Row = {
        "dense_perplexity": bootstrap.exp(math.fsum(full for _, _, full in both) / sum(tokens)),
        "perplexity_ratio": ratio,
        "perplexity_ratio_low": low,
        "perplexity_ratio_high": high,
        "p_value": scores.sign_flip(differences, seed=seed),
    }
    if ratio < 1 and row["p_value"] < verdict.SUSPICIOUS:
        reason = f"below dense by more than noise (p={row['p_value']:.2g}): suspected bug"
        row |= {"status": Status.GATED, "reason": reason}
    return row


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None
