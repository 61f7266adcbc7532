"""The bundled model's training sequences: prose that repeats itself, and episodes in RULER's wording.

Nothing here is a test sample. Keys are pairs of words of the training books (RULER's are adjective-noun pairs of
`wonderwords`), needles, values and variable names are drawn afresh, the prose is books (the harness tests on other
text), and an episode asks dozens of questions where RULER asks one. What the episodes share with RULER is its wording.

An episode is a list of pieces of token ids, each marked as context or as answer; the loss weighs them differently.
"""

from __future__ import annotations

import random
import string
import uuid
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from harness.tasks.ruler.wording import COMMON_WORDS, FREQUENT_WORDS
from harness.tasks.ruler.wording import NOISE as RULER_NOISE
from harness.training.bundled_model.corpus import Corpus

NOISE = f" {RULER_NOISE}"
KINDS = {"needle": 0.36, "essay": 0.26, "noise": 0.07, "vt": 0.13, "cwe": 0.04, "fwe": 0.04, "prose": 0.10}


def fits_mixture(tokenizer: Any) -> bool:
    """Whether rows can be put together from pieces in this tokenizer: byte-level, so that a piece's tokens don't depend on
    what stands before it, every digit a token, BOS and EOS, and ids of 16 bits."""
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or None in ends or len(tokenizer) > 2**16:
        return False
    space = backend.encode(" the", add_special_tokens=False).tokens[0].startswith("Ġ")
    return space and len(backend.encode("1234567", add_special_tokens=False).ids) == 7


@dataclass
class Row:
    """One training sequence being filled: token ids and, for each, whether it belongs to an answer."""

    ids: list[int]
    answer: list[bool]

    def add(self, ids: list[int], answer: bool = False) -> None:
        self.ids.extend(ids)
        self.answer.extend([answer] * len(ids))


