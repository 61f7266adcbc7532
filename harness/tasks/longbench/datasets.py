"""What LongBench says of each data set: its metric, how many rows it has, and how its prompts are put to a model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harness.tasks.longbench import metrics
from harness.tasks.longbench.metrics import Metric


@dataclass(frozen=True)
class Dataset:
    """One data set.

    rows: how many LongBench has of it. rows_e: how many LongBench-E has in each bucket; None where it isn't part of it.
    few_shot: the prompt ends in the pattern of its examples, so there is no chat template, and one line answers. code: no chat
    template either. stop: an answer ends there, and has at least one token before.
    """

    metric: Metric
    rows: int = 200
    rows_e: tuple[int, int, int] | None = None
    few_shot: bool = False
    code: bool = False
    stop: str | None = None


_100 = (100, 100, 100)
DATASETS: dict[str, Dataset] = {
    "narrativeqa": Dataset(metrics.qa_f1),
    "qasper": Dataset(metrics.qa_f1, rows_e=(100, 100, 24)),
    "multifieldqa_en": Dataset(metrics.qa_f1, 150, (67, 70, 13)),
    "multifieldqa_zh": Dataset(metrics.qa_f1_zh),
    "hotpotqa": Dataset(metrics.qa_f1, rows_e=_100),
    "2wikimqa": Dataset(metrics.qa_f1, rows_e=_100),
    "musique": Dataset(metrics.qa_f1),
    "dureader": Dataset(metrics.rouge_zh),
    "gov_report": Dataset(metrics.rouge, rows_e=_100),
    "qmsum": Dataset(metrics.rouge),
    "multi_news": Dataset(metrics.rouge, rows_e=(100, 100, 94)),
    "vcsum": Dataset(metrics.rouge_zh),
    "trec": Dataset(metrics.classification, rows_e=_100, few_shot=True),
    "triviaqa": Dataset(metrics.qa_f1, rows_e=_100, few_shot=True),
    "samsum": Dataset(metrics.rouge, rows_e=_100, few_shot=True, stop="\n"),
    "lsht": Dataset(metrics.classification, few_shot=True),
    "passage_count": Dataset(metrics.count, rows_e=_100),
    "passage_retrieval_en": Dataset(metrics.retrieval, rows_e=_100),
    "passage_retrieval_zh": Dataset(metrics.retrieval_zh),
    "lcc": Dataset(metrics.code_similarity, 500, _100, code=True),
    "repobench-p": Dataset(metrics.code_similarity, 500, _100, code=True),
}


def file_rows(*, extended: bool) -> dict[str, int]:
    """Return how many rows each file of LongBench has, by name; extended: of LongBench-E."""
    if extended:
        return {f"{name}_e.jsonl": sum(dataset.rows_e) for name, dataset in DATASETS.items() if dataset.rows_e is not None}
    return {f"{name}.jsonl": dataset.rows for name, dataset in DATASETS.items()}


@lru_cache(maxsize=1)
def _wording() -> tuple[dict[str, str], dict[str, int]]:
    wording = json.loads((Path(__file__).parent / "prompts.json").read_text(encoding="utf-8"))
    return wording["prompts"], wording["max_new_tokens"]


def template(dataset: str) -> str:
    """Return the prompt of a data set, with places for {context} and {input}."""
    return _wording()[0][dataset]


def max_new_tokens(dataset: str) -> int:
    """Return how many tokens an answer may have."""
    return _wording()[1][dataset]
