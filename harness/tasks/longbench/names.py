"""The names of LongBench's tasks (arXiv 2308.14508), of those of LongBench-E, and of their groups.

A task of LongBench is a data set, `longbench_qasper`; one of LongBench-E is a data set and a bucket of lengths,
`longbench_e_qasper_0-4k`. Importing this loads no other module.
"""

from __future__ import annotations

PREFIX, PREFIX_E = "longbench_", "longbench_e_"

LANGUAGES: dict[str, str] = {
    "narrativeqa": "en",
    "qasper": "en",
    "multifieldqa_en": "en",
    "multifieldqa_zh": "zh",
    "hotpotqa": "en",
    "2wikimqa": "en",
    "musique": "en",
    "dureader": "zh",
    "gov_report": "en",
    "qmsum": "en",
    "multi_news": "en",
    "vcsum": "zh",
    "trec": "en",
    "triviaqa": "en",
    "samsum": "en",
    "lsht": "zh",
    "passage_count": "en",
    "passage_retrieval_en": "en",
    "passage_retrieval_zh": "zh",
    "lcc": "code",
    "repobench-p": "code",
}
"""The language of each of the 21 data sets, in LongBench's order."""
DATASETS = tuple(LANGUAGES)
DATASETS_E = (
    "qasper",
    "multifieldqa_en",
    "hotpotqa",
    "2wikimqa",
    "gov_report",
    "multi_news",
    "trec",
    "triviaqa",
    "samsum",
    "passage_count",
    "passage_retrieval_en",
    "lcc",
    "repobench-p",
)
"""The 13 data sets of LongBench-E."""
WITHOUT_QUESTION = ("gov_report", "multi_news", "vcsum", "passage_count", "lcc")
"""Data sets whose template puts nothing of a row's own after its context: no question that a prefill could do without."""
BUCKETS: dict[str, tuple[int, int | None]] = {"0-4k": (0, 4000), "4-8k": (4000, 8000), "8k+": (8000, None)}
"""The buckets of LongBench-E: lengths in words (`length` of a row), from the first number on and below the second."""

TASKS = tuple(PREFIX + name for name in DATASETS)
TASKS_E = tuple(f"{PREFIX_E}{name}_{bucket}" for name in DATASETS_E for bucket in BUCKETS)
GROUPS: dict[str, tuple[str, ...]] = {
    "longbench": TASKS,
    **{
        PREFIX + language: tuple(PREFIX + name for name in DATASETS if LANGUAGES[name] == language)
        for language in ("en", "zh", "code")
    },
    "longbench_questions": tuple(PREFIX + name for name in DATASETS if name not in WITHOUT_QUESTION),
    "longbench_e": TASKS_E,
    **{PREFIX_E + bucket: tuple(f"{PREFIX_E}{name}_{bucket}" for name in DATASETS_E) for bucket in BUCKETS},
    **{PREFIX_E + name: tuple(f"{PREFIX_E}{name}_{bucket}" for bucket in BUCKETS) for name in DATASETS_E},
}
