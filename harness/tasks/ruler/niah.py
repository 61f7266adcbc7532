"""RULER's needles in a haystack (niah.py): keys with values between prose, noise, or other needles."""

from __future__ import annotations

import random
from dataclasses import dataclass

from harness.tasks.haystack import Haystack, sentences
from harness.tasks.ruler.text import NIAH, NOISE, needle, niah_text, random_number, random_uuid
from harness.tasks.ruler.words import random_key

DEPTHS = [round(100 * i / 39) for i in range(40)]
"""Depths (per cent of the sentences) at which needles may stand in prose."""


@dataclass(frozen=True)
class Niah:
    """One of the eight tasks: `hay` noise, essay or needle; `key` words or uuids; `value` numbers or uuids; counts of keys,
    values per key, and keys asked for."""

    hay: str
    key: str = "words"
    value: str = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1
    max_new_tokens: int = NIAH.tokens_to_generate

    @property
    def prose(self) -> bool:
        return self.hay == "essay"

    def build(self, rng: random.Random, size: int, hay: Haystack | None) -> tuple[str, str, list[str]]:
        """(text, answer prefix, answers) with `size` words of prose, lines of noise, or needles around the needles."""
        fresh_key = random_key if self.key == "words" else random_uuid
        fresh_value = random_number if self.value == "numbers" else random_uuid
        keys: list[str] = []
        while len(keys) < self.keys:
            key = fresh_key(rng)
            if key not in keys:
                keys.append(key)
        values = [[fresh_value(rng) for _ in range(self.values)] for _ in keys]
        needles = [needle(self.value, k, v) for k, vs in zip(keys, values, strict=True) for v in vs]
        rng.shuffle(needles)
        if self.hay == "essay":
            assert hay is not None
            context = _in_prose(rng, sentences(hay.text(size)), needles)
        else:
            lines = [NOISE] * size
            if self.hay == "needle":
                taken = set(keys)
                lines = []
                while len(lines) < size:  # a distractor never has the key that is asked for
                    key = fresh_key(rng)
                    if key not in taken:
                        lines.append(needle(self.value, key, fresh_value(rng)))
            for at, line in zip(sorted(rng.sample(range(size), len(needles)), reverse=True), needles, strict=True):
                lines.insert(at, line)
            context = "\n".join(lines)
        asked = rng.sample(range(self.keys), self.queries)
        answers = [v for i in asked for v in values[i]]
        text, prefix = niah_text(self.value, [keys[i] for i in asked], context, len(answers))
        return text, prefix, answers


def _in_prose(rng: random.Random, prose: list[str], needles: list[str]) -> str:
    cuts = sorted(int(len(prose) * depth / 100) for depth in rng.sample(DEPTHS, len(needles)))
    parts: list[str] = []
    for start, stop, line in zip([0, *cuts], [*cuts, len(prose)], [*needles, None], strict=True):
        parts += prose[start:stop]
        if line is not None:
            parts.append(line)
    return " ".join(parts)
