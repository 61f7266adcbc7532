"""Tasks are values: one, a group, a list, a sweep; and recorded commands mean what they meant."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException

from harness.core import hydra_text
from harness.core.conf_files import conf_dir
from harness.core.errors import UserError
from harness.core.hydra_text import explain
from harness.core.settings import Settings, read_settings
from harness.jobs.arguments import prepare

RESULTS = Path(__file__).resolve().parents[3] / "results"
RULER_CORE_BEFORE = (
    "block_sizes",
    "bundled",
    "bundled_cpu",
    "decode_accuracy",
    "gate_rules",
    "last_rows",
    "methods",
    "methods_after",
)
"""Experiments that said `override /task: ruler_core` when results were recorded; others said `ruler` or `longbench`."""
RECORDED_TASKS = {
    **dict.fromkeys(RULER_CORE_BEFORE, "ruler_core"),
    "methods_native": "ruler_core",
    "kernel_speed_cpu": "ruler_core",
}
RECORDED_TASKS |= {"pareto": "ruler", "gate_truths": "ruler", "ruler": "ruler", "longbench": "longbench"}
RECORDED_TASKS["ttft"] = "niah_single_1"


def tasks_of(arguments: Sequence[str]) -> tuple[str, ...]:
    """The tasks that the settings of a command name; sweeps over anything else are left out."""
    return composed_tasks(*(a for a in prepare(arguments) if not a.startswith("-") and ("," not in a or a.startswith("task"))))


@cache
def composed_tasks(*arguments: str) -> tuple[str, ...]:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return read_settings(compose("config", list(arguments))).tasks


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ("demo",)),
        (["task=vt"], ("vt",)),
        (["task=longbench_e_8k+"], ("longbench_e_8k+",)),
        (["task=[niah_single_1,vt]"], ("niah_single_1", "vt")),
        (["task=[ruler, longbench_repobench-p]"], ("ruler", "longbench_repobench-p")),
        (["task.tasks=[niah_single_1,vt]"], ("niah_single_1", "vt")),
        (["task.tasks=[vt]", "task=ruler"], ("vt",)),
        (["experiment=pareto"], ("ruler",)),
        (["experiment=pareto", "task=vt"], ("vt",)),
        (["experiment=pareto", "task.tasks=[vt,qa_1]"], ("vt", "qa_1")),
    ],
)
def test_a_task_a_group_and_a_list(arguments: list[str], expected: tuple[str, ...]) -> None:
    assert tasks_of(arguments) == expected


def recorded_forms() -> list[tuple[str, ...]]:
    """What commands of results/ say of experiments and tasks, each form once."""
    forms: dict[tuple[str, ...], None] = {}
    for path in sorted(RESULTS.glob("*/leaderboard.csv")):
        with path.open(newline="") as file:
            commands = {command for row in csv.DictReader(file) for command in row["command"].split("; ")}
        for command in sorted(commands):
            forms[tuple(a for a in shlex.split(command) if re.match(r"(experiment|task(\.tasks)?)=", a))] = None
    return list(forms)


@pytest.mark.skipif(not RESULTS.is_dir(), reason="results/ is only in a checkout")
def test_recorded_commands_mean_what_they_meant() -> None:
    forms = recorded_forms()
    assert sum(any(a.startswith("task.tasks=") for a in form) for form in forms) > 5
    for form in forms:
        given = dict(argument.split("=", 1) for argument in form)
        expected = given.get("task.tasks") or given.get("task") or RECORDED_TASKS.get(given.get("experiment", ""), "demo")
        assert tasks_of(form) == tuple(expected.strip("[]").split(",")), form


def test_experiments_name_the_tasks_that_they_named() -> None:
    for experiment, group in RECORDED_TASKS.items():
        assert tasks_of([f"experiment={experiment}"]) == (group,)


def test_an_experiment_may_still_have_its_tasks_below(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = OmegaConf.merge(compose("config"), {"task": {"tasks": ["vt", "cwe"]}})
    assert read_settings(cfg).tasks == ("vt", "cwe")  # type: ignore[arg-type]
    cfg = OmegaConf.create(OmegaConf.to_container(cfg) | {"task": {"tasks": ["vt"], "sizing": "release"}})  # type: ignore[operator]
    with pytest.raises(UserError, match=r"task\.sizing can't be set below task: .* below task_settings:"):
        read_settings(cfg)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("task=vt,cwe", [("vt",), ("cwe",)]),
        ("task=[vt,cwe],niah", [("vt", "cwe"), "niah"]),
        ("task.tasks=[vt,cwe],[fwe]", [("vt", "cwe"), ("fwe",)]),
    ],
)
def test_a_sweep_over_tasks(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, argument: str, expected: list[tuple[str, ...]]
) -> None:
    from harness.tasks.names import GROUPS

    seen: list[tuple[str, ...]] = []

    def no_job(settings: Settings, *_: object) -> int:
        seen.append(settings.tasks)
        return 0

    monkeypatch.setattr("harness.jobs.report.run", no_job)
    assert command("-m", "job=report", argument) == 0
    assert seen == [GROUPS[tasks] if isinstance(tasks, str) else tasks for tasks in expected]


def test_a_folder_of_task_files_that_is_left_over_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra takes any folder below conf/ for a group, an empty one too."""
    error = ConfigCompositionException("Could not override 'task'. No match in the defaults list.")
    monkeypatch.setattr(hydra_text, "conf_dir", lambda: tmp_path)
    assert explain(error) == hydra_text.TASK_IS_A_VALUE
    (tmp_path / "task").mkdir()
    assert explain(error).startswith(f"{tmp_path / 'task'} is a folder of an earlier version")
