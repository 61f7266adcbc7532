"""What the arms of one command share: model, store, samples with their tokens, the record of this process, the terminal."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from harness.core.activity import CURRENT
from harness.core.errors import UserError
from harness.core.mistakes import origin
from harness.core.progress import Bar, progress_bar, progress_lines
from harness.core.question import QUESTION_SEEN
from harness.core.settings import Settings
from harness.core.sizing import FULL
from harness.measure.failures import FailureLog
from harness.measure.latency.limits import timing_limits
from harness.measure.sweep import SweepCache
from harness.models.loading import LoadedModel
from harness.study import identity
from harness.study.provenance import file_hash, run_record
from harness.study.schema import RunRecord
from harness.study.store import Store
from harness.tasks import registry
from harness.tasks.checks import check_sample
from harness.tasks.context import context_tokens
from harness.tasks.frozen_template import published_template
from harness.tasks.haystack import haystack_source, load_haystack
from harness.tasks.ruler.samples import check_words
from harness.tasks.sample import Sample
from harness.tasks.tokenizer_hash import tokenizer_hash
from harness.tasks.tokens import encode_all

TOKENS_HELD = 100_000_000
"""Tokens of prompts held in memory before they are let go, four bytes each."""


@dataclass(frozen=True)
class Kernels:
    """The kernels of sparse attention, dense attention and sparse decoding as the user names them, or "auto"."""

    sparse: str = "auto"
    dense: str = "auto"
    decode: str = "auto"


class RunContext:
    """Everything that the arms of one command share while they are measured; settings go no further than this.

    length: of prompts, in tokens; sample_count: samples a task; chat: whether prompts go through the model's chat template;
    question: when it is asked (`harness.core.question`); data: the settings of the group `data`, and how long prompts are;
    chunk: tokens of a prompt that go through the model at once, None for all; batch_tokens: columns of KV cache decoded
    together, None for what suits the device; cell_minutes: minutes that a cell may take, None for all; retry_failed: whether
    what failed for good is tried again; debug: whether tracebacks are shown.
    """

    def __init__(
        self, settings: Settings, loaded: LoadedModel, store: Store, console: Console, sweep: SweepCache | None = None
    ) -> None:
        self.loaded, self.store, self.console, self.sweep = loaded, store, console, sweep or SweepCache()
        self.length, self.sample_count, self.seed = settings.length, settings.samples, settings.seed
        self.chat, self.question, self.data = bool(settings.model.get("chat_template")), settings.question, settings.data
        self.chunk = settings.prefill_chunk
        self.kernels = Kernels(settings.kernel, settings.dense_kernel, settings.decode_kernel)
        repeats, seconds, dense_kernel = settings.latency_repeats, settings.latency_seconds, settings.dense_kernel
        self.timing = timing_limits(repeats, seconds, settings.job, settings.options, dense_kernel=dense_kernel)
        self.batch_tokens, self.debug, self._show_progress = settings.batch_tokens, settings.debug, settings.progress
        self.cell_minutes, self.retry_failed = settings.cell_minutes, settings.retry_failed
        self._samples: dict[str, list[Sample]] = {}

    @property
    def cell_seconds(self) -> float | None:
        """Return the seconds that a cell may take, None for all."""
        return None if self.cell_minutes is None else 60 * self.cell_minutes

    @property
    def failures(self) -> FailureLog:
        """Return what failed in the command so far."""
        return self.sweep.failures

    @cached_property
    def run(self) -> RunRecord:
        """Return the record of this process; it is written when the first measurement needs it."""
        record = replace(run_record(self.loaded.device), launch=self.sweep.failures.launch)
        self.store.runs.append(record)
        return record

    @cached_property
    def _prose(self) -> dict[str, Any]:
        """Return what generated samples are made of, by content. Asked for only where a task needs it: data.dir may be the zip
        of another."""
        words = self.data.get("words")
        if words:
            check_words(words, self.length)
        words_hash = file_hash(Path(words).expanduser()) if words else None
        return {"haystack": load_haystack(haystack_source(self.data)).name, "words": words_hash}

    @cached_property
    def _tokenizer(self) -> dict[str, Any]:
        """Return what makes tokens of a text, by content: with a chat template what it was given too, where it reads that."""
        tokenizer = self.loaded.tokenizer
        template, given = published_template(tokenizer) if self.chat else (None, {})
        return {"tokenizer": tokenizer_hash(tokenizer), "template": identity.digest(template) if template else None, **given}

    def text_of(self, task_names: Sequence[str]) -> dict[str, Any]:
        """Return what the text of tasks comes from, by content: prose and word list of those that are generated, the data of
        those that have their own, and the tokenizer with its template."""
        sources = [registry.get(name).source(self.data) for name in task_names]
        prose = self._prose if None in sources else {}
        return prose | self._tokenizer | {key: value for source in sources if source for key, value in source.items()}

    def files(self, *task_names: str) -> dict[str, str]:
        """Return the files that these tasks read, by content."""
        return {file: digest for name in task_names for file, digest in registry.get(name).files(self.data).items()}

    def prompts_identity(self, task_names: Sequence[str], count: int) -> dict[str, Any]:
        """Return everything that determines the first `count` prompts of tasks, as part of a measurement's identity."""
        text = self.text_of(task_names) | self.files(*task_names)
        origin = self.prompt_origin(task_names)
        return {"tasks": list(task_names), "prompts": count, "text": text, "chat": self.chat, **origin}

    def prompt_origin(self, task_names: Sequence[str]) -> dict[str, Any]:
        """Return the versions of tasks' prompts and their sizing. First versions have no entry, nor has the full length:
        identities are as they were before there was another."""
        tasks = [registry.get(name) for name in sorted(task_names)]
        versions = {task.name: task.version(self.chat) for task in tasks if task.version(self.chat) != task.first_version}
        sizing = self.data.get("sizing", FULL)
        return ({"versions": versions} if versions else {}) | ({} if sizing == FULL else {"sizing": sizing})

    def samples(self, task_name: str) -> list[Sample]:
        """Return the first samples of a task, `sample_count` or all there are; made once for all arms. Raises UserError where
        there is none of this length."""
        if task_name not in self._samples:
            data, task = {**self.data, "chat_template": self.chat}, registry.get(task_name)
            self._samples[task_name] = task.samples(self.loaded.tokenizer, self.length, self.sample_count, self.seed, data)
        return self._samples[task_name]

    def tokens(self, samples: list[Sample]) -> list[array[int]]:
        """Return the token ids of the samples' prompts, tokenised once for all arms of all jobs of a sweep."""
        model, known = self.loaded.revision_hash, self.sweep.tokens
        new = [sample for sample in samples if (model, sample) not in known]
        if sum(map(len, known.values())) > TOKENS_HELD:
            known.clear()
            self.sweep.contexts.clear()
            self.sweep.problems.clear()
            new = samples
        for sample, ids in zip(new, encode_all(self.loaded.tokenizer, [s.prompt for s in new]), strict=True):
            known[model, sample] = array("i", ids)
        return [known[model, sample] for sample in samples]

    def contexts(self, samples: list[Sample]) -> list[int] | None:
        """Return how many tokens of each sample's prompt come before its question, None where prompts are prefilled whole.
        Raises UserError where a question can't be told from its context."""
        if self.question == QUESTION_SEEN:
            return None
        model, known = self.loaded.revision_hash, self.sweep.contexts
        for sample, ids in zip(samples, self.tokens(samples), strict=True):
            if (model, sample) in known:
                continue
            if sample.context is None:
                raise UserError(
                    f"question={self.question}: {sample.task}, sample {sample.index}: its question is not in the prompt "
                    "as it was asked; a larger length= cuts less of it"
                )
            known[model, sample] = context_tokens(self.loaded.tokenizer, sample.prompt, ids, sample.context)
        return [known[model, sample] for sample in samples]

    def problem(self, sample: Sample, prompt: Sequence[int]) -> str | None:
        """Return what is wrong with a sample, whose prompt has these token ids, None where it is sound: looked at once for all
        arms of all jobs of a sweep."""
        key, known = (self.loaded.revision_hash, sample), self.sweep.problems
        if key not in known:
            known[key] = check_sample(sample, self.loaded.tokenizer, prompt)
        return known[key]

    @cached_property
    def drawn_prompt(self) -> Sequence[int]:
        """Return a prompt of the asked length whose token ids are drawn with the seed, for a model without a tokenizer."""
        vocabulary = self.loaded.model.get_input_embeddings().weight.shape[0]
        generator = torch.Generator().manual_seed(self.seed)
        return array("i", torch.randint(vocabulary, (self.length,), generator=generator).tolist())

    def first_prompt(self, task_names: Sequence[str]) -> Sequence[int]:
        """Return the prompt of the first sample of the first task that has samples of this length; of fixed data, the longest
        one, as its prompts have lengths of their own; of a model by shape, the one that is drawn. Raises UserError where no
        task has any."""
        if self.loaded.shape is not None:
            return self.drawn_prompt
        first_error: UserError | None = None
        for name in task_names:
            try:
                samples = self.samples(name)
                first = max(samples, key=lambda sample: sample.tokens) if registry.get(name).fixed else samples[0]
                return self.tokens([first])[0]
            except UserError as error:  # too short for this task
                first_error = first_error or error
        raise first_error or UserError("no task to take a prompt from")

    def progress(self) -> Bar:
        """Return a bar for the terminal, gone when it is done; elsewhere it prints a line a minute."""
        return progress_bar(self.console, self._show_progress)

    def progress_lines(self) -> Bar:
        """Return what prints a line a minute where there is no terminal, for what is timed."""
        return progress_lines(self.console, self._show_progress)

    def say(self, text: str) -> None:
        """Say what begins now and may take long, where progress is shown; whoever asks for the state is told anyway."""
        CURRENT.begin(text)
        if self._show_progress:
            self.console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)

    def complain(self, text: str, error: BaseException | None = None) -> None:
        """Say what went wrong; the command goes on. error: whose traceback debug=true shows below it."""
        self.console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
        if error is not None and self.debug:
            self.console.print(Text(origin(error).traceback), soft_wrap=True)
