"""What the harness asks of a task, whichever benchmark it is of."""

from __future__ import annotations

from typing import Any, Protocol

from harness.tasks.sample import Sample


class Task(Protocol):
    """A task by name.

    first_version: the version of its first samples. fixed: it has as many samples as its data has, of lengths of their own.
    stop: text whose token ends an answer and never begins one, beside the model's own. asks: a question follows the context, so
    that the context can be prefilled without it (question=after). `data` is the group of settings of that name: haystack,
    words, dir, whether prompts are in a chat template, and how their sizes are chosen.
    """

    @property
    def name(self) -> str: ...

    @property
    def first_version(self) -> str: ...

    @property
    def fixed(self) -> bool: ...

    @property
    def stop(self) -> str | None: ...

    @property
    def asks(self) -> bool: ...

    def version(self, chat: bool) -> str:
        """Return the version of its samples, in the model's chat template or without one: another where they have changed."""
        ...

    def score(self, prediction: str, sample: Sample) -> float:
        """Return the score of an answer, in [0, 1]."""
        ...

    def source(self, data: dict[str, Any]) -> dict[str, Any] | None:
        """Return what the samples come from, by content; None where they are generated from the haystack and the words."""
        ...

    def files(self, data: dict[str, Any]) -> dict[str, str]:
        """Return the files read beside prose and word list, by name, each with the hash of its content.

        They are part of the identity of the task's cells. A file that isn't there yet is downloaded; raises UserError where
        that fails.
        """
        ...

    def count(self, most: int, data: dict[str, Any]) -> int:
        """Return how many samples there are, up to `most`."""
        ...

    def samples(self, tokenizer: Any, length: int, n: int, seed: int, data: dict[str, Any]) -> list[Sample]:
        """Return the first `n` samples, or all there are, of at most `length` tokens, prompt and answer together."""
        ...

    def spare(self, tokenizer: Any, length: int, n: int, seed: int, data: dict[str, Any]) -> list[Sample]:
        """Return up to `n` samples beside those that are tests, to look at prompts and not at answers; `seed` is no test's."""
        ...
