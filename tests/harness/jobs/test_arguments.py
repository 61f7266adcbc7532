"""The arguments of a command as Hydra reads them."""

from __future__ import annotations

import pytest

from harness.core.errors import UserError
from harness.core.hydra_text import unknown_setting
from harness.jobs.arguments import given_names, knobs_as_sweeps, prepare, tasks_as_values
from harness.study.provenance import command
from tests.harness.settings import composed


def test_one_value_of_a_knob_for_several_methods_is_swept_with_them() -> None:
    given = ["-m", "method=a,b", "method.last=2", "method.rule=x,y", "method.late=choice(1)", "decode.budget=64", "length=1024"]
    swept = knobs_as_sweeps(given)
    assert swept == ["-m", "method=a,b", "method.last=choice(2)", *given[3:]], "decode= has one choice: its budget stays"
    assert knobs_as_sweeps(given[:1] + given[2:]) == given[:1] + given[2:], "one method: nothing to do"
    assert knobs_as_sweeps(["-m", "method=a,b", "method.file="])[-1] == "method.file=", "no value can't be swept"
    assert knobs_as_sweeps(["method.last=2", "method=a,b"])[0] == "method.last=2", "without -m Hydra says what is missing"
    assert knobs_as_sweeps(["experiment=x", "method.last=2", "method=a,b"])[1] == "method.last=choice(2)", (
        "experiments may sweep"
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["task.tasks=[a,b]"], ["task=[a,b]"]),
        (["task=ruler", "length=8", "task.tasks=[a]"], ["length=8", "task=[a]"]),
        (["task.tasks=a", "task=ruler"], ["task=a"]),
        (["-m", "++task.tasks=[a],[b,c]"], ["-m", "task=[a],[b,c]"]),
        (["task=ruler", "study=task.tasks=3"], ["task=ruler", "study=task.tasks=3"]),
    ],
)
def test_recorded_lists_of_tasks_are_values(arguments: list[str], expected: list[str]) -> None:
    assert tasks_as_values(arguments) == expected


def test_a_glob_of_a_folder_below_a_group_is_no_silent_nothing() -> None:
    with pytest.raises(UserError, match=r"glob\(\) looks in no folder below model: name the choices, of shape/custom"):
        prepare(["-m", "model=glob(shape/*)"])
    assert prepare(["-m", "model=glob(qwen*)"])


@pytest.mark.parametrize("argument", ["task.sizing=release", "+task.sizing=release", "task_settings.sizing=release"])
def test_settings_of_tasks_stand_beside_the_tasks(argument: str) -> None:
    arguments = prepare(["task=ruler", argument, "task.tasks=[vt]"])
    assert arguments == ["task_settings.sizing=release", "task=[vt]"]
    assert given_names(arguments) == ("task.sizing", "task")
    assert command(arguments) == "python -m harness task.sizing=release 'task=[vt]'", "records say what one types"
    settings = composed(*arguments)
    assert settings.tasks == ("vt",) and settings.data["sizing"] == "release" and composed("task=vt").data["sizing"] == "full"
    assert prepare(["-m", "task=vt,cwe", "task.sizing=full,release"])[-1] == "task_settings.sizing=full,release"


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("task.sizing=relese", r"task\.sizing=relese is not known \(did you mean release\?\); choose one of: full, release"),
        ("task.sizing=null", r"task\.sizing=null is not known; choose one of: full, release"),
        ("task_settings=full", "task_settings=full: it has settings below it: sizing"),
    ],
)
def test_wrong_settings_of_tasks(argument: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        composed(*prepare([argument]))
    assert "'task.size' (did you mean task.sizing?); known: task.sizing; tasks are values" in unknown_setting("task.size")


def test_what_needs_nothing_stays_as_it_is() -> None:
    arguments = ["-m", "experiment=pareto", "method=seer,oracle", "task=[vt,cwe],ruler", "data.dir=[a]", "~hydra/launcher"]
    assert prepare(arguments) == arguments


@pytest.mark.parametrize("study", ["../x", "/tmp/x", "mine,../x", "'a b'", "-x", "."])
def test_a_study_is_checked_before_a_sweep_makes_its_folder(study: str) -> None:
    with pytest.raises(UserError, match=r"study=.*: must be the name of a folder below results="):
        prepare(["-m", "method=a,b", f"study={study}"])
    assert prepare(["study=mine,yours", "study=null", "study=x_${model.name}"])


def test_the_study_of_an_experiment_is_called_after_any_model() -> None:
    arguments = ("experiment=pareto", "model=hf", "sparsity=0.5", "method=block_topk")
    assert composed(*arguments, "model.path=Qwen/Qwen3-0.6B").study == "pareto_Qwen-Qwen3-0.6B"
    assert composed(*arguments, "model.path=/tmp/a", "model.name=/a/@b").study == "pareto_a-b"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["job=choose", "max_loss=2", "by=ttft", "length=8"], ["job=choose", "job.max_loss=2", "job.by=ttft", "length=8"]),
        (["max_loss=1,2", "-m", "job=choose"], ["-m", "job.max_loss=1,2", "job=choose"]),
        (["job=choose", "model=Coder"], ["job=choose", "job.model=Coder"]),
        (["job=choose", "model=bundled"], ["job=choose", "model=bundled"]),
        (["job=pretrain", "length=8", "dtype=float32"], ["job=pretrain", "length=8", "dtype=float32"]),
        (["job=evaluate", "max_loss=2"], ["job=evaluate", "max_loss=2"]),
        (["max_loss=2"], ["max_loss=2"]),
        (["job=none", "to=seer"], ["job=none", "to=seer"]),
        (["job=compare", "to=seer", "job.to=moba"], ["job=compare", "job.to=seer", "job.to=moba"]),
    ],
)
def test_settings_of_the_job_need_no_prefix(arguments: list[str], expected: list[str]) -> None:
    assert prepare(arguments) == expected
