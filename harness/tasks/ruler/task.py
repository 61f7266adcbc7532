"""A task of RULER, as the harness asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.core.sizing import FULL
from harness.tasks import cache
from harness.tasks.haystack import haystack_source
from harness.tasks.ruler import versions
from harness.tasks.ruler.names import QUESTION_ANSWERING
from harness.tasks.ruler.samples import data_files, get_samples
from harness.tasks.ruler.scoring import string_match_all, string_match_part
from harness.tasks.sample import Sample


@dataclass(frozen=True)
class RulerTask:
    """One of RULER's thirteen tasks; `name` is one of ruler.names.TASKS. It keeps `Task` (harness.tasks.protocol)."""

    name: str
    first_version = str(versions.FIRST)
    fixed = False
    asks = True
    stop: ClassVar[str | None] = None

    def version(self, chat: bool) -> str:
        """Return the version of the task's prompts, in a chat template or without one; see `versions`."""
        return str(versions.version(self.name, chat))

    def metric(self, prediction: str, answers: Sequence[str]) -> float:
        """Return RULER's string_match_part where questions are asked about documents, else its string_match_all, in [0, 1]."""
        match = string_match_part if self.name in QUESTION_ANSWERING else string_match_all
        return match(prediction, answers)

    def score(self, prediction: str, sample: Sample) -> float:
        """Return the metric of an answer to a sample, in [0, 1]."""
        return self.metric(prediction, sample.answers)

    def source(self, data: dict[str, Any]) -> dict[str, Any] | None:
        """Return None: samples are generated, from the haystack and the words."""
        return None

    def files(self, data: dict[str, Any]) -> dict[str, str]:
        """Return the names and hashes of the data files, where the task reads any; see `ruler.samples.data_files`."""
        return data_files(self.name, data.get("dir"))

    def count(self, most: int, data: dict[str, Any]) -> int:
        """Return `most`: there are as many samples as are asked for."""
        return most

    def samples(self, tokenizer: Any, length: int, n: int, seed: int, data: dict[str, Any]) -> list[Sample]:
        """Return `get_samples` with the settings of the `data` group, cached on disk below the working folder."""
        return get_samples(
            self.name,
            tokenizer,
            length,
            n,
            seed=seed,
            haystack=haystack_source(data),
            words=data.get("words"),
            folder=data.get("dir"),
            cache_dir=cache.FOLDER,
            chat_template=bool(data.get("chat_template")),
            sizing=data.get("sizing") or FULL,
        )

    def spare(self, tokenizer: Any, length: int, n: int, seed: int, data: dict[str, Any]) -> list[Sample]:
        """Return the samples of a seed that no test has."""
        return self.samples(tokenizer, length, n, seed, data)
