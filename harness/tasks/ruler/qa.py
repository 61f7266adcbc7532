"""RULER's question answering (qa.py): the documents that answer a question, among others."""

from __future__ import annotations

import random
from dataclasses import dataclass

from harness.core.errors import UserError
from harness.tasks.haystack import Haystack
from harness.tasks.ruler.question_sets import Question, Questions
from harness.tasks.ruler.wording import DOCUMENT, QUESTION_ANSWERING

PER_SEED = 500
"""Questions from one seed to the next: as many as RULER asks of each length."""


@dataclass(frozen=True)
class DocumentQA:
    """The questions of `data` in the order of the file, as NVIDIA asks them with seed 0.

    Seed s begins 500·s questions later (NVIDIA's pre_samples), so that other seeds ask other questions.
    """

    data: Questions
    max_new_tokens: int = QUESTION_ANSWERING.tokens_to_generate
    needs_prose: bool = False

    @property
    def source(self) -> str:
        """Return what rows call the documents: the data set and a hash of its file."""
        return self.data.name

    def question(self, seed: int, index: int | str) -> Question:
        """Return the question of sample `index`, or the first one for the sizing sample. Raises UserError past the last."""
        count, index = len(self.data.questions), index if isinstance(index, int) else 0
        if index >= count:
            raise UserError(f"samples={index + 1}: {self.data.name} has {count} questions; choose samples={count} or less")
        return self.data.questions[(PER_SEED * seed + index) % count]

    def one_question(self, seed: int, index: int | str) -> OneQuestion:
        """Return the builder of sample `index`."""
        return OneQuestion(self.data, self.question(seed, index))


@dataclass(frozen=True)
class OneQuestion:
    """Builds the text of one question: the documents that answer it, among others."""

    data: Questions
    question: Question
    max_new_tokens: int = QUESTION_ANSWERING.tokens_to_generate
    needs_prose: bool = False

    @property
    def evidence(self) -> tuple[str, ...]:
        """Return the documents without which the question can't be answered."""
        return tuple(self.data.documents[i] for i in self.question.own[: self.question.golden])

    def build(self, rng: random.Random, size: int, prose: Haystack | None = None) -> tuple[str, str, list[str]]:
        """Return (text, answer prefix, answers) with `size` documents, at least those that answer the question."""
        chosen = self._chosen(rng, max(size, self.question.golden))
        rng.shuffle(chosen)
        documents = (DOCUMENT.format(i=n, document=self.data.documents[i]) for n, i in enumerate(chosen, 1))
        text = QUESTION_ANSWERING.template.format(context="\n\n".join(documents), query=self.question.query)
        return text, QUESTION_ANSWERING.answer_prefix, list(self.question.answers)

    def _chosen(self, rng: random.Random, size: int) -> list[int]:
        """Choose the question's own documents, then those near it, then any; all of them over again where there are too few."""
        total, own, near = len(self.data.documents), self.question.own, self.question.near
        if size >= total:
            return [n % total for n in range(size)]
        if size <= len(own):
            return list(own[:size])
        if size - len(own) <= len(near):
            return [*own, *rng.sample(near, size - len(own))]
        taken = {*own, *near}
        others = [i for i in range(total) if i not in taken]
        return [*own, *near, *rng.sample(others, size - len(own) - len(near))]
