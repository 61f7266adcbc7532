"""The arguments of the command before Hydra reads them: `task.tasks=` as `task=`, other settings of tasks in their section,
knobs of swept methods, lists for groups."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set

from hydra.conf import HydraConf

from harness.core import checks
from harness.core.conf_files import MAIN, groups, setting_names
from harness.core.errors import UserError, did_you_mean
from harness.core.task_settings import as_given, in_files
from harness.jobs.flags import flags_first

WITH_OWN_SETTINGS = ("method", "decode")
"""Groups whose choices have settings of their own."""
SWEEPS = ("-m", "--multirun")
NO_NAME = r"[-+]?[\d.]+(e[-+]?\d+)?|true|false"
"""What Hydra reads as a number or a truth value."""


def prepare(arguments: Sequence[str]) -> list[str]:
    """Return the arguments as Hydra is to read them. Raises UserError for a choice of a group that Hydra would misread."""
    arguments = job_settings(task_settings(tasks_as_values(flags_first(arguments))))
    check_choices(arguments)
    check_studies(arguments)
    return knobs_as_sweeps(arguments)


def tasks_as_values(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `task.tasks=[a,b]`, as commands were recorded, as `task=[a,b]`, which then replaces any other
    `task=`."""
    if not any(_name(argument) == "task.tasks" for argument in arguments):
        return list(arguments)
    others = [argument for argument in arguments if _name(argument) != "task"]
    return [f"task={a.partition('=')[2]}" if _name(a) == "task.tasks" else a for a in others]


def task_settings(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `task.NAME=V` as the section of conf/ has it that is beside `task`, a value; +, which would add
    it, is left out."""
    return [in_files(argument.lstrip("+")) if _name(argument).startswith("task.") else argument for argument in arguments]


def job_settings(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with a setting of the job, written without its `job.`, as Hydra takes it: `max_loss=2`. A name that
    conf/ has too stays what it is there. Only a group that has no such choice is the job's: `method=gone`, of recorded rows."""
    jobs = [argument.partition("=")[2] for argument in arguments if _name(argument) == "job"]
    if not jobs or jobs[-1] not in groups()["job"]:
        return list(arguments)
    of_job, of_all = set(setting_names("job", jobs[-1])) - {"name"}, set(setting_names("", MAIN))
    return [_of_job(argument) if _is_of_job(argument, of_job, of_all) else argument for argument in arguments]


def _is_of_job(argument: str, of_job: Set[str], of_all: Set[str]) -> bool:
    """Return whether an argument sets what only the job has a place for."""
    name, value = _name(argument), argument.partition("=")[2]
    if name not in of_job or name in of_all:
        return False
    plain = bool(value) and not set(value) & set(",()[]{}$")
    return name not in groups() or (plain and value != "null" and value not in groups()[name])


def _of_job(argument: str) -> str:
    return f"job.{argument.lstrip('+')}"


def check_choices(arguments: Sequence[str]) -> None:
    """Raise UserError for a group without a choice, with a list of them, of which Hydra would keep the last alone, and for
    several experiments: Hydra sweeps over their names, but not over what each of them sweeps over."""
    for argument in arguments:
        group, choice = _name(argument), argument.partition("=")[2]
        if argument.startswith(("=", "@")):
            raise UserError(f"can't read '{argument}' on the command line: settings are written name=value, e.g. sparsity=0.9")
        if group not in groups():
            if choice.startswith("glob("):
                raise UserError(f"{argument}: glob() chooses among the files of a group, and {group}= is none: name the values")
            continue
        if choice.startswith("glob(") and "/" in choice:  # it would choose nothing, and say nothing
            below = ", ".join(name for name in groups()[group] if "/" in name) or "none there"
            raise UserError(f"{argument}: glob() looks in no folder below {group}: name the choices, of {below}")
        if choice in ("", "null"):
            raise UserError(f"{argument}: leave {group}= out, or choose one of: {', '.join(groups()[group])}")
        names = ",".join(re.findall(r"[^\s,()\[\]{}'\"]+", choice.removeprefix("choice(")))
        if re.fullmatch(NO_NAME, choice):
            raise UserError(f"{argument}: {choice} is no choice of {group}=; choose one of: {', '.join(groups()[group])}")
        if group == "experiment" and ("[" in choice or "," in choice):
            raise UserError(
                f"{argument}: one experiment a command, each is a sweep of its own: run {names.replace(',', ', ')} in turn"
            )
        if "[" in choice or "{" in choice:
            raise UserError(
                f"{argument}: {group}= takes one choice, not a list; to run several, one after the other: -m {group}={names}"
            )


def check_studies(arguments: Sequence[str]) -> None:
    """Raise UserError for a study that can't be called so: a sweep makes a folder of that name before its jobs read it."""
    for argument in arguments:
        for name in argument.partition("=")[2].split(",") if _name(argument) == "study" else ():
            if name not in ("", "null") and not set(name) & set("$()[]{}"):  # what Hydra makes a value of is checked then
                checks.study_name("study", name.strip("'\""))


def knobs_as_sweeps(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `method.K=V` beside `method=a,b` as a sweep over that one value (decode alike). Hydra composes
    the config of a sweep without what is swept, so it would look for the setting in the default method's file."""
    sweeps = any(a in SWEEPS or a.startswith("experiment=") for a in arguments)  # without one Hydra says that it needs -m
    swept = {_name(a) for a in arguments if sweeps and _name(a) in WITH_OWN_SETTINGS and "," in a.partition("=")[2]}
    return [_as_sweep(argument, swept) for argument in arguments]


def _as_sweep(argument: str, swept: set[str]) -> str:
    """Return `group.K=V` as `group.K=choice(V)` where the group is swept and V is a single value."""
    name, _, value = argument.partition("=")
    single = bool(value) and "," not in value and not value.endswith(")")
    return f"{name}=choice({value})" if single and name.partition(".")[0] in swept and "." in name else argument


def given_names(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the settings and groups that the arguments set, but for Hydra's own."""
    names = (as_given(_name(argument)) for argument in arguments if not argument.startswith("-"))
    return tuple(name for name in names if name and not name.startswith("hydra"))


def check_hydra_settings(overrides: Sequence[str]) -> None:
    """Raise UserError for a setting of Hydra's (+hydra.name=value) that it does not have: it adds it, and reads it nowhere."""
    for override in overrides:
        parts = _name(override).split(".")
        if len(parts) > 1 and parts[1] not in HydraConf.__dataclass_fields__:
            raise UserError(f"unknown setting '{'.'.join(parts)}'{did_you_mean(parts[1], HydraConf.__dataclass_fields__)}")


def _name(argument: str) -> str:
    """Return the name of the setting or group that an argument sets; empty where it sets none."""
    name, equals, _ = argument.partition("=")
    return name.lstrip("+") if equals else ""
