"""LongBench (arXiv 2308.14508), all 21 data sets, and the 13 of LongBench-E with three buckets of length each.

Prompts, tokens to generate, metrics and what is done to an answer are those of THUDM/LongBench (LongBench/pred.py and
eval.py at commit 2e00731f8d0b). A task's accuracy is LongBench's score ÷ 100. Where this differs, on purpose:

- `length` is the budget of prompt, chat template and answer together, where the original has a length for each model that
  it names, and puts the template and the answer on top. Longer prompts lose their middle, as in the original, and the row
  counts them (`truncated`).
- Each row of a data set is scored with its own list of classes; the original takes the last row's for all. They are equal
  in the data as distributed.
- A text that kills the original's ROUGE by recursion has its score here, and 0 there (see rouge.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.tasks.context import CONTEXT, last_place
from harness.tasks.longbench import data as files
from harness.tasks.longbench import metrics
from harness.tasks.longbench.cut import cut_middle
from harness.tasks.longbench.metrics import Metric
from harness.tasks.sample import Sample
from harness.tasks.sizing import wrap

VERSION = 1
"""Raised when a sample of the same file changes; part of every cell's identity."""
PREFIX, PREFIX_E = "longbench_", "longbench_e_"


@dataclass(frozen=True)
class Dataset:
    """One data set. `rows`: how many LongBench has of it, and LongBench-E in each bucket (none: it isn't part of it).
    few_shot: the prompt ends in the pattern of its examples, so no chat template, and one line answers. code: no chat
    template either. stop: an answer ends there, and has at least one token before."""

    metric: Metric
    language: str
    rows: int = 200
    rows_e: tuple[int, int, int] | None = None
    few_shot: bool = False
    code: bool = False
    stop: str | None = None


_100 = (100, 100, 100)
DATASETS: dict[str, Dataset] = {
    "narrativeqa": Dataset(metrics.qa_f1, "en"),
    "qasper": Dataset(metrics.qa_f1, "en", rows_e=(100, 100, 24)),
    "multifieldqa_en": Dataset(metrics.qa_f1, "en", 150, (67, 70, 13)),
    "multifieldqa_zh": Dataset(metrics.qa_f1_zh, "zh"),
    "hotpotqa": Dataset(metrics.qa_f1, "en", rows_e=_100),
    "2wikimqa": Dataset(metrics.qa_f1, "en", rows_e=_100),
    "musique": Dataset(metrics.qa_f1, "en"),
    "dureader": Dataset(metrics.rouge_zh, "zh"),
    "gov_report": Dataset(metrics.rouge, "en", rows_e=_100),
    "qmsum": Dataset(metrics.rouge, "en"),
    "multi_news": Dataset(metrics.rouge, "en", rows_e=(100, 100, 94)),
    "vcsum": Dataset(metrics.rouge_zh, "zh"),
    "trec": Dataset(metrics.classification, "en", rows_e=_100, few_shot=True),
    "triviaqa": Dataset(metrics.qa_f1, "en", rows_e=_100, few_shot=True),
    "samsum": Dataset(metrics.rouge, "en", rows_e=_100, few_shot=True, stop="\n"),
    "lsht": Dataset(metrics.classification, "zh", few_shot=True),
    "passage_count": Dataset(metrics.count, "en", rows_e=_100),
    "passage_retrieval_en": Dataset(metrics.retrieval, "en", rows_e=_100),
    "passage_retrieval_zh": Dataset(metrics.retrieval_zh, "zh"),
    "lcc": Dataset(metrics.code_similarity, "code", 500, _100, code=True),
    "repobench-p": Dataset(metrics.code_similarity, "code", 500, _100, code=True),
}
SILENT = ("gov_report", "multi_news", "vcsum", "passage_count", "lcc")
"""Data sets whose template puts nothing of a row's own after its context: no question that a prefill could do without."""
BUCKETS = {"0-4k": (0, 4000), "4-8k": (4000, 8000), "8k+": (8000, None)}
"""Lengths in words (`length` of a row) from, and below; the buckets of LongBench-E."""
IN_E = tuple(name for name, found in DATASETS.items() if found.rows_e)
NAMES = tuple(PREFIX + name for name in DATASETS)
GROUPS: dict[str, tuple[str, ...]] = {
    "longbench": NAMES,
    **{
        f"longbench_{language}": tuple(PREFIX + name for name, found in DATASETS.items() if found.language == language)
        for language in ("en", "zh", "code")
    },
    "longbench_questions": tuple(PREFIX + name for name in DATASETS if name not in SILENT),
    "longbench_e": tuple(f"{PREFIX_E}{name}_{bucket}" for name in IN_E for bucket in BUCKETS),
    **{PREFIX_E + bucket: tuple(f"{PREFIX_E}{name}_{bucket}" for name in IN_E) for bucket in BUCKETS},
    **{PREFIX_E + name: tuple(f"{PREFIX_E}{name}_{bucket}" for bucket in BUCKETS) for name in IN_E},
}
NAMES_E = GROUPS["longbench_e"]


