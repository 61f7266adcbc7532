"""What a choice says in words: the answer in one sentence, and what it leaves out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from harness.core.conf_files import groups
from harness.core.method_facts import method_facts
from harness.report.choose import Bound, Candidate, Choice, Verdict
from harness.report.recorded_rows import RecordedArm

TIMES = {"attention": "attention time", "ttft": "time to first token"}
"""What the two kinds of time are called."""
LEFT_OUT = {
    Verdict.IS_BOUND: "never chosen, as it looks at what no usable method can",
    Verdict.OFF_DENSITY: "never chosen, as it is off the density that it was asked for",
    Verdict.HELD_BACK: "held back",
}
"""What is said of lines that no bound lets in."""


def points(value: float, most: float | None = None) -> str:
    """Return points of accuracy with a decimal; with as many more as tell them from a bound that they aren't equal to."""
    for decimals in (1, 2, 3):
        text = f"{value:.{decimals}f}"
        if most is None or value == most or float(text) != round(most, decimals):
            break
    return "0.0" if text == "-0.0" else text


def bound_text(bound: Bound) -> str:
    """Return the bound as the end of "shown …"."""
    if bound.of == "loss":
        return f"to lose at most {bound.most:g} point{'' if bound.most == 1 else 's'} (95 %)"
    return f"at density {bound.most:g} or less" if bound.of == "density" else f"within {bound.most:g} ms of {TIMES[bound.by]}"


def answer(choice: Choice) -> str:
    """Return the answer in one sentence."""
    first, bound = choice.first, choice.bound
    if first is None:
        return _no_answer(choice)
    if first.row.is_baseline:
        return _dense_answer(choice)
    name = f"Use {named(first)}: "
    loss = first.loss
    faster = _faster(first, bound)
    if bound.ranks_times and loss is not None:
        tied = any(candidate.row.is_baseline for candidate in choice.tied)
        unsure = " (not told apart from it)" if tied else ""
        return f"{name}{faster}{unsure}, and at most {points(loss.high, bound.most)} points lost (95 %)"
    lost = "" if loss is None else f"{points(loss.points)} points lost ({points(loss.low)} to {points(loss.high)} at 95 %)"
    return f"{name}{lost}, the least {bound_text(bound)}{f'; {faster}' if faster else ''}"


def named(candidate: Candidate) -> str:
    """Return the name of an arm with its density."""
    density = candidate.row.density
    decode = candidate.row.decode_density
    texts = [f"density {density:.3f}"] if density is not None and not candidate.row.is_baseline else []
    texts += [f"decoding density {decode:.3f}"] if decode is not None else []
    return f"{candidate.name} at {' and '.join(texts)}" if texts else candidate.name


def _faster(candidate: Candidate, bound: Bound) -> str:
    """Return how much less time than dense attention an arm takes, or more; nothing where that is not known."""
    share = None if candidate.timing is None else candidate.timing.share
    if share is None:
        return ""
    return f"{abs(1 - share) * 100:.0f} % {'less' if share <= 1 else 'more'} {TIMES[bound.by]} than dense attention"


def _dense_answer(choice: Choice) -> str:
    bound, begin = choice.bound, f"Use {choice.ranked[0].row.method} attention"
    if not bound.ranks_times:
        return f"{begin}: it is {bound_text(bound)}, and no method loses less"
    if len(choice.ranked) == 1:
        return f"{begin}: no method that was timed is shown {bound_text(bound)}"
    return f"{begin}: no method shown {bound_text(bound)} takes less {TIMES[bound.by]}"


def _no_answer(choice: Choice) -> str:
    if choice.bound.ranks_times:
        return f"No answer: nothing here was timed beside dense attention and is shown {bound_text(choice.bound)}"
    over = [candidate for candidate in choice.candidates if candidate.verdict == Verdict.OUTSIDE]
    least = min(over, key=lambda candidate: _value(candidate, choice.bound), default=None)
    unit = " ms" if choice.bound.of == "ms" else ""
    near = (
        "" if least is None or choice.not_shown else f"; the least is {_value(least, choice.bound):.3g}{unit}, {named(least)}"
    )
    return f"No answer: nothing here is shown {bound_text(choice.bound)}{near}"


def _value(candidate: Candidate, bound: Bound) -> float:
    """Return what a bound on the density or the time is held against."""
    if bound.of == "density":
        return candidate.row.density or 0.0
    return candidate.timing.ms if candidate.timing is not None else float("inf")


def where(choice: Choice) -> str:
    """Return device, tasks, prompts and studies of a choice."""
    rows = [candidate.row for candidate in choice.candidates if candidate.arm.tasks]
    row, counts = rows[0], sorted({row.samples or 0 for row in rows})
    tasks = f"{row.tasks} tasks" if row.tasks != 1 else next(c.arm.tasks[0].task for c in choice.candidates if c.arm.tasks)
    prompts = "–".join(dict.fromkeys([str(counts[0]), str(counts[-1])]))
    return f"{choice.device}, {tasks}, {prompts} prompts ({', '.join(choice.studies)})"


def notes(choice: Choice) -> list[str]:
    """Return a line each on what is over the bound, what is left out and why, and what was not measured."""
    by_verdict: dict[Verdict, list[Candidate]] = defaultdict(list)
    for candidate in choice.candidates:
        by_verdict[candidate.verdict].append(candidate)
    over = len(by_verdict[Verdict.OUTSIDE])
    texts = [f"over the bound: {over} of {len(choice.candidates)} arms"] if over else []
    texts += [f"{text}: {_arms(by_verdict[verdict])}" for verdict, text in LEFT_OUT.items() if by_verdict[verdict]]
    missing = by_verdict[Verdict.NOT_MEASURED]
    for what in dict.fromkeys(candidate.reason for candidate in missing):
        texts.append(f"{what} not measured: {_arms([candidate for candidate in missing if candidate.reason == what])}")
    if untimed := [candidate for candidate in choice.ranked if candidate.timing is None]:
        texts.append(f"time not measured: {_arms(untimed)}")
    if never := never_measured(choice.candidates):
        texts.append(f"no row at all: {', '.join(never)}")
    return texts


def elsewhere(arms: Sequence[RecordedArm], choices: Sequence[Choice]) -> list[str]:
    """Return a line for each device on which there is something, but nothing to choose among: dense attention alone, or times
    without an accuracy."""
    shown = {id(candidate.arm) for choice in choices for candidate in choice.candidates}
    studies: dict[tuple[str, str], set[str]] = defaultdict(set)
    for arm in arms:
        if id(arm) not in shown:
            studies[arm.row.device, "dense attention alone" if arm.tasks else "times alone, no accuracy"].add(arm.row.study)
    return [f"{device}: {what} ({', '.join(sorted(names))})" for (device, what), names in sorted(studies.items())]


def _arms(candidates: Sequence[Candidate]) -> str:
    """Return the lines of arms, each with the densities of those here."""
    densities: dict[str, list[float]] = defaultdict(list)
    for candidate in candidates:
        known = [] if candidate.row.density is None else [candidate.row.density]
        densities[candidate.line] += known
    return ", ".join(" ".join([line, *(f"{d:.3f}" for d in sorted(values))]) for line, values in densities.items())


def never_measured(candidates: Sequence[Candidate]) -> list[str]:
    """Return the methods of conf/ that no arm here is of, without bounds."""
    measured = {candidate.row.method for candidate in candidates}
    return [name for name in groups()["method"] if name not in measured and not method_facts(name).bound]
