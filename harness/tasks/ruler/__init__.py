"""The eleven synthetic tasks of RULER (arXiv 2404.06654), as NVIDIA/RULER's scripts/synthetic.yaml sets them up.

Where this differs from NVIDIA's code, on purpose: every sample has a random stream of its own, so shuffles and draws that
NVIDIA repeats with seed 42 differ between samples, and any sample can be made without the others; sentences are cut by a
regular expression instead of punkt; distractor needles never carry the key that is asked for. Two more, to be mended when
the samples change next: the worked example of vt has five lines of noise, where NVIDIA's is filled to 500 tokens (about twelve
lines); and after a chat template the answer prefix loses its leading space, which NVIDIA's keeps.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

from harness.tasks.haystack import Haystack
from harness.tasks.ruler.counting import CommonWords, FrequentWords
from harness.tasks.ruler.niah import Niah
from harness.tasks.ruler.tracking import VariableTracking


class Builder(Protocol):
    """Makes the text of a sample from a random stream and the size of its haystack."""

    @property
    def max_new_tokens(self) -> int: ...

    @property
    def prose(self) -> bool: ...

    def build(self, rng: random.Random, size: int, hay: Haystack | None) -> tuple[str, str, list[str]]: ...


NIAH_TASKS: dict[str, Niah] = {
    "niah_single_1": Niah("noise"),
    "niah_single_2": Niah("essay"),
    "niah_single_3": Niah("essay", value="uuids"),
    "niah_multikey_1": Niah("essay", keys=4),
    "niah_multikey_2": Niah("needle"),
    "niah_multikey_3": Niah("needle", key="uuids", value="uuids"),
    "niah_multivalue": Niah("essay", values=4),
    "niah_multiquery": Niah("essay", keys=4, queries=4),
}
OTHERS: dict[str, Callable[[int, tuple[str, ...] | None], Builder]] = {
    "vt": lambda length, words: VariableTracking(),
    "cwe": lambda length, words: CommonWords(words, short=length < 4096),
    "fwe": lambda length, words: FrequentWords(vocab=max(8, (length - 50) // 50)),
}
NAMES = (*NIAH_TASKS, *OTHERS)


def builder(task: str, length: int, words: tuple[str, ...] | None) -> Builder:
    """The builder of `task` for samples of `length` tokens; `words` replace wonderwords in cwe."""
    return NIAH_TASKS[task] if task in NIAH_TASKS else OTHERS[task](length, words)


def smallest(task: str) -> int:
    """The smallest haystack that a sample can have: room for every needle."""
    if task in NIAH_TASKS:
        made = NIAH_TASKS[task]
        return 60 if made.prose else max(2, made.keys * made.values)
    return {"vt": 5, "cwe": 20, "fwe": 40}[task]
