"""The jobs of the command, one a line: its function, what it does with the records of a study, whether `question` changes it.

Nothing is imported before it is needed: a report loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Any

from harness.core.errors import UserError, did_you_mean
from harness.core.question import QUESTION_SEEN
from harness.core.settings import Settings
from harness.study.planned import DENSITIES, DOCUMENTS, MASSES, SAMPLES, TIMINGS


class Does(StrEnum):
    """What a job does. MEASURES: runs a model or kernels, and adds what it measures to the records of the study (job=maps draws
    it). READS: reads records, and needs no model and no device. TRAINS: trains, searches or converts, into files of its own."""

    MEASURES = "measures"
    READS = "reads"
    TRAINS = "trains"


@dataclass(frozen=True)
class Job:
    """A job. `reads` are the settings, and groups of them, that it takes, beside ALWAYS_READ.

    `function` is "module:name". That of a job that trains takes the composed config; all others take the settings, the study
    (`harness.jobs.studies`) and what the jobs of a command share (`harness.jobs.command_state`), and return how many cells
    failed. `takes_question` says whether the job asks the questions of prompts, or reads what such a job recorded.
    `whole_study` says that it compares all records of a study, of which a setting that it does not read would seem to choose,
    and `loads_model` whether it always loads the model of the settings, where it measures or trains. `times_alone` says that it
    measures what a model of random weights has too, `writes_study` that it writes into the folder of the study. `plans` are the
    kinds of what it measures of arms (`harness.study.planned`), which is said before it begins.
    """

    name: str
    does: Does
    function: str
    reads: tuple[str, ...]
    takes_question: bool = False
    whole_study: bool = False
    loads_model: bool = True
    times_alone: bool = False
    writes_study: bool = True
    plans: tuple[str, ...] = ()

    def load(self) -> Callable[..., Any]:
        """Import the job's module and return its function."""
        module, _, name = self.function.partition(":")
        function: Callable[..., Any] = getattr(import_module(module), name)
        return function


ALWAYS_READ = ("job", "experiment", "study", "results", "progress", "report", "debug")
"""Settings that no job need say anything of: which job, where it writes, and what it shows."""
_MODEL = ("model", "device", "dtype")
_DATA = ("data.haystack", "data.dir", "data.words")
_PROMPTS = ("task", "length", "samples", "seed", *_DATA)
_ARM = ("method", "decode", "sparsity", "as_released", "block_size")
_METHOD = (*_MODEL, *_ARM, "kernel", "dense_kernel")
_MEASURED = (*_METHOD, "knob_value")
_TIMES = ("latency_repeats", "latency_seconds")
_GATES = (*_MODEL, "method", "decode", "block_size", "seed", *_DATA, "data.text_dir")
_CHUNKS = "prefill"
_LIMITS = ("cell_minutes", "retry_failed")
_ANSWERS = ("question", _CHUNKS, "decode_kernel", "checks", "batch_tokens")

_ROWS = (
    Job(
        "evaluate",
        Does.MEASURES,
        "harness.jobs.measure:run",
        (*_MEASURED, *_PROMPTS, *_ANSWERS, *_LIMITS, "latency", *_TIMES, "margin"),
        takes_question=True,
        plans=(SAMPLES, TIMINGS),
    ),
    Job(
        "latency",
        Does.MEASURES,
        "harness.jobs.measure:run",
        (*_MEASURED, *_PROMPTS, *_TIMES, *_LIMITS, "margin", _CHUNKS, "decode_kernel"),
        times_alone=True,
        plans=(TIMINGS,),
    ),
    Job("kept_mass", Does.MEASURES, "harness.jobs.measure:run", (*_MEASURED, *_PROMPTS, *_LIMITS, "margin"), plans=(MASSES,)),
    Job(
        "densities",
        Does.MEASURES,
        "harness.jobs.densities:run",
        (*_MEASURED, *_PROMPTS, *_LIMITS, "question", _CHUNKS),
        takes_question=True,
        plans=(DENSITIES,),
    ),
    Job(
        "perplexity",
        Does.MEASURES,
        "harness.jobs.measure:run",
        (*_MEASURED, *_PROMPTS, *_LIMITS, "data.text_dir", "margin"),
        plans=(DOCUMENTS,),
    ),
    Job("kernel_speed", Does.MEASURES, "harness.jobs.kernel_speed:run", (*_MODEL, "seed", *_DATA, *_TIMES), loads_model=False),
    Job("maps", Does.MEASURES, "harness.jobs.maps:run", (*_MEASURED, *_PROMPTS)),
    Job("report", Does.READS, "harness.jobs.report:run", ("margin",), takes_question=True),
    Job("compare", Does.READS, "harness.jobs.compare:run", ("method",), takes_question=True, whole_study=True),
    Job("power", Does.READS, "harness.jobs.power:run", (), takes_question=True, whole_study=True),
    Job(
        "leaderboard",
        Does.READS,
        "harness.jobs.leaderboard:run",
        ("margin",),
        takes_question=True,
        whole_study=True,
        writes_study=False,
    ),
    Job(
        "page",
        Does.READS,
        "harness.jobs.page:run",
        ("margin",),
        takes_question=True,
        whole_study=True,
        writes_study=False,
    ),
    Job(
        "choose",
        Does.READS,
        "harness.jobs.choose:run",
        ("model", "length", "question", _CHUNKS),
        takes_question=True,
        whole_study=True,
        writes_study=False,
    ),
    Job("status", Does.READS, "harness.jobs.status:run", (), takes_question=True, whole_study=True, writes_study=False),
    Job("paper", Does.READS, "harness.jobs.paper:run", (), takes_question=True, whole_study=True, writes_study=False),
    Job(
        "prune",
        Does.READS,
        "harness.jobs.prune:run",
        (*_METHOD, "task", "length", "seed", "question", _CHUNKS, "margin"),
        takes_question=True,
        whole_study=True,
    ),
    Job("archive", Does.READS, "harness.jobs.archive:run", ("margin",), takes_question=True),
    Job(
        "pretrain",
        Does.TRAINS,
        "harness.training.bundled_model.pretrain:main",
        ("data.text_dir", "seed", "device"),
        loads_model=False,
    ),
    Job("distill", Does.TRAINS, "harness.training.gates.distill_command:main", _GATES),
    Job(
        "finetune",
        Does.TRAINS,
        "harness.training.finetune.command:main",
        (*_METHOD, "seed", *_DATA, "data.text_dir"),
    ),
    Job("gate_recall", Does.TRAINS, "harness.training.gates.recall_command:main", _GATES),
    Job(
        "convert_gates",
        Does.TRAINS,
        "harness.training.gates.convert:main",
        ("model", "method", "decode", "block_size"),
        loads_model=False,
    ),
    Job("search_heads", Does.TRAINS, "harness.measure.head_search:main", (*_METHOD, *_PROMPTS)),
    Job("export", Does.TRAINS, "harness.lm_eval.export:main", ("model", *_PROMPTS)),
)
JOBS = {job.name: job for job in _ROWS}

