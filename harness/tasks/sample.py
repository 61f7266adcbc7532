"""A task's sample: a text to continue, and what the continuation must contain."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One prompt of one task.

    `prompt` is the whole text, answer prefix included and without BOS; `tokens` its length with BOS, at most
    `length - max_new_tokens`; `haystack` names the prose it was made from.
    """

    task: str
    length: int
    index: int
    prompt: str
    answers: tuple[str, ...]
    max_new_tokens: int
    haystack: str
    tokens: int
    seed: int
