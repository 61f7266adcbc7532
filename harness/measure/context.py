"""What the arms of one command share: the model, the samples and their tokens, the record of this process, the terminal."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from harness.core.errors import UserError
from harness.core.question import QUESTION_SEEN
from harness.core.settings import Settings
from harness.models.loading import LoadedModel
from harness.study import identity
from harness.study.provenance import file_hash, run_record
from harness.study.schema import RunRecord
from harness.study.store import Store
from harness.tasks import registry
from harness.tasks.context import context_tokens
from harness.tasks.haystack import haystack_source, load_haystack
from harness.tasks.sample import Sample
from harness.tasks.tokenizer_hash import tokenizer_hash
from harness.tasks.tokens import encode_all

TOKENS_KEPT = 100_000_000
"""Tokens of prompts held in memory before they are let go, four bytes each."""

_tokens: dict[tuple[str, Sample], array[int]] = {}
_contexts: dict[tuple[str, Sample], int] = {}


class RunContext:
    """The place where arms are measured."""

    def __init__(self, settings: Settings, loaded: LoadedModel, store: Store, console: Console) -> None:
        self.settings, self.loaded, self.store, self.console = settings, loaded, store, console
        self._samples: dict[str, list[Sample]] = {}

    @cached_property
    def run(self) -> RunRecord:
        """The record of this process; written when the first measurement needs it."""
        record = run_record(self.loaded.device)
        self.store.runs.append(record)
        return record

    @property
    def chat(self) -> bool:
        """Whether prompts go through the model's chat template."""
        return bool(self.settings.model.get("chat_template"))

    @cached_property
    def _prose(self) -> dict[str, Any]:
        """What generated samples are made of, by content. Asked for where a task needs it: data.dir may be another's zip."""
        words = self.settings.data.get("words")
        return {
            "haystack": load_haystack(haystack_source(self.settings.data)).name,
            "words": file_hash(words) if words else None,
        }

    @cached_property
    def _tokenizer(self) -> dict[str, Any]:
        """What makes tokens of a text, by content."""
        tokenizer = self.loaded.tokenizer
        template = getattr(tokenizer, "chat_template", None) if self.chat else None
        return {"tokenizer": tokenizer_hash(tokenizer), "template": identity.digest(template) if template else None}

    def text_of(self, names: Sequence[str]) -> dict[str, Any]:
        """What the text of tasks comes from, by content: prose and word list of those that are generated, the data of those
        that have their own, and the tokenizer with its template."""
        sources = [registry.get(name).source(self.settings.data) for name in names]
        kept = self._prose if None in sources else {}
        return kept | self._tokenizer | {key: value for source in sources if source for key, value in source.items()}

    def files(self, *names: str) -> dict[str, str]:
        """The files that these tasks read, by content."""
        return {file: what for name in names for file, what in registry.get(name).files(self.settings.data).items()}

    def samples(self, name: str) -> list[Sample]:
        """The first samples of a task, as many as are wanted; made once for all arms."""
        if name not in self._samples:
            settings, data = self.settings, {**self.settings.data, "chat_template": self.chat}
            task = registry.get(name)
            self._samples[name] = task.samples(self.loaded.tokenizer, settings.length, settings.samples, settings.seed, data)
        return self._samples[name]

    def tokens(self, samples: list[Sample]) -> list[array[int]]:
        """Token ids of the samples' prompts, tokenised once for all arms of all jobs of a sweep."""
        model = self.loaded.revision_hash
        new = [sample for sample in samples if (model, sample) not in _tokens]
        if sum(map(len, _tokens.values())) > TOKENS_KEPT:
            _tokens.clear()
            _contexts.clear()
            new = samples
        for sample, ids in zip(new, encode_all(self.loaded.tokenizer, [s.prompt for s in new]), strict=True):
            _tokens[model, sample] = array("i", ids)
        return [_tokens[model, sample] for sample in samples]

    def contexts(self, samples: list[Sample]) -> list[int] | None:
        """How many tokens of each sample's prompt come before its question, None where prompts are prefilled whole and that is
        all. Raises UserError where a question can't be told from its context."""
        if self.settings.question == QUESTION_SEEN:
            return None
        model = self.loaded.revision_hash
        for sample, ids in zip(samples, self.tokens(samples), strict=True):
            if (model, sample) in _contexts:
                continue
            if sample.context is None:
                raise UserError(
                    f"question={self.settings.question}: {sample.task}, sample {sample.index}: its question is not in the prompt "
                    "as it was asked; a larger length= cuts less of it"
                )
            _contexts[model, sample] = context_tokens(self.loaded.tokenizer, sample.prompt, ids, sample.context)
        return [_contexts[model, sample] for sample in samples]

    def first_prompt(self, names: list[str]) -> Sequence[int]:
        """The prompt of the first sample of the first task that has samples of this length; of fixed data, the longest one:
        its prompts have lengths of their own."""
        error: UserError | None = None
        for name in names:
            try:
                drawn = self.samples(name)
                first = max(drawn, key=lambda sample: sample.tokens) if registry.get(name).fixed else drawn[0]
                return self.tokens([first])[0]
            except UserError as found:  # too short for this task
                error = error or found
        raise error or UserError("no task to take a prompt from")

    def progress(self) -> Progress:
        """A bar for the terminal, gone when it is done."""
        return progress_bar(self.console, self.settings.progress)

    def complain(self, text: str) -> None:
        """Say what went wrong; the command goes on."""
        self.console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)


def progress_bar(console: Console, wanted: bool) -> Progress:
    """A bar for the terminal, gone when it is done; none where nobody looks."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (wanted and console.is_terminal),
    )


LONGEST_REASON = 200
"""Characters kept of a foreign error's first line: CUDA's own, of full memory, lists all processes."""


def one_line(error: Exception) -> str:
    """An error in one line; its type too, and not all of a long one, unless the message was written for a person."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, UserError):
        return first
    text = f"{type(error).__name__}: {first}"
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}…"
