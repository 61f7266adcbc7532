"""The jobs of the command, one a line: its function, what it does with the records of a study, whether `question` changes it.

Nothing is imported before it is needed: a report loads neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Any

from harness.core.errors import UserError, did_you_mean
from harness.core.question import QUESTION_SEEN


class Does(StrEnum):
    """What a job does. MEASURES: runs a model or kernels, and adds what it measures to the records of the study (job=maps draws
    it). READS: reads records, and needs no model and no device. TRAINS: trains, searches or converts, into files of its own."""

    MEASURES = "measures"
    READS = "reads"
    TRAINS = "trains"


@dataclass(frozen=True)
class Job:
    """A job. `function` is "module:name". That of a job that trains takes the composed config; all others take the settings,
    the study (`harness.jobs.studies`) and what the jobs of a command share (`harness.jobs.command_state`), and return how many
    cells failed. `takes_question` says whether the job asks the questions of prompts, or reads what such a job recorded;
    `loads_model` whether it always loads the model of the settings, where it measures or trains."""

    name: str
    does: Does
    function: str
    takes_question: bool = False
    loads_model: bool = True

    def load(self) -> Callable[..., Any]:
        """Import the job's module and return its function."""
        module, _, name = self.function.partition(":")
        function: Callable[..., Any] = getattr(import_module(module), name)
        return function


_ROWS = (
    Job("evaluate", Does.MEASURES, "harness.jobs.measure:run", takes_question=True),
    Job("latency", Does.MEASURES, "harness.jobs.measure:run"),
    Job("kept_mass", Does.MEASURES, "harness.jobs.measure:run"),
    Job("perplexity", Does.MEASURES, "harness.jobs.measure:run"),
    Job("kernel_speed", Does.MEASURES, "harness.jobs.kernel_speed:run", loads_model=False),
    Job("maps", Does.MEASURES, "harness.jobs.maps:run"),
    Job("report", Does.READS, "harness.jobs.report:run", takes_question=True),
    Job("compare", Does.READS, "harness.jobs.compare:run", takes_question=True),
    Job("power", Does.READS, "harness.jobs.power:run", takes_question=True),
    Job("archive", Does.READS, "harness.jobs.archive:run", takes_question=True),
    Job("pretrain", Does.TRAINS, "harness.training.bundled_model.pretrain:main", loads_model=False),
    Job("distill", Does.TRAINS, "harness.training.gates.distill_command:main"),
    Job("gate_recall", Does.TRAINS, "harness.training.gates.recall_command:main"),
    Job("convert_gates", Does.TRAINS, "harness.training.gates.convert:main", loads_model=False),
    Job("search_heads", Does.TRAINS, "harness.measure.head_search:main"),
    Job("export", Does.TRAINS, "harness.lm_eval.export:main"),
)
JOBS = {job.name: job for job in _ROWS}


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
