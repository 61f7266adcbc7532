"""The errors of Hydra and OmegaConf as one line that a person can act on."""

from __future__ import annotations

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from harness.core.conf_files import MAIN, conf_dir, groups, setting_names
from harness.core.errors import did_you_mean
from harness.core.task_settings import TASK_SETTINGS, as_given, in_files

TASK_IS_A_VALUE = (
    "tasks are values: write task=NAME or 'task=[NAME,NAME]', in a file of conf/ task: NAME; what task.sizing= sets is there "
    f"below {TASK_SETTINGS}:"
)
COMPOSING_ERRORS = (HydraException, OmegaConfBaseException)
"""What composing a config raises for bad input."""


def explain(error: BaseException) -> str:
    """Return one line for an error of Hydra or OmegaConf: what is wrong and which names would be right."""
    return as_given(_explained(error))


def _explained(error: BaseException) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.partition("/")
        choices = list(dict.fromkeys([*(error.options or []), *groups().get(group, [])]))
        below = [choice for choice in choices if choice.startswith(f"{name.partition('/')[0]}/")]
        if group == "model" and "/" in name and not below:
            return f"model={name} is not known: for a folder or a hub id say model=hf model.path={name}"
        choices = below or choices
        if group and choices:
            return f"{group}={name} is not known{did_you_mean(name, choices)}; choose one of: {', '.join(choices)}"
    if isinstance(error, OverrideParseException):
        return f"can't read '{error.override}' on the command line: settings are written name=value, e.g. sparsity=0.9"
    key = getattr(error.__cause__, "full_key", None) or getattr(error, "full_key", None)
    text = _first_line(error) or _first_line(error.__cause__)
    quoted = text.split("'")[1] if text.count("'") > 1 else ""
    if "Could not override 'task'" in text and (left_over := conf_dir() / "task").is_dir():
        return f"{left_over} is a folder of an earlier version, in which tasks had files: remove it; {TASK_IS_A_VALUE}"
    if "Could not override 'task'" in text or quoted.startswith("task.") or str(key).startswith("task."):
        return TASK_IS_A_VALUE
    if text.startswith("Could not override") or "is not in struct" in text:
        return unknown_setting(quoted or str(key))
    if "Missing mandatory value" in text:
        name = text.rsplit(": ", 1)[1] if ": " in text else str(key)
        name = key if isinstance(key, str) and key.endswith(f".{name}") else name  # OmegaConf may say its last part alone
        return f"{name} has no value: give it on the command line, {name}=…"
    if text.startswith("Ambiguous value"):
        return _several_values(quoted)
    if text.startswith("In ") and "Could not find" in text:
        return text.split(": ", 1)[1]
    return text


def _first_line(error: BaseException | None) -> str:
    return next((line.strip() for line in str(error or "").splitlines() if line.strip()), "")


def _several_values(argument: str) -> str:
    """Say how `name=a,b` is meant to be written: it is a sweep without -m, or a list without brackets."""
    name, _, values = argument.partition("=")
    if name in groups():
        return f"{argument}: {name}= takes one choice; to run several, one after the other, add -m: -m {argument}"
    return f"Ambiguous value for argument '{argument}': quote a list as '{name}=[{values}]', or add -m to sweep over its values"


def unknown_setting(name: str) -> str:
    """Return the line for a setting that isn't there: the one that may have been meant, and those of its level of conf/."""
    text = as_given(_unknown(in_files(name)))
    return f"{text}; {TASK_IS_A_VALUE}" if name.startswith(("task.", f"{TASK_SETTINGS}.")) else text


def _unknown(name: str) -> str:
    known = known_settings(name)
    if name == "experiment":
        return "experiment= takes the name of a file of conf/experiment, and has no settings below it"
    if name in known and "." not in name:
        return f"{name} is missing: no setting can be taken out with ~, leave it as it is or give it a value"
    if name not in known:
        added = f"; what a shape's file leaves out is added with +{name}=…" if name.startswith("model.shape.") else ""
        hint = f"{_near(name, known)}{_in_no_group(name)}{added}"
        return f"unknown setting '{name}'{hint}; known: {', '.join(known) or 'none here'}"
    group, key = name.split(".", 1)
    owners = [choice for choice in groups().get(group, []) if key in setting_names(group, choice)]
    return f"unknown setting '{name}' for this {group}; it belongs to {', '.join(owners)}"


def _in_no_group(name: str) -> str:
    """Return "; SETTING= is in no group" for one that was looked for in a group."""
    group, _, last = name.rpartition(".")
    return f"; {last}= is in no group" if group and last in setting_names("", MAIN) else ""


def _near(name: str, known: list[str]) -> str:
    """Return " (did you mean …?)" for the setting of the same group that is spelt most like `name`: the group's own name, which
    all have in common, says nothing."""
    group, _, key = name.rpartition(".")
    hint = did_you_mean(key, [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == group])
    return hint.replace("did you mean ", f"did you mean {group}.") if group else hint


def known_settings(name: str) -> list[str]:
    """Return the settings that `name` may have been meant to be: those at its level of conf/."""
    first, dot, _ = name.partition(".")
    if dot and first in groups():
        keys = {key for choice in groups()[first] for key in setting_names(first, choice)}
        return sorted(f"{first}.{key}" for key in keys if key != "name")
    names = setting_names("", MAIN)
    if dot and (below := [known for known in names if known.startswith(f"{first}.")]):
        return sorted(below)
    return [*groups(), *sorted(known for known in names if "." not in known)]
