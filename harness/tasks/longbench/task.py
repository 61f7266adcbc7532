"""A task of LongBench or LongBench-E, as the harness asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.core.errors import UserError
from harness.tasks.chat_template import wrap
from harness.tasks.context import CONTEXT, last_place
from harness.tasks.longbench import files, metrics
from harness.tasks.longbench.cut import cut_middle
from harness.tasks.longbench.datasets import DATASETS, Dataset, file_rows, max_new_tokens, template
from harness.tasks.longbench.files import WHERE, Contents, Row
from harness.tasks.longbench.names import BUCKETS, PREFIX, PREFIX_E, TASKS_E, WITHOUT_QUESTION
from harness.tasks.sample import Sample

VERSION = 1
"""Raised when a sample of the same file changes; part of every cell's identity."""


@dataclass(frozen=True)
class LongBenchTask:
    """A data set, or one bucket of it in LongBench-E; `name` is one of names.TASKS or names.TASKS_E.

    It keeps `Task` (harness.tasks.protocol). Every method that reads the data raises UserError where it isn't there or can't
    be read.
    """

    name: str
    first_version = "longbench-1"
    fixed = True

    def version(self, chat: bool) -> str:
        """Return the version of its samples, the same with and without a chat template."""
        return f"longbench-{VERSION}"

    @property
    def dataset(self) -> str:
        """Return the data set's own name."""
        return self.name.removeprefix(PREFIX) if self.bucket is None else self.name[len(PREFIX_E) : -len(self.bucket) - 1]

    @property
    def bucket(self) -> str | None:
        """Return the bucket in LongBench-E, None in LongBench."""
        return self.name.rpartition("_")[2] if self.name in TASKS_E else None

    @property
    def file(self) -> str:
        """Return the file of the data set, as distributed."""
        return f"{self.dataset}.jsonl" if self.bucket is None else f"{self.dataset}_e.jsonl"

    @property
    def stop(self) -> str | None:
        """Text whose token ends an answer, beside the model's own, and never begins one."""
        return self._settings.stop

    @property
    def asks(self) -> bool:
        """Return whether the template has a question after its context."""
        return self.dataset not in WITHOUT_QUESTION

    @property
    def _settings(self) -> Dataset:
        return DATASETS[self.dataset]

    def score(self, prediction: str, sample: Sample) -> float:
        """Return LongBench's score ÷ 100: the best over the answers."""
        settings = self._settings
        return metrics.best(settings.metric, prediction, sample.answers, sample.classes, first_line=settings.few_shot)

    def source(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return what the samples come from, by content. Complete data and a part of it never share an average."""
        contents = self._contents(data)
        return {"longbench": contents.digest, "complete": self._complete(contents)}

    def files(self, data: dict[str, Any]) -> dict[str, str]:
        """Return nothing: `source` names all that is read."""
        return {}

    def count(self, most: int, data: dict[str, Any]) -> int:
        """Return how many samples there are, up to `most`."""
        return min(most, len(self._rows(data)))

    def samples(self, tokenizer: Any, length: int, n: int, seed: int, data: dict[str, Any]) -> list[Sample]:
        """Return the first `n` samples, or all there are; the seed changes nothing."""
        return [self._sample(i, tokenizer, length, seed, data) for i in range(self.count(n, data))]

    def spare(self, tokenizer: Any, length: int, n: int, seed: int, data: dict[str, Any]) -> list[Sample]:
        """Return the last `n` rows, from the end: no test's where `samples` leaves that many, used without their answers."""
        total = len(self._rows(data))
        return [self._sample(i, tokenizer, length, seed, data) for i in range(total - 1, max(-1, total - 1 - n), -1)]

    def _sample(self, index: int, tokenizer: Any, length: int, seed: int, data: dict[str, Any]) -> Sample:
        settings, row, prompt_template = self._settings, self._rows(data)[index], template(self.dataset)
        text, new = prompt_template.format(context=row.context, input=row.input), max_new_tokens(self.dataset)
        chat = bool(data.get("chat_template")) and not (settings.few_shot or settings.code)
        fitted = cut_middle(tokenizer, text, length - new, lambda text: wrap(tokenizer, text, "", chat))
        if fitted is None:
            raise UserError(f"length={length} is too short for {self.name}: {new} tokens of it are for the answer")
        prompt, tokens, cut = fitted
        # looked for from its end: chat templates and cuts move its beginning
        question = prompt_template.partition(CONTEXT)[2].format(input=row.input).strip()
        return Sample(
            self.name,
            length,
            index,
            prompt,
            row.answers,
            new,
            self._label(data),
            tokens,
            seed,
            classes=row.classes,
            cut=cut,
            verbatim=False,
            context=last_place(prompt, [question]) if self.asks else None,
        )

    def _rows(self, data: dict[str, Any]) -> Sequence[Row]:
        """Return the rows of the file, of LongBench-E those of the bucket."""
        rows = files.rows(files.find(data.get("dir")), self.file)
        if self.bucket is None:
            return rows
        low, high = BUCKETS[self.bucket]
        in_bucket = [row for row in rows if low <= row.length and (high is None or row.length < high)]
        if not in_bucket:
            raise UserError(f"{self.file} has no row of {self.bucket} words, which {self.name} asks for; {WHERE}")
        return in_bucket

    def _file_rows(self) -> dict[str, int]:
        """Return how many rows each file of this benchmark has when it is complete."""
        return file_rows(extended=self.bucket is not None)

    def _contents(self, data: dict[str, Any]) -> Contents:
        """Return what the source holds of this benchmark."""
        return files.contents(files.find(data.get("dir")), tuple(self._file_rows()))

    def _complete(self, contents: Contents) -> bool:
        """Tell whether this task's file has all of its rows."""
        return contents.lines.get(self.file) == self._file_rows()[self.file]

    def _label(self, data: dict[str, Any]) -> str:
        """Return what rows call the data: a part of it says so, and how much it is."""
        contents = self._contents(data)
        benchmark = "LongBench" if self.bucket is None else "LongBench-E"
        where = f"{files.find(data.get('dir')).name}-{contents.digest[:8]}"
        if self._complete(contents):
            return f"{benchmark} {where}"
        return f"{benchmark} subset {where}: {sum(contents.lines.values())} of {sum(self._file_rows().values())}"
