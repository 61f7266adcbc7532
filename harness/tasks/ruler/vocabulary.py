"""RULER's words, out of the `wonderwords` package: adjective-noun keys, and the words of cwe."""

from __future__ import annotations

import random
from functools import lru_cache
from importlib import resources


@lru_cache
def _listed(name: str) -> tuple[str, ...]:
    text = (resources.files("wonderwords") / "assets" / name).read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


@lru_cache
def nouns() -> tuple[str, ...]:
    """Return the nouns, sorted."""
    return tuple(sorted(set(_listed("nounlist.txt"))))


@lru_cache
def adjectives() -> tuple[str, ...]:
    """Return the adjectives, sorted."""
    return tuple(sorted(set(_listed("adjectivelist.txt"))))


@lru_cache
def vocabulary() -> tuple[str, ...]:
    """Return nouns, adjectives and verbs, sorted: the words of cwe."""
    return tuple(sorted({*nouns(), *adjectives(), *_listed("verblist.txt")}))


def random_key(rng: random.Random) -> str:
    """Draw an adjective and a noun with a hyphen between, as RULER's needles are named."""
    return f"{rng.choice(adjectives())}-{rng.choice(nouns())}"