class Mixture:
    """Draws training rows of an exact length.

    Args:
        tokenizer: the bundled model's tokenizer; its pieces join without re-tokenising.
        corpus: tokenised prose.
        seed: rows are a function of (seed, stream) and of how many were drawn before.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, corpus: Corpus, seed: int = 0) -> None:
        self.backend = tokenizer.backend_tokenizer
        self.corpus = corpus
        self.rng = random.Random(seed)
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.enc = lru_cache(maxsize=200_000)(self._encode)
        self.digit = [self._encode(str(d)) for d in range(10)]
        self.noise = self._encode(NOISE)
        self.vocab_size = len(tokenizer)

    def _encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    # ---- small things -------------------------------------------------------------------------------------------
    def number(self, digits: int = 7) -> list[int]:
        text = str(self.rng.randint(10 ** (digits - 1), 10**digits - 1))
        return self.enc(" " + text[0]) + [t for c in text[1:] for t in self.digit[int(c)]]

    def uuid(self) -> list[int]:
        return self._encode(" " + str(uuid.UUID(int=self.rng.getrandbits(128), version=4)))

    def key(self) -> list[int]:
        words = self.corpus.words
        return self.enc(" " + self.rng.choice(words)) + self.enc("-" + self.rng.choice(words))

    def name(self, letters: int = 5) -> list[int]:
        text = "".join(self.rng.choices(string.ascii_uppercase, k=letters))
        return self.enc(" " + text[0]) + [t for c in text[1:] for t in self.enc(c)]

    def prose(self, n: int) -> list[int]:
        """`n` tokens of a book, from the start of a sentence."""
        corpus = self.corpus
        start = int(corpus.starts[self.rng.randrange(len(corpus.starts))])
        start = min(start, len(corpus.tokens) - n - 1)
        return corpus.tokens[start : start + n].tolist()

    def prose_sentences(self, n: int, parts: int) -> list[list[int]]:
        """About `n` tokens of a book, cut into `parts` runs at starts of sentences."""
        corpus = self.corpus
        n = max(n, 8)
        first = self.rng.randrange(max(1, int(np.searchsorted(corpus.starts, len(corpus.tokens) - n - 1))))
        begin = int(corpus.starts[first])
        last = max(first + 1, int(np.searchsorted(corpus.starts, begin + n)))
        cuts = sorted(self.rng.randrange(first, last) for _ in range(parts - 1))
        edges = [begin, *(int(corpus.starts[c]) for c in cuts), begin + n]
        return [corpus.tokens[a:b].tolist() for a, b in pairwise(edges)]

    # ---- episodes -----------------------------------------------------------------------------------------------
    def niah(self, row: Row, room: int, hay: str) -> None:
        """Needles in a haystack of prose, of one repeated line, or of other needles; then as many questions as fit."""
        rng, enc = self.rng, self.enc
        unit = rng.choice(["number", "number", "uuid"])
        uuid_keys = hay == "needle" and unit == "uuid" and rng.random() < 0.7
        n_values = rng.choice([1, 1, 1, 2, 4]) if hay != "needle" else 1
        n_query = rng.choice([1, 1, 1, 2, 4])
        plural = n_values * n_query > 1
        digits = 7 if rng.random() < 0.8 else rng.randint(4, 9)
        value = self.uuid if unit == "uuid" else (lambda: self.number(digits))
        key = self.uuid if uuid_keys else self.key
        kinds, kind = f" {unit}s", f" {unit}s" if plural else f" {unit}"
        head = "Some special magic" if plural else "A special magic"
        hidden = " are hidden" if plural else " is hidden"
        row.add(
            enc(head)
            + enc(kind)
            + enc(hidden + " within the following text. Make sure to memorize it. I will quiz you about the")
        )
        row.add(enc(kind) + enc(" afterwards.") + enc("\n"))

        start, lead, colon = enc("One of the special magic"), enc(" for"), enc(" is:")
        space_start = enc(" One of the special magic")

        def needle(k: list[int], v: list[int], first: list[int]) -> list[int]:
            return first + enc(kinds) + lead + k + colon + v + enc(".")

        def block(k: list[int], vs: list[list[int]]) -> tuple[list[int], list[int]]:
            if plural:
                ask = enc("\nWhat are all the special magic") + enc(kind) + lead
                mid = enc(" mentioned in the provided text? The special magic") + enc(kind) + lead
                end = enc(" mentioned in the provided text are")
            else:
                ask = enc("\nWhat is the special magic") + enc(kind) + lead
                mid = enc(" mentioned in the provided text? The special magic") + enc(kind) + lead
                end = enc(" mentioned in the provided text is")
            answer: list[int] = []
            for i, v in enumerate(vs):
                answer += ([*enc(",")] if i else []) + v
            return ask + k + mid + k + end, [*answer, *enc("."), self.eos]

        size = len(needle(key(), value(), start)) + 1
        question, reply = block(key(), [value()])
        cost = len(question) + len(reply)
        room = room - len(row.ids)
        most = int(32 * max(1.0, room / 8192) ** 0.5)
        n_asked = max(1, min(most, room // 3 // (cost * max(1, (n_query * n_values + 1) // 2))))
        context = room - n_asked * (cost + (n_query - 1) * 2 * len(key()) + (n_query * n_values - 1) * (size // 3))
        if hay == "needle":
            n_keys = max(2, context // size)
        else:
            n_keys = max(1, min(int(2 ** rng.uniform(0.0, 6.8)), context // (2 * size * n_values)))
        keys = [key() for _ in range(n_keys)]
        items: list[int | None] = [i for i in range(n_keys) for _ in range(n_values)]
        values: list[list[list[int]]] = [[] for _ in keys]  # in order of appearance, the order in which they are asked for

        def draw(i: int, first: list[int]) -> list[int]:
            values[i].append(value())
            return needle(keys[i], values[i][-1], first)

        if hay == "essay":
            rng.shuffle(items)
            runs = self.prose_sentences(context - len(items) * size, len(items) + 1)
            row.add(runs[0])
            for item, run in zip(items, runs[1:], strict=True):
                row.add(draw(item or 0, space_start) + run)
        else:
            noise, newline = enc(NOISE[1:]), enc("\n")
            if hay == "noise":
                items += [None] * max(0, (context - len(items) * size) // (len(noise) + 1))
            rng.shuffle(items)
            for n, item in enumerate(items):
                row.add((newline if n else []) + (noise if item is None else draw(item, start)))
        left = rng.sample(range(n_keys), n_keys)  # no key is asked for twice: the second answer could be copied from the first
        while left and n_asked:
            chosen, left, n_asked = left[:n_query], left[n_query:], n_asked - 1
            asked: list[int] = []
            for n, i in enumerate(chosen):
                asked += (enc(", and") if n and n == len(chosen) - 1 else enc(",") if n else []) + keys[i]
            question, reply = block(asked, [v for i in chosen for v in values[i]])
            row.add(question)
            row.add(reply, answer=True)

    def vt(self, row: Row, room: int) -> None:
        """Chains of variable assignments in noise, after a short worked example, then one question a chain."""
        if room >= 512 and self.rng.random() < 0.7:
            self._vt_one(row, 5 * (len(self.noise) + 1) + 100, chains=1, hops=4, letters=3)
            row.add(self.enc("\n") + self.enc("\n"))
        left = room - len(row.ids) if room > len(row.ids) else 64
        chains = 1 if self.rng.random() < 0.4 else self.rng.randint(1, max(1, min(8, left // 400)))
        self._vt_one(row, left, chains=chains, hops=self.rng.choice([1, 2, 3, 4, 4, 4, 5, 6]), letters=5)

    def _vt_one(self, row: Row, room: int, *, chains: int, hops: int, letters: int) -> None:
        rng, enc = self.rng, self.enc
        row.add(enc("Memorize and track the chain(s) of variable assignment hidden in the following text.") + enc("\n") * 2)
        names = [[self.name(letters) for _ in range(hops + 1)] for _ in range(chains)]
        values = [self.number(5) for _ in range(chains)]
        lines: list[list[list[int]]] = []
        var = enc("VAR")
        for chain, value in zip(names, values, strict=True):
            made = [var + chain[0] + enc(" =") + value]
            made += [var + b + enc(" = VAR") + a + enc(" ") for a, b in pairwise(chain)]
            lines.append(made)
        noise = enc(NOISE[1:])
        ask = 70 + 6 * (hops + 1)
        used = sum(len(x) + 1 for made in lines for x in made)
        copies = max(2, (room - used - chains * ask - 20) // (len(noise) + 1))
        slots = sorted(rng.choices(range(copies + 1), k=chains * (hops + 1)))
        turns = [c for c in range(chains) for _ in range(hops + 1)]
        rng.shuffle(turns)  # which chain's next line stands in each slot: lines of one chain keep their order
        at: dict[int, list[list[int]]] = {}
        taken = [0] * chains
        for slot, c in zip(slots, turns, strict=True):
            at.setdefault(slot, []).append(lines[c][taken[c]])
            taken[c] += 1
        newline = enc("\n")
        for n in range(copies + 1):
            for line in at.get(n, []):
                row.add(line + newline)
            if n < copies:
                row.add(noise + newline)
        for c in rng.sample(range(chains), chains):
            row.add(enc("Question: Find all variables that are assigned the value") + values[c] + enc(" in the text above."))
            row.add(enc(" Answer: According to the chain(s) of variable assignment in the text above,"))
            row.add(enc(f" {hops + 1}") + enc(" variables are assigned the value") + values[c] + enc(", they are:") + enc(" "))
            row.add([t for name in names[c] for t in name] + [self.eos], answer=True)
            row.add(newline)

    def cwe(self, row: Row, room: int) -> None:
        """A numbered list in which ten words are common; RULER's 30 and 3 repeats at length, fewer in short rows."""
        rng, enc = self.rng, self.enc
        row.add(enc(COMMON_WORDS.template.partition("{context}")[0]))
        common_repeats, rare_repeats = rng.choice([(30, 3), (10, 3), (6, 1), (4, 1)])
        n = 10 if room > 1500 else 3
        words = rng.sample(self.corpus.words, min(len(self.corpus.words), n + room // (5 * rare_repeats)))
        common, rare = words[:n], iter(words[n:])
        pool = common * common_repeats
        space = (room - len(row.ids) - 90) // 8
        while len(pool) < space:
            word = next(rare, None)
            if word is None:
                break
            pool += [word] * rare_repeats
        rng.shuffle(pool)
        for i, word in enumerate(pool[: max(space, n)]):
            row.add((self._ordinal(i + 1) if i else enc("1.")) + enc(" " + word))
        seen = [w for w in dict.fromkeys(pool[: max(space, n)]) if w in set(common)]
        row.add(
            enc("\n")
            + enc("Question: What are the")
            + enc(f" {n}")
            + enc(" most common words in the above list? Answer: The top")
            + enc(f" {n}")
        )
        row.add(enc(" words that appear most often in the list are:"))
        row.add([t for i, w in enumerate(seen) for t in self._ordinal(i + 1) + enc(" " + w)] + [self.eos], answer=True)

    def _ordinal(self, i: int) -> list[int]:
        text = str(i)
        return self.enc(" " + text[0]) + [t for c in text[1:] for t in self.digit[int(c)]] + self.enc(".")

    def fwe(self, row: Row, room: int) -> None:
        """Coded words with zeta-distributed counts; the three most frequent are asked for."""
        rng, enc = self.rng, self.enc
        head, _, question = FREQUENT_WORDS.template.partition("{context}")
        row.add(enc(head.rstrip(" ")))
        space = max(24, (room - len(row.ids) - 80) // 3)
        vocab = ["".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(max(8, room // 50))]
        counts = [int(space / (k * k) / 1.6449) for k in range(1, len(vocab) + 1)]
        pieces = [enc(" ...")] + [enc(" " + w) for w in vocab[1:]]
        pool = [i for i, c in enumerate(counts) for _ in range(c)]
        rng.shuffle(pool)
        for i in pool:
            if len(row.ids) > room - 80:
                break
            row.add(pieces[i])
        row.add(enc(question + FREQUENT_WORDS.answer_prefix))
        row.add(pieces[1] + pieces[2] + pieces[3] + [self.eos], answer=True)

    def repeated(self, row: Row, room: int) -> None:
        """A book's text in which earlier spans come back: what makes a model learn to copy by matching."""
        rng = self.rng
        own: list[int] = []
        while len(own) < room:
            if own and rng.random() < 0.5:
                n = rng.randint(8, 96)
                start = rng.randrange(len(own))
                own += own[start : start + n]
            elif rng.random() < 0.3:
                own += [rng.randrange(3, self.vocab_size) for _ in range(rng.randint(8, 48))]
            else:
                own += self.prose(rng.randint(32, 256))
        row.add(own[:room])

    def episode(self, room: int, left: int) -> Row:
        """An episode of about `room` tokens and never more than `left`: one whose estimate ran over is drawn again, so that
        no needle is cut from a text that is asked about it."""
        for _ in range(6):
            kind = self.rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
            part = Row([], [])
            if kind == "prose":
                self.repeated(part, room)
            elif kind in ("vt", "cwe", "fwe"):
                getattr(self, kind)(part, int(0.97 * room))
            else:
                self.niah(part, int(0.97 * room), kind)
            if len(part.ids) <= left:
                return part
        part = Row([], [])
        self.repeated(part, room)
        return part

    # ---- rows ---------------------------------------------------------------------------------------------------
    def row(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """One row: ids uint16 [length], answer mask bool [length] (True where the token itself belongs to an answer)."""
        rng = self.rng
        row = Row([self.bos], [False])
        while len(row.ids) < length - 16:
            left = length - len(row.ids)
            whole = left <= 384 or rng.random() < 0.6
            room = left if whole else int(min(left, 2 ** rng.uniform(7.5, np.log2(left))))
            part = self.episode(room, left)
            row.ids += part.ids
            row.answer += part.answer
            row.add(self.enc("\n"))
        row.add(self.prose(max(1, length - len(row.ids) + 1)))
        return np.array(row.ids[:length], dtype=np.uint16), np.array(row.answer[:length], dtype=bool)
