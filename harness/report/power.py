"""How many samples a claim needs, for the discordances of a study or given ones, and `power.csv`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.report.csv_file import write_csv
from harness.stats.power import independent_discordance, power_differs, power_noninferior, samples_for
from harness.study import verdict
from harness.study.full_rows import arm_name
from harness.study.integrity import check_study
from harness.study.store import Record, Store


@dataclass(frozen=True)
class SamplesNeeded:
    """One claim at one power; the columns of power.csv.

    claim: "non-inferior" or "differs". source: where the discordance comes from. difference: the true one that is assumed.
    samples: pairs in all, to be shared out over the tasks; None: more than a million, or impossible. reached: the power that
    they have.
    """

    claim: str
    source: str
    discordance: float
    difference: float
    margin: float
    alpha: float
    power: float
    samples: int | None
    reached: float | None


COLUMNS = tuple(SamplesNeeded.__dataclass_fields__)
"""Columns of power.csv, in order."""


@dataclass(frozen=True)
class _Claim:
    """A claim, the true difference that it assumes, and its power for a number of samples; None where no number will do."""

    name: str
    difference: float
    power_of: Callable[[int], float] | None


@dataclass(frozen=True)
class ArmDiscordance:
    """How often an arm and dense attention differ on a sample: the mean absolute and the mean signed difference of a sample,
    each task weighing the same."""

    arm: str
    discordance: float
    difference: float


def plan_samples(settings: Settings, store: Store) -> list[SamplesNeeded]:
    """Return the samples needed for each discordance, margin, claim and power that the settings ask for.

    Raises UserError for settings out of range, or a study that there is nothing to learn from.
    """
    options = settings.options
    margins, powers = _shares("margins", options["margins"]), _shares("powers", options["powers"])
    (alpha,) = _shares("alpha", options["alpha"])
    difference = options["difference"]
    if isinstance(difference, bool) or not isinstance(difference, int | float) or not -1 < difference < 1:
        raise UserError(
            f"job.difference={difference}: must be the true difference to dense, between -1 and 1; 0 is no difference"
        )
    rows = []
    for source, discordance in discordances(options, store, max(margins)):
        if abs(difference) > discordance:
            raise UserError(f"job.difference={difference}: can't be larger than the discordance, {discordance:.3g} ({source})")
        for margin in margins:
            for claim in _claims(discordance, margin, difference, alpha):
                for power in powers:
                    samples = None if claim.power_of is None else samples_for(claim.power_of, power)
                    reached = None if claim.power_of is None or samples is None else claim.power_of(samples)
                    rows.append(
                        SamplesNeeded(
                            claim=claim.name,
                            source=source,
                            discordance=discordance,
                            difference=claim.difference,
                            margin=margin,
                            alpha=alpha,
                            power=power,
                            samples=samples,
                            reached=reached,
                        )
                    )
    return rows


def write_plan(path: Path, rows: list[SamplesNeeded]) -> Path:
    """Write power.csv. Raises UserError where it can't be written."""
    return write_csv(path, COLUMNS, ([getattr(row, column) for column in COLUMNS] for row in rows))


def _claims(discordance: float, margin: float, difference: float, alpha: float) -> Iterator[_Claim]:
    """Yield the claims of one margin: that a method loses less than it, and that one which loses so much differs."""
    noninferior = partial(power_noninferior, discordance=discordance, margin=margin, difference=difference, alpha=alpha)
    yield _Claim("non-inferior", difference, lru_cache(noninferior) if difference > -margin else None)
    if margin <= discordance:
        differs = partial(power_differs, discordance=discordance, effect=margin, alpha=alpha)
        yield _Claim("differs", -margin, lru_cache(differs))


def discordances(options: Mapping[str, Any], store: Store, margin: float) -> list[tuple[str, float]]:
    """Return what to plan with, after where it comes from: given, from an accuracy, or the least, the middle and the largest of
    a study's arms that lose less than `margin`. Raises UserError where there is none."""
    given, accuracy = options["discordance"], options["accuracy"]
    if given is not None and accuracy is not None:
        raise UserError("job.discordance and job.accuracy: give one of them")
    if given is not None:
        return [("given", share) for share in _shares("discordance", given)]
    if accuracy is not None:
        shares = _shares("accuracy", accuracy)
        return [(f"independent mistakes at {share:g}", independent_discordance(share)) for share in shares]
    arms = sorted(arm_discordances(store, margin), key=lambda arm: arm.discordance)
    if not arms:
        raise UserError(
            f"study={store.folder.name} has no method beside dense to learn from: name a study that has, or give "
            "job.discordance=0.1 (the share of samples that only one of the two gets right) or job.accuracy=0.9"
        )
    return [(arms[i].arm, arms[i].discordance) for i in dict.fromkeys((0, len(arms) // 2, len(arms) - 1))]


def arm_discordances(store: Store, margin: float) -> list[ArmDiscordance]:
    """Return the discordance of each arm of a study with dense attention. Of arms that lose less than `margin`, where there are
    any: the others need no more samples. Arms that always agreed are left out, since they say only that it is small."""
    check_study(store)
    samples, cells = store.samples_of(), verdict.finished(store.cells.read())
    dense = {c["pair"]: c for c in cells.values() if verdict.is_baseline(c)}
    by_arm: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for cell in cells.values():
        if verdict.is_baseline(cell) or cell["pair"] not in dense:
            continue
        scores = verdict.paired_scores(samples.get(cell["cell"], []), samples.get(dense[cell["pair"]]["cell"], []))
        changes = [score - dense_score for score, dense_score in zip(*scores, strict=True)]
        if changes:
            means = statistics.fmean(map(abs, changes)), statistics.fmean(changes)
            by_arm.setdefault((cell["arm"], _arm_name(cell)), []).append(means)
    arms = [
        ArmDiscordance(name, statistics.fmean(apart for apart, _ in tasks), statistics.fmean(change for _, change in tasks))
        for (_, name), tasks in by_arm.items()
    ]
    near_dense = [arm for arm in arms if arm.difference > -margin] or arms
    return [arm for arm in near_dense if arm.discordance > 0]


def _arm_name(cell: Record) -> str:
    identity = cell["identity"]
    sparsity = "" if identity["sparsity"] is None else f" {identity['sparsity']:g}"
    question = f", question {identity['question']}" if "question" in identity else ""
    return f"{arm_name(identity)}{sparsity} at {identity['length']}{question}"


def _shares(name: str, value: Any) -> list[float]:
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(v, bool) or not isinstance(v, int | float) or not 0 < v < 1 for v in values):
        raise UserError(f"job.{name}={value}: must be above 0 and below 1, or a list of such numbers")
    return [float(v) for v in values]
