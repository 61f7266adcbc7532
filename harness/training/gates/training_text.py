"""The text that trainings of gates learn from, as the `job` group names it: its rows, their lengths, and who draws them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.models.loading import LoadedModel
from harness.tasks.haystack import haystack_source
from harness.training.gates.job_settings import check_rows, read_lengths, whole_number
from harness.training.gates.row_workers import batches, drawn_by_workers
from harness.training.gates.rows import DRAWN, Rows, TextNeeds, row_kind, row_sources, text_id


@dataclass(frozen=True)
class TextSettings:
    """What rows are drawn from, and how many.

    rows: their kind, of harness.training.gates.rows. hub: the data set of rows=hub. lengths: of rows, in tokens, gone through
    in turn. tokens: of a step over all processes. recall_sequences: held-out rows. workers: processes that draw; 0: this one.
    """

    rows: str
    hub: str | None
    lengths: list[int]
    tokens: int
    recall_sequences: int
    workers: int

    def of_model(self, loaded: LoadedModel, data: dict[str, Any]) -> TextSettings:
        """Return the same with the kind that rows=auto means for a model and `data`. Raises UserError for workers where they
        have nothing to draw."""
        kind = row_kind(loaded, data, self.rows)
        if self.workers and kind not in DRAWN:
            raise UserError(f"job.workers={self.workers}: rows={kind} are tokenised once, before the first step: leave it 0")
        return replace(self, rows=kind)

    def source(self, data: dict[str, Any]) -> str | None:
        """Return what tells the text itself: the data set's name, that of the prose of samples, or a hash of the files."""
        if self.rows == "hub":
            return self.hub
        return haystack_source(data) if self.rows == "samples" else text_id(str(data["text_dir"]))


def read_text_settings(job: DictConfig, block_size: int, *, held_out: str = "recall_sequences") -> TextSettings:
    """Return what the job says of its text. held_out: the job's name for the number of held-out rows. Raises UserError for a
    value that is of the wrong type or out of range."""
    check_rows(job)
    return TextSettings(
        rows=str(job.rows),
        hub=None if job.hub is None else str(job.hub),
        lengths=read_lengths(job.lengths, block_size),
        tokens=whole_number(job, "tokens", 1),
        recall_sequences=whole_number(job, held_out, 0),
        workers=whole_number(job, "workers", 0),
    )


def open_text(text: TextSettings, settings: Settings, loaded: LoadedModel, steps: int) -> tuple[Iterator[Tensor], list[Tensor]]:
    """Return the batches [B,N] int64 of so many steps, endless where the text is, and the held-out rows [1,N]. Raises UserError
    where there is too little text."""
    test_lengths = list(islice(cycle(text.lengths), text.recall_sequences))
    needs = TextNeeds(steps * max(text.tokens, *text.lengths), test_lengths)
    train, test = row_sources(loaded, settings.data, settings.seed, kind=text.rows, needs=needs, hub=text.hub)
    held_out = [test(length)[None] for length in test_lengths]
    if not text.workers:
        return batches(train, text.lengths, text.tokens), held_out

    def of_seed(seed: int) -> Rows:
        if seed == settings.seed:
            return train
        return row_sources(loaded, settings.data, seed, kind=text.rows, needs=needs)[0]

    drawn = drawn_by_workers(of_seed, text.lengths, text.tokens, workers=text.workers, seed=settings.seed)
    return drawn, held_out
