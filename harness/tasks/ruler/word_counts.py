"""RULER's aggregation tasks: common words of a numbered list (common_words_extraction.py), and the most frequent words of a
coded text (freq_words_extraction.py)."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

from scipy.special import zeta

from harness.tasks.haystack import Haystack
from harness.tasks.ruler.vocabulary import vocabulary
from harness.tasks.ruler.wording import COMMON_WORDS, FREQUENT_WORDS

SHORT = 4096
"""Tokens below which RULER's lists of common words are shorter."""
EXAMPLE_WORDS = {True: 20, False: 40}
"""Different words in the list of the worked example, short or not."""


def least_words(length: int) -> int:
    """Return how many different words the shortest list at a length is made of."""
    return EXAMPLE_WORDS[length < SHORT]


@dataclass(frozen=True)
class CommonWords:
    """Ten words that stand 30 times in a list whose others stand 3 times each (cwe).

    words: they replace wonderwords. short: 6 times and once, and a shorter example, as RULER does below 4096 tokens.
    more_words: a longer list, drawn from where more distinct words are asked for than there are.
    """

    words: tuple[str, ...] | None = None
    short: bool = False
    more_words: tuple[str, ...] = ()
    max_new_tokens: int = COMMON_WORDS.tokens_to_generate
    needs_prose: bool = False

    @property
    def most(self) -> int:
        """Return the most distinct words there are."""
        return max(len(self._few), len(self.more_words))

    @property
    def capped(self) -> str:
        """Return what rows call the words where a list holds all that there are."""
        return "wonderwords-capped" if self.words is None else "words-capped"

    @property
    def _few(self) -> tuple[str, ...]:
        """Return the words that lists are drawn from as long as there are enough."""
        return vocabulary() if self.words is None else self.words

    def examples(self, rng: random.Random) -> tuple[tuple[str, str], ...]:
        """Return the worked example: its text, and the whole answer. It comes before the question's text, in a turn of its
        own."""
        listed, common = self._list(rng, EXAMPLE_WORDS[self.short], *((3, 1) if self.short else (10, 3)))
        answer = " ".join(f"{i + 1}. {word}" for i, word in enumerate(common))
        return ((COMMON_WORDS.template.format(context=listed), f"{COMMON_WORDS.answer_prefix} {answer}\n"),)

    def build(self, rng: random.Random, size: int, prose: Haystack | None = None) -> tuple[str, str, list[str]]:
        """Return (text, answer prefix, answers) with `size` distinct words."""
        listed, common = self._list(rng, size, *((6, 1) if self.short else (30, 3)))
        return COMMON_WORDS.template.format(context=listed), COMMON_WORDS.answer_prefix, common

    def _list(self, rng: random.Random, distinct: int, common: int, rare: int) -> tuple[str, list[str]]:
        """Return a numbered list of `distinct` words, ten of them `common` times and the others `rare` times, and the ten."""
        chosen = rng.sample(self._few if distinct <= len(self._few) else self.more_words, distinct)
        words = chosen[:10] * common + chosen[10:] * rare
        rng.shuffle(words)
        return " ".join(f"{i + 1}. {word}" for i, word in enumerate(words)), chosen[:10]


@dataclass(frozen=True)
class FrequentWords:
    """Coded words (fwe), `vocab` of them, whose counts fall as rank^-alpha; the first rank is dots, to be ignored."""

    vocab: int
    alpha: float = 2.0
    max_new_tokens: int = FREQUENT_WORDS.tokens_to_generate
    needs_prose: bool = False

    def build(self, rng: random.Random, size: int, prose: Haystack | None = None) -> tuple[str, str, list[str]]:
        """Return (text, answer prefix, answers) with about `size` words."""
        coded: list[str] = []
        while len(coded) < self.vocab:
            word = "".join(rng.choices(string.ascii_lowercase, k=6))
            if word not in coded:
                coded.append(word)
        coded[0] = "..."
        total = float(zeta(self.alpha))
        words = [word for rank, word in enumerate(coded, 1) for _ in range(int(size * rank**-self.alpha / total))]
        rng.shuffle(words)
        return FREQUENT_WORDS.template.format(context=" ".join(words)), FREQUENT_WORDS.answer_prefix, coded[1:4]
