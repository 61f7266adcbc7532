"""Which arms may stand beside each other on which prompts: sets of prompts that arms have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Prompt = tuple[str, int]
"""A prompt: what is equal for all that saw the samples of a task (`Row.samples_seen`), and its index."""
Prompts = frozenset[Prompt]

ENOUGH = 0.5
"""The share of the prompts that most arms have, from which on what all have in common is enough to compare them on."""
MANY_MORE = 2
"""Arms that share so many times the prompts of a panel stand in one of their own too."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts, and the keys of the arms that saw all of them."""

    prompts: Prompts
    arms: tuple[str, ...]


def prompt_sets(sparse: Mapping[str, Prompts], baselines: Mapping[str, Prompts]) -> list[PromptSet]:
    """Return the sets of prompts to compare arms on, the main one first. sparse, baselines: what arms saw, by their keys.

    The set is what all arms have in common, if that is at least ENOUGH of the set that most of them have; else the latter, and
    arms that lack some of it are set apart in the same way. Arms that share MANY_MORE prompts, two at least, have a set of
    those as well. A baseline is in every set whose prompts it saw.
    """
    sets: list[PromptSet] = []
    rest = dict(sparse or baselines)
    while rest:
        common = _common(rest, baselines)
        members = {arm: prompts for arm, prompts in rest.items() if prompts >= common}
        sets.append(_with_baselines(common, members, baselines))
        larger = {p for p in members.values() if len(p) >= MANY_MORE * len(common) and len(p) > len(common)}
        for prompts in sorted(larger, key=lambda p: (len(p), sorted(p))):
            arms = [arm for arm, seen in members.items() if seen >= prompts]
            if len(arms) > 1:
                sets.append(_with_baselines(prompts, arms, baselines))
        rest = {arm: prompts for arm, prompts in rest.items() if arm not in members}
    return sets


def titles(sets: Sequence[PromptSet], unit: str) -> list[str]:
    """Return what sets of prompts are called: the first nothing, the others by how many prompts they have. unit: the
    word for one of those."""
    titles = [""]
    for prompt_set in sets[1:]:
        title = f"{len(prompt_set.prompts)} {unit}{'s' if len(prompt_set.prompts) > 1 else ''}"
        number = sum(known == title or known.startswith(f"{title} (") for known in titles) + 1
        titles.append(f"{title} ({number})" if number > 1 else title)
    return titles[: len(sets)]


def _common(arms: Mapping[str, Prompts], baselines: Mapping[str, Prompts]) -> Prompts:
    """Return the prompts to compare arms on: those of all arms, with dense attention if they are enough, or without."""
    votes = Counter(arms.values())
    usual = max(votes, key=lambda prompts: (votes[prompts], len(prompts), sorted(prompts)))
    for groups in ([*arms.values(), *baselines.values()], list(arms.values())):
        shared = _intersection(groups)
        if len(shared) >= ENOUGH * len(usual):
            return shared
    return usual


def _intersection(groups: Sequence[Prompts]) -> Prompts:
    """Return what all groups have in common, of distinct ones alone: arms of a study mostly saw the same."""
    return frozenset.intersection(*set(groups))


def _with_baselines(prompts: Prompts, arms: Iterable[str], baselines: Mapping[str, Prompts]) -> PromptSet:
    beside = [arm for arm, seen in baselines.items() if seen >= prompts]
    return PromptSet(prompts, tuple(dict.fromkeys([*arms, *beside])))
