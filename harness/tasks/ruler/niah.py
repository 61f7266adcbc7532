"""RULER's needles in a haystack (niah.py): keys with values between prose, noise, or other needles."""

from __future__ import annotations

import random
from dataclasses import dataclass

from harness.tasks.haystack import Haystack, sentences
from harness.tasks.ruler.vocabulary import random_key
from harness.tasks.ruler.wording import NIAH, NOISE, needle, niah_text, random_number, random_uuid

DEPTHS = [round(100 * i / 39) for i in range(40)]
"""Depths (per cent of the sentences) at which needles may stand in prose."""


@dataclass(frozen=True)
class Niah:
    """One of the eight tasks.

    haystack: noise, essay or needle. key: words or uuids. value: numbers or uuids. keys, values, queries: how many keys there
    are, values of each, and keys that are asked for.
    """

    haystack: str
    key: str = "words"
    value: str = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1
    max_new_tokens: int = NIAH.tokens_to_generate

    @property
    def needs_prose(self) -> bool:
        return self.haystack == "essay"

    def build(self, rng: random.Random, size: int, prose: Haystack | None) -> tuple[str, str, list[str]]:
        """Return (text, answer prefix, answers) with `size` words of prose, lines of noise, or needles around the needles."""
        keys: list[str] = []
        while len(keys) < self.keys:
            key = self._random_key(rng)
            if key not in keys:
                keys.append(key)
        values = [[self._random_value(rng) for _ in range(self.values)] for _ in keys]
        needles = [needle(self.value, key, value) for key, own in zip(keys, values, strict=True) for value in own]
        rng.shuffle(needles)
        if self.haystack == "essay":
            assert prose is not None
            context = _in_prose(rng, sentences(prose.text(size)), needles)
        else:
            lines = [NOISE] * size if self.haystack == "noise" else self._distractors(rng, size, set(keys))
            for place, line in zip(sorted(rng.sample(range(size), len(needles)), reverse=True), needles, strict=True):
                lines.insert(place, line)
            context = "\n".join(lines)
        queried = rng.sample(range(self.keys), self.queries)
        answers = [value for i in queried for value in values[i]]
        text, prefix = niah_text(self.value, [keys[i] for i in queried], context, len(answers))
        return text, prefix, answers

    def _random_key(self, rng: random.Random) -> str:
        return random_key(rng) if self.key == "words" else random_uuid(rng)

    def _random_value(self, rng: random.Random) -> str:
        return random_number(rng) if self.value == "numbers" else random_uuid(rng)

    def _distractors(self, rng: random.Random, size: int, taken: set[str]) -> list[str]:
        """Return `size` other needles, none with a key of `taken`: those are asked for."""
        lines: list[str] = []
        while len(lines) < size:
            key = self._random_key(rng)
            if key not in taken:
                lines.append(needle(self.value, key, self._random_value(rng)))
        return lines


def _in_prose(rng: random.Random, prose: list[str], needles: list[str]) -> str:
    """Put the needles between sentences, each at a depth of its own."""
    cuts = sorted(int(len(prose) * depth / 100) for depth in rng.sample(DEPTHS, len(needles)))
    parts: list[str] = []
    for start, stop, line in zip([0, *cuts], [*cuts, len(prose)], [*needles, None], strict=True):
        parts += prose[start:stop]
        if line is not None:
            parts.append(line)
    return " ".join(parts)