EXPORT_RESULTS = Job(
    "export",
    Does.READS,
    "harness.jobs.export:run",
    ("margin",),
    takes_question=True,
    whole_study=True,
    writes_study=False,
)
"""job=export with any `format` but that of tasks: what a study measured."""
TASKS_FORMAT = "tasks"
"""The `format` of job=export that is of tasks."""


def job_of(settings: Settings) -> Job:
    """Return the job of the settings. Raises UserError, which lists all names, for an unknown one."""
    job = find_job(settings.job)
    return EXPORT_RESULTS if job.name == EXPORT_RESULTS.name and settings.options.get("format") != TASKS_FORMAT else job


def find_job(name: str) -> Job:
    """Return the job of that name. Raises UserError, which lists all names, for an unknown one."""
    if name not in JOBS:
        raise UserError(f"job={name} is not known{did_you_mean(name, JOBS)}; choose one of: {', '.join(sorted(JOBS))}")
    return JOBS[name]


def check_question_fits(job: Job, question: str) -> None:
    """Raise UserError for a `question` that does not change what the job does."""
    if question != QUESTION_SEEN and not job.takes_question:
        raise UserError(
            f"job={job.name} asks no question of a prompt, so question={question} does not change it: leave question out"
        )


def check_model_fits(job: Job, settings: Settings) -> None:
    """Raise UserError where a job runs or trains a model for more than its times, and the settings name one of random weights.
    A job that reads records takes any model: they hold times of such ones too."""
    if settings.by_shape and job.does is not Does.READS and "model" in job.reads and not job.times_alone:
        able = ", ".join(f"job={name}" for name, other in JOBS.items() if other.times_alone)
        raise UserError(
            f"job={job.name} needs what a model has learned, and {settings.model['name']} has random weights: it is for times "
            f"alone (attention, selection, time to first token, decoding, memory): {able}"
        )


def check_chunks_fit(job: Job, chunk: int | None) -> None:
    """Raise UserError for chunks of prompts where the job measures what it prefills whole: its records would say otherwise."""
    if chunk is not None and job.does is Does.MEASURES and _CHUNKS not in job.reads:
        able = ", job=".join(name for name, other in JOBS.items() if _CHUNKS in other.reads)
        raise UserError(
            f"job={job.name} prefills in one piece, so prefill.chunk={chunk} does not change it: leave it out; it is for "
            f"job={able}"
        )


def unread(job: Job, given: Iterable[str], *, by_shape: bool = False) -> str:
    """Return the settings that the job does not read among those `given` on the command line, joined by commas. Raises
    UserError where they would seem to choose among the records that it compares; it compares those of every question.

    by_shape: the model is one by shape, whose prompts are not those of tasks.
    """
    read = {*job.reads, *ALWAYS_READ} - ({"task", "samples", *_DATA} if by_shape else set())
    silent = [name for name in given if not read & {name, name.partition(".")[0]}]
    names = dict.fromkeys(name if name.startswith("data.") else name.partition(".")[0] for name in silent)
    choosing = [f"{name}=" for name in names if name != "question" or not job.takes_question]
    if choosing and job.whole_study:
        raise UserError(f"job={job.name} takes the whole study, whatever {', '.join(choosing)} says: leave that out")
    return ", ".join(f"{name}=" for name in names)
