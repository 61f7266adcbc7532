"""A sample of a task: a text to continue, and what the continuation must contain."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One prompt of one task.

    prompt: the whole text, answer prefix included and without BOS. tokens: its length with BOS, at most
    `length - max_new_tokens`. haystack: the name of the prose or documents it was built from, or of the data it was taken
    from. classes: those an answer is chosen from. cut: the tokens that a task cuts from too long a prompt by its own rules.
    verbatim: every answer stands in the prompt word for word. evidence: texts that must stand in the prompt in place of the
    answers. context: how many characters of the prompt come before its question (see `tasks.context`), None where no question
    follows the context. turns: how often the model's chat template is in the prompt, where it is: twice where a worked example
    is a turn of its own.
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
    classes: tuple[str, ...] = ()
    cut: int = 0
    verbatim: bool = True
    evidence: tuple[str, ...] = ()
    context: int | None = None
    turns: int = 1
