"""RULER's variable tracking (variable_tracking.py): a chain of assignments in noise, after one worked example."""

from __future__ import annotations

import random
import string
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

from harness.tasks.haystack import Haystack
from harness.tasks.ruler.wording import NOISE, VARIABLE_TRACKING

LEAST_NOISE = 5
"""Lines of noise that a chain needs."""
EXAMPLE_TOKENS = 500
"""Tokens that the worked example may have without its answer, at every length. Its variables have three letters, not five."""


@dataclass(frozen=True)
class VariableTracking:
    """A chain of variables (vt): `hops` assignments follow the first, which has the value that is asked for.

    example_noise: lines of noise in the worked example.
    """

    hops: int = 4
    example_noise: int = LEAST_NOISE
    max_new_tokens: int = VARIABLE_TRACKING.tokens_to_generate
    needs_prose: bool = False

    def fitted(self, count_tokens: Callable[[str], int]) -> VariableTracking:
        """Return the builder whose worked example has the most noise that EXAMPLE_TOKENS have room for, by the tokenizer:
        twelve lines, or about as many. Where not even the least fits, where NVIDIA's code never ends, it has that."""

        def tokens(noise: int) -> int:
            text, prefix, _ = self._chain(random.Random(0), noise, letters=3)
            return count_tokens(text + prefix)

        at_least = tokens(LEAST_NOISE)
        sizes = range(LEAST_NOISE, max(2, 3 * EXAMPLE_TOKENS // at_least) * LEAST_NOISE)
        fitting = bisect_right(sizes, EXAMPLE_TOKENS, key=tokens)
        return replace(self, example_noise=sizes[max(0, fitting - 1)])

    def build(self, rng: random.Random, size: int, prose: Haystack | None = None) -> tuple[str, str, list[str]]:
        """Return (text, answer prefix, answers) with `size` lines of noise. The worked example is in the text: in NVIDIA's code
        too it is a part of the question's turn."""
        text, prefix, names = self._chain(rng, self.example_noise, letters=3)
        example = f"{text}{prefix} {' '.join(names)}\n\n"
        text, prefix, names = self._chain(rng, size, letters=5)
        return example + text, prefix, names

    def _chain(self, rng: random.Random, size: int, letters: int) -> tuple[str, str, list[str]]:
        """Return (text, answer prefix, names) of one chain in `size` lines of noise, its names of so many letters."""
        names: list[str] = []
        while len(names) <= self.hops:
            name = "".join(rng.choices(string.ascii_uppercase, k=letters))
            if name not in names:
                names.append(name)
        value = str(rng.randrange(10000, 99999))
        chain = [f"VAR {names[0]} = {value}"]
        chain += [f"VAR {new} = VAR {old} " for old, new in pairwise(names)]
        lines = [NOISE] * size
        for n, place in enumerate(sorted(rng.sample(range(size), len(chain)))):
            lines.insert(place + n, chain[n])
        context = "\n".join(lines).replace(". \n", ".\n")
        text = VARIABLE_TRACKING.template.format(context=context, query=value)
        return text, VARIABLE_TRACKING.answer_prefix.format(num_v=self.hops + 1, query=value), names