@lru_cache(maxsize=1)
def wording() -> tuple[dict[str, str], dict[str, int]]:
    """(prompt, tokens to generate) of each data set."""
    found = json.loads((Path(__file__).parent / "prompts.json").read_text(encoding="utf-8"))
    return found["prompts"], found["max_new_tokens"]


@dataclass(frozen=True)
class LongBenchTask:
    """A data set, or one bucket of it in LongBench-E; `name` is one of NAMES or NAMES_E."""

    name: str
    version = f"longbench-{VERSION}"
    fixed = True

    @property
    def dataset(self) -> str:
        """The data set's own name."""
        return self.name.removeprefix(PREFIX) if self.bucket is None else self.name[len(PREFIX_E) : -len(self.bucket) - 1]

    @property
    def bucket(self) -> str | None:
        """The bucket in LongBench-E, None in LongBench."""
        return self.name.rpartition("_")[2] if self.name in NAMES_E else None

    @property
    def file(self) -> str:
        """The file of the data set, as distributed."""
        return f"{self.dataset}.jsonl" if self.bucket is None else f"{self.dataset}_e.jsonl"

    @property
    def made(self) -> Dataset:
        return DATASETS[self.dataset]

    @property
    def stop(self) -> str | None:
        """Text whose token ends an answer, beside the model's own, and never begins one."""
        return self.made.stop

    @property
    def asks(self) -> bool:
        """Whether the template has a question after its context."""
        return self.dataset not in SILENT

    @property
    def _after(self) -> str:
        """What the template says after its context."""
        return wording()[0][self.dataset].partition(CONTEXT)[2]

    def score(self, prediction: str, sample: Sample) -> float:
        """LongBench's score ÷ 100: the best over the answers."""
        made = self.made
        return metrics.best(made.metric, prediction, sample.answers, sample.classes, first_line=made.few_shot)

    def source(self, data: dict[str, Any]) -> dict[str, Any]:
        """What the samples come from, by content. Complete data and a part of it never share an average."""
        found, complete, _ = self._contents(data)
        return {"longbench": found.digest, "complete": complete}

    def count(self, most: int, data: dict[str, Any]) -> int:
        """How many samples there are, up to `most`. Raises UserError where there is none."""
        return min(most, len(self._rows(data)))

    def samples(self, tokenizer: Any, length: int, n: int, seed: int, data: dict[str, Any]) -> list[Sample]:
        """The first `n` samples, or all there are; the seed changes nothing."""
        return [self._sample(i, tokenizer, length, seed, data) for i in range(self.count(n, data))]

    def spare(self, tokenizer: Any, length: int, n: int, seed: int, data: dict[str, Any]) -> list[Sample]:
        """The last `n` rows, from the end: no test's where `samples` leaves that many, and used without their answers."""
        total = len(self._rows(data))
        return [self._sample(i, tokenizer, length, seed, data) for i in range(total - 1, max(-1, total - 1 - n), -1)]

    def _sample(self, index: int, tokenizer: Any, length: int, seed: int, data: dict[str, Any]) -> Sample:
        made, row = self.made, self._rows(data)[index]
        prompts, tokens_out = wording()
        text, new = prompts[self.dataset].format(context=row.context, input=row.input), tokens_out[self.dataset]
        chat = bool(data.get("chat_template")) and not (made.few_shot or made.code)
        fitted = cut_middle(tokenizer, text, length - new, lambda whole: wrap(tokenizer, whole, "", chat))
        if fitted is None:
            raise UserError(f"length={length} is too short for {self.name}: {new} tokens of it are for the answer")
        prompt, tokens, cut = fitted
        question = self._after.format(input=row.input).strip()  # from its end: chat templates and cuts move its beginning
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

    def _rows(self, data: dict[str, Any]) -> Sequence[files.Row]:
        every = files.rows(files.find(data.get("dir")), self.file)
        if self.bucket is None:
            return every
        low, high = BUCKETS[self.bucket]
        found = [row for row in every if low <= row.length and (high is None or row.length < high)]
        if not found:
            raise UserError(f"{self.file} has no row of {self.bucket} words, which {self.name} asks for; {files.WHERE}")
        return found

    def _contents(self, data: dict[str, Any]) -> tuple[files.Contents, bool, int]:
        """(what the source holds of this benchmark, whether this file is complete, rows of the whole benchmark)"""
        names, ending = (DATASETS, ".jsonl") if self.bucket is None else (IN_E, "_e.jsonl")
        full = {name + ending: sum(d.rows_e or ()) if self.bucket else d.rows for name, d in DATASETS.items() if name in names}
        found = files.contents(files.find(data.get("dir")), tuple(full))
        return found, found.lines.get(self.file) == full[self.file], sum(full.values())

    def _label(self, data: dict[str, Any]) -> str:
        """What rows call the data: a part of it says so, and how much it is."""
        found, complete, total = self._contents(data)
        benchmark = "LongBench" if self.bucket is None else "LongBench-E"
        where = f"{files.find(data.get('dir')).name}-{found.digest[:8]}"
        if complete:
            return f"{benchmark} {where}"
        return f"{benchmark} subset {where}: {sum(found.lines.values())} of {total}"
