"""What training rows are put together from: token ids of numbers, keys, names and prose, drawn at random."""

from __future__ import annotations

import random
import string
import uuid
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from harness.tasks.ruler.wording import NOISE
from harness.training.bundled_model.corpus import Corpus


@dataclass
class Row:
    """One training sequence being filled: token ids and, for each, whether it belongs to an answer."""

    ids: list[int]
    answer: list[bool]

    def add(self, ids: list[int], answer: bool = False) -> None:
        """Append token ids, all of an answer or none."""
        self.ids.extend(ids)
        self.answer.extend([answer] * len(ids))


class Pieces:
    """Draws pieces of text as token ids; they join without re-tokenising.

    tokenizer: of the bundled model's kind (`mixture.fits_mixture`). corpus: tokenised prose. seed: of the one random stream
    that all pieces, and the episodes made of them, are drawn from.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, corpus: Corpus, seed: int = 0) -> None:
        self.backend = tokenizer.backend_tokenizer
        self.corpus = corpus
        self.rng = random.Random(seed)
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.encode = lru_cache(maxsize=200_000)(self._encode)
        self.digit = [self._encode(str(d)) for d in range(10)]
        self.noise = self._encode(f" {NOISE}")
        self.vocab_size = len(tokenizer)

    def _encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def number(self, digits: int = 7) -> list[int]:
        """Draw a number of so many digits, after a space."""
        text = str(self.rng.randint(10 ** (digits - 1), 10**digits - 1))
        return self.encode(" " + text[0]) + [t for c in text[1:] for t in self.digit[int(c)]]

    def uuid(self) -> list[int]:
        """Draw a version-4 UUID, after a space."""
        return self._encode(" " + str(uuid.UUID(int=self.rng.getrandbits(128), version=4)))

    def key(self) -> list[int]:
        """Draw two words of the books with a hyphen between, after a space."""
        words = self.corpus.words
        return self.encode(" " + self.rng.choice(words)) + self.encode("-" + self.rng.choice(words))

    def name(self, letters: int = 5) -> list[int]:
        """Draw a variable's name of so many capital letters, after a space."""
        text = "".join(self.rng.choices(string.ascii_uppercase, k=letters))
        return self.encode(" " + text[0]) + [t for c in text[1:] for t in self.encode(c)]

    def ordinal(self, i: int) -> list[int]:
        """Return the number `i` of a list's item, after a space and with a full stop."""
        text = str(i)
        return self.encode(" " + text[0]) + [t for c in text[1:] for t in self.digit[int(c)]] + self.encode(".")

    def prose(self, n: int) -> list[int]:
        """Draw `n` tokens of a book, from the start of a sentence."""
        corpus = self.corpus
        start = int(corpus.starts[self.rng.randrange(len(corpus.starts))])
        start = min(start, len(corpus.tokens) - n - 1)
        return corpus.tokens[start : start + n].tolist()

    def prose_sentences(self, n: int, parts: int) -> list[list[int]]:
        """Draw about `n` tokens of a book, cut into `parts` runs at starts of sentences."""
        corpus = self.corpus
        n = max(n, 8)
        first = self.rng.randrange(max(1, int(np.searchsorted(corpus.starts, len(corpus.tokens) - n - 1))))
        begin = int(corpus.starts[first])
        last = max(first + 1, int(np.searchsorted(corpus.starts, begin + n)))
        cuts = sorted(self.rng.randrange(first, last) for _ in range(parts - 1))
        edges = [begin, *(int(corpus.starts[c]) for c in cuts), begin + n]
        return [corpus.tokens[a:b].tolist() for a, b in pairwise(edges)]
