"""What the harness asks of a task, whichever benchmark it is of."""

from __future__ import annotations

from typing import Any, Protocol

from harness.tasks.sample import Sample


class AnyTask(Protocol):
    """A task by name. `version` is raised when its samples change; `fixed` says that it has so many samples as its data has,
    of lengths of their own; `stop` is text whose token ends an answer and never begins one, beside the model's own; `asks` that
    a question follows the context, so that the context can be prefilled without it (question=after)."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def fixed(self) -> bool: ...

    @property
    def stop(self) -> str | None: ...

    @property
    def asks(self) -> bool: ...

    def score(self, prediction: str, sample: Sample) -> float:
        """In [0, 1]."""
        ...

    def source(self, data: dict[str, Any]) -> dict[str, Any] | None:
        """The data the samples come from, by content; None: they are made from the haystack and the words."""
        ...

    def count(self, most: int, data: dict[str, Any]) -> int:
        """How many samples there are, up to `most`."""
        ...

    def samples(self, tokenizer: Any, length: int, n: int, seed: int, data: dict[str, Any]) -> list[Sample]:
        """The first `n` samples, or all there are."""
        ...

    def spare(self, tokenizer: Any, length: int, n: int, seed: int, data: dict[str, Any]) -> list[Sample]:
        """Up to `n` samples beside those that are tests, to look at prompts and not at answers; `seed` is no test's."""
        ...
