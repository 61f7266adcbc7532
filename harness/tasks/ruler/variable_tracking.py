"""RULER's variable tracking (variable_tracking.py): a chain of assignments in noise, after one worked example."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from itertools import pairwise

from harness.tasks.haystack import Haystack
from harness.tasks.ruler.wording import NOISE, VARIABLE_TRACKING

EXAMPLE_NOISE = 5
"""Lines of noise in the worked example, whose variables have three letters instead of five."""


@dataclass(frozen=True)
class VariableTracking:
    """A chain of variables (vt): `hops` assignments follow the first, which has the value that is asked for."""

    hops: int = 4
    max_new_tokens: int = VARIABLE_TRACKING.tokens_to_generate
    needs_prose: bool = False

    def build(self, rng: random.Random, size: int, prose: Haystack | None = None) -> tuple[str, str, list[str]]:
        """Return (text, answer prefix, answers) with `size` lines of noise."""
        text, prefix, names = self._chain(rng, EXAMPLE_NOISE, letters=3)
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
