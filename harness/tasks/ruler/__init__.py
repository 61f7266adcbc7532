"""The thirteen tasks of RULER (arXiv 2404.06654), as NVIDIA/RULER's scripts/synthetic.yaml sets them up: eleven that are
generated, and two that ask the questions of SQuAD and HotpotQA (`qa`).

Where this differs from NVIDIA's code, on purpose: every sample has a random stream of its own, so shuffles and draws that
NVIDIA repeats with seed 42 differ between samples, and any sample can be made without the others; sentences are cut by a
regular expression instead of punkt; distractor needles never carry the key that is asked for; where a question's own documents
don't all fit, those that answer it stay, where NVIDIA's code never ends. Two more, to be mended when
the samples change next: the worked example of vt has five lines of noise, where NVIDIA's is filled to 500 tokens (about twelve
lines); and after a chat template the answer prefix loses its leading space, which NVIDIA's keeps.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

from harness.tasks.context import last_place, opening
from harness.tasks.files import DataFile
from harness.tasks.haystack import Haystack
from harness.tasks.ruler.counting import CommonWords, FrequentWords
from harness.tasks.ruler.niah import Niah
from harness.tasks.ruler.qa import DocumentQA
from harness.tasks.ruler.questions import HOTPOTQA, SQUAD, Questions
from harness.tasks.ruler.text import COMMON_WORDS, FREQUENT_WORDS, NIAH, QUESTION_ANSWERING, VARIABLE_TRACKING, singular
from harness.tasks.ruler.tracking import VariableTracking


class Builder(Protocol):
    """Makes the text of a sample from a random stream and the size of its haystack."""

    @property
    def max_new_tokens(self) -> int: ...

    @property
    def prose(self) -> bool: ...

    def build(self, rng: random.Random, size: int, hay: Haystack | None) -> tuple[str, str, list[str]]: ...


Words = tuple[str, ...] | None

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
OTHERS: dict[str, Callable[[int, Words, Words], Builder]] = {
    "vt": lambda length, words, more: VariableTracking(),
    "cwe": lambda length, words, more: CommonWords(words, short=length < 4096, more=more or ()),
    "fwe": lambda length, words, more: FrequentWords(vocab=max(8, (length - 50) // 50)),
}
CORE = (*NIAH_TASKS, *OTHERS)
"""The tasks that need no file of others."""
DOCUMENTS: dict[str, DataFile] = {"qa_1": SQUAD, "qa_2": HOTPOTQA}
NAMES = (*CORE, *DOCUMENTS)
QUESTIONS: dict[str, tuple[str, ...]] = {
    **{name: (opening(NIAH.template), opening(singular(NIAH.template))) for name in NIAH_TASKS},
    "vt": (opening(VARIABLE_TRACKING.template),),
    "cwe": (opening(COMMON_WORDS.template),),
    "fwe": (opening(FREQUENT_WORDS.template),),
    **{name: (opening(QUESTION_ANSWERING.template),) for name in DOCUMENTS},
}
"""How a task's question begins, word for word."""
LONG_LISTS = ("cwe",)
"""Tasks for whose longest samples wonderwords has too few words."""
MORE_WORDS = ("english_words.json",)
"""RULER's list for cwe once wonderwords has too few, in the folder of data.dir."""


def builder(
    task: str, length: int, words: Words, *, more: Words = None, questions: Questions | None = None
) -> Builder | DocumentQA:
    """The builder of `task` for samples of `length` tokens; `words` replace wonderwords in cwe, `more` come after them,
    and `questions` are those of a task of DOCUMENTS."""
    if task in DOCUMENTS:
        assert questions is not None
        return DocumentQA(questions)
    return NIAH_TASKS[task] if task in NIAH_TASKS else OTHERS[task](length, words, more)


def smallest(task: str) -> int:
    """The smallest haystack that a sample can have: room for every needle."""
    if task in NIAH_TASKS:
        made = NIAH_TASKS[task]
        return 60 if made.prose else max(2, made.keys * made.values)
    return 1 if task in DOCUMENTS else {"vt": 5, "cwe": 20, "fwe": 40}[task]


def context_of(task: str, prompt: str) -> int | None:
    """How many characters of a prompt of `task` come before its question; a worked example's question is the context's."""
    return last_place(prompt, QUESTIONS[task])
