"""What builds the text of each task of RULER, and where its question begins."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Protocol

from harness.tasks.context import last_place, question_opening
from harness.tasks.files import DataFile
from harness.tasks.haystack import Haystack
from harness.tasks.ruler.niah import Niah
from harness.tasks.ruler.qa import DocumentQA
from harness.tasks.ruler.question_sets import HOTPOTQA, SQUAD, Questions
from harness.tasks.ruler.variable_tracking import VariableTracking
from harness.tasks.ruler.word_counts import SHORT, CommonWords, FrequentWords
from harness.tasks.ruler.wording import COMMON_WORDS, FREQUENT_WORDS, NIAH, QUESTION_ANSWERING, VARIABLE_TRACKING, singular


class Builder(Protocol):
    """Builds the text of a sample from a random stream and the size of its haystack."""

    @property
    def max_new_tokens(self) -> int: ...

    @property
    def needs_prose(self) -> bool: ...

    def build(self, rng: random.Random, size: int, prose: Haystack | None) -> tuple[str, str, list[str]]:
        """Return (text, answer prefix, answers)."""
        ...


Words = tuple[str, ...] | None

NEEDLES: dict[str, Niah] = {
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
    "vt": lambda length, words, more_words: VariableTracking(),
    "cwe": lambda length, words, more_words: CommonWords(words, short=length < SHORT, more_words=more_words or ()),
    "fwe": lambda length, words, more_words: FrequentWords(vocab=max(8, (length - 50) // 50)),
}
DOCUMENTS: dict[str, DataFile] = {"qa_1": SQUAD, "qa_2": HOTPOTQA}
QUESTION_OPENINGS: dict[str, tuple[str, ...]] = {
    **{name: (question_opening(NIAH.template), question_opening(singular(NIAH.template))) for name in NEEDLES},
    "vt": (question_opening(VARIABLE_TRACKING.template),),
    "cwe": (question_opening(COMMON_WORDS.template),),
    "fwe": (question_opening(FREQUENT_WORDS.template),),
    **{name: (question_opening(QUESTION_ANSWERING.template),) for name in DOCUMENTS},
}
"""How a task's question begins, word for word."""
LONG_LISTS = ("cwe",)
"""Tasks for whose longest samples wonderwords has too few words."""
MORE_WORDS = ("english_words.json",)
"""RULER's list for cwe once wonderwords has too few, in the folder of data.dir."""


def make_builder(
    task: str, length: int, words: Words, *, more_words: Words = None, questions: Questions | None = None
) -> Builder | DocumentQA:
    """Return the builder of `task` for samples of `length` tokens.

    `words` replace wonderwords in cwe, `more_words` are drawn from where more distinct ones are asked for than these are, and
    `questions` are those of a task of DOCUMENTS.
    """
    if task in DOCUMENTS:
        assert questions is not None
        return DocumentQA(questions)
    return NEEDLES[task] if task in NEEDLES else OTHERS[task](length, words, more_words)


def fitted(builder: Builder | DocumentQA, tokenizer: Any) -> Builder | DocumentQA:
    """Return the builder with what depends on the tokenizer: the size of vt's worked example."""
    if not isinstance(builder, VariableTracking):
        return builder
    return builder.fitted(lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]))


def smallest_size(task: str) -> int:
    """Return the smallest haystack that a sample can have: room for every needle."""
    if task in NEEDLES:
        niah = NEEDLES[task]
        return 60 if niah.needs_prose else max(2, niah.keys * niah.values)
    return 1 if task in DOCUMENTS else {"vt": 5, "cwe": 20, "fwe": 40}[task]


def context_characters(task: str, prompt: str) -> int | None:
    """Return how many characters of a prompt of `task` come before its question.

    A worked example's question belongs to the context. None where there is no question.
    """
    return last_place(prompt, QUESTION_OPENINGS[task])
