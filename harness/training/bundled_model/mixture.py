"""The bundled model's training sequences: prose that repeats itself, and episodes in RULER's wording.

Nothing here is a test sample. Keys are pairs of words of the training books (RULER's are adjective-noun pairs of
`wonderwords`), needles, values and variable names are drawn afresh, the prose is books (the harness tests on other
text), and an episode asks dozens of questions where RULER asks one. What the episodes share with RULER is its wording.

An episode is a list of pieces of token ids, each marked as context or as answer; the loss weighs them differently.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from harness.training.bundled_model.chain_episodes import add_chains
from harness.training.bundled_model.corpus import Corpus
from harness.training.bundled_model.needle_episodes import add_needles
from harness.training.bundled_model.pieces import Pieces, Row
from harness.training.bundled_model.word_episodes import add_common_words, add_frequent_words

KINDS = {"needle": 0.36, "essay": 0.26, "noise": 0.07, "vt": 0.13, "cwe": 0.04, "fwe": 0.04, "prose": 0.10}
"""The kinds of episodes and how often each is drawn; needle, essay and noise are haystacks."""


def fits_mixture(tokenizer: Any) -> bool:
    """Tell whether rows can be put together from pieces in this tokenizer.

    It must be byte-level, so that a piece's tokens don't depend on the text before it, make a token of every digit, and have
    BOS, EOS and ids of 16 bits.
    """
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or None in ends or len(tokenizer) > 2**16:
        return False
    space = backend.encode(" the", add_special_tokens=False).tokens[0].startswith("Ġ")
    return space and len(backend.encode("1234567", add_special_tokens=False).ids) == 7


class Mixture:
    """Draws training rows of an exact length.

    Args:
        tokenizer: the bundled model's tokenizer; its pieces join without re-tokenising.
        corpus: tokenised prose.
        seed: rows are a function of (seed, stream) and of how many were drawn before.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, corpus: Corpus, seed: int = 0) -> None:
        self.pieces = Pieces(tokenizer, corpus, seed)
        self.bos = self.pieces.bos

    def row(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Return one row: ids uint16 [length], answer mask bool [length] (True where the token belongs to an answer)."""
        rng = self.pieces.rng
        row = Row([self.bos], [False])
        while len(row.ids) < length - 16:
            remaining = length - len(row.ids)
            fill = remaining <= 384 or rng.random() < 0.6
            room = remaining if fill else int(min(remaining, 2 ** rng.uniform(7.5, np.log2(remaining))))
            part = self.episode(room, remaining)
            row.ids += part.ids
            row.answer += part.answer
            row.add(self.pieces.encode("\n"))
        row.add(self.pieces.prose(max(1, length - len(row.ids) + 1)))
        return np.array(row.ids[:length], dtype=np.uint16), np.array(row.answer[:length], dtype=bool)

    def episode(self, room: int, most: int) -> Row:
        """Return an episode of about `room` tokens and never more than `most`.

        One whose estimate ran over is drawn again, so that no needle is cut from a text that is asked about it.
        """
        for _ in range(6):
            kind = self.pieces.rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
            part = Row([], [])
            self.add_episode(kind, part, room if kind == "prose" else int(0.97 * room))
            if len(part.ids) <= most:
                return part
        part = Row([], [])
        self.add_episode("prose", part, room)
        return part

    def add_episode(self, kind: str, row: Row, room: int) -> None:
        """Add an episode of one of KINDS, of about `room` tokens, to a row."""
        if kind == "prose":
            self._add_repeating_prose(row, room)
        elif kind == "vt":
            add_chains(self.pieces, row, room)
        elif kind == "cwe":
            add_common_words(self.pieces, row, room)
        elif kind == "fwe":
            add_frequent_words(self.pieces, row, room)
        else:
            add_needles(self.pieces, row, room, kind)

    def _add_repeating_prose(self, row: Row, room: int) -> None:
        """Add a book's text in which earlier spans come back: it teaches a model to copy by matching."""
        pieces, rng = self.pieces, self.pieces.rng
        own: list[int] = []
        while len(own) < room:
            if own and rng.random() < 0.5:
                n = rng.randint(8, 96)
                start = rng.randrange(len(own))
                own += own[start : start + n]
            elif rng.random() < 0.3:
                own += [rng.randrange(3, pieces.vocab_size) for _ in range(rng.randint(8, 48))]
            else:
                own += pieces.prose(rng.randint(32, 256))
        row.add(own[:room])
