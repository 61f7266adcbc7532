"""One table of jobs."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.core.conf_files import MAIN, NO_SETTINGS, defaults, groups
from harness.core.errors import UserError
from harness.core.question import QUESTION_LATER, QUESTION_SEEN
from harness.jobs.table import ALWAYS_READ, JOBS, Does, check_question_fits, find_job, unread

HARNESS = Path(__file__).resolve().parents[3] / "harness"


def test_every_job_has_its_config_and_its_function() -> None:
    assert sorted(JOBS) == groups()["job"]
    assert all(callable(job.load()) for job in JOBS.values())


def test_an_unknown_job_lists_those_there_are() -> None:
    with pytest.raises(
        UserError, match=r"^job=reprot is not known \(did you mean report\?\); choose one of: archive, .*status$"
    ):
        find_job("reprot")


def test_jobs_that_read_recorded_answers_take_the_question() -> None:
    assert {name for name, job in JOBS.items() if job.takes_question} == {
        "evaluate",
        "densities",
        *(name for name, job in JOBS.items() if job.does is Does.READS),
    }
    for job in JOBS.values():
        check_question_fits(job, QUESTION_SEEN)
        if not job.takes_question:
            with pytest.raises(UserError, match=f"job={job.name} asks no question of a prompt, so question=after does not"):
                check_question_fits(job, QUESTION_LATER)


def test_every_setting_is_read_by_a_job() -> None:
    """None would be said to be of no use wherever it is given."""
    settings = {name.partition(".")[0] for name in defaults("", MAIN) if name not in NO_SETTINGS}
    groups_read = {name.partition(".")[0] for job in JOBS.values() for name in job.reads}
    assert settings - {*ALWAYS_READ, "results", "hydra", "task_settings"} <= groups_read
    of_models = [job for job in JOBS.values() if job.does is Does.MEASURES and job.loads_model]
    assert [unread(job, ["knob_value"]) for job in of_models] == [""] * len(of_models), "a row's settings name it"


def test_compare_takes_the_question_as_report_does(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    for job in ("compare", "report"):
        assert command(f"job={job}", "question=after", "study=none") == 2
        assert "study=none: no records" in capsys.readouterr().err


def test_no_other_module_lists_jobs() -> None:
    """A second list of them would have to be kept in step. Three are names of columns too."""
    for path in HARNESS.rglob("*.py"):
        if path == HARNESS / "jobs" / "table.py":
            continue
        source = path.read_text()
        if sum(f'"{job}"' in source for job in JOBS) < 4:
            continue  # parsing takes most of the time
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Dict | ast.Tuple | ast.List | ast.Set):
                keys = node.keys if isinstance(node, ast.Dict) else node.elts
                names = [key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
                assert len(set(names) & set(JOBS)) < 4, f"{path.relative_to(HARNESS)}:{node.lineno}"
