"""`python -m harness --help`: how to call it, groups, tasks, and every setting with its comment from conf/, as the other
arguments leave it. Hydra's own help has no comments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from harness.core.conf_files import MAIN, ConfLine, conf_dir, conf_file, conf_lines, groups
from harness.tasks.names import GROUPS, LISTED_TASKS

HEADER = """\
Sparse attention methods under the same rules, accuracy and time in one row.

  python -m harness method=seer sparsity=0.9                       one method beside dense attention
  python -m harness -m method=seer,block_topk sparsity=0.5,0.9     a sweep, joined in one study
  python -m harness 'task=[niah_single_1,vt]' length=8192          other tasks than the demo's, longer prompts
  python -m harness method=dense decode=quest decode.budget=1024   sparse decoding, beside or without a method
  python -m harness experiment=bundled_cpu                         a whole study from conf/experiment
  python -m harness job=report study=demo                          leaderboard and figures from the records
  python -m harness job=distill --help                             the settings of another job, method, model
"""
SHOWN_GROUPS = ("model", "method", "decode", "job")
"""Groups whose choice is shown with its settings."""
WIDTH = 128


def help_text(arguments: Sequence[str]) -> str:
    """Return the help for the arguments of a command; those that set one value show in it. Raises Hydra's errors."""
    parser = OverridesParser.create()
    overrides = parser.parse_overrides([argument for argument in arguments if not argument.startswith("-")])
    single = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = compose(MAIN, single, return_hydra_config=True)
    choices: dict[str, str] = dict(cfg.hydra.runtime.choices)
    settings: Any = OmegaConf.to_container(cfg, resolve=False)
    return "\n".join([HEADER, *_choices(), *_settings(settings, choices)])


def _choices() -> Iterator[str]:
    """Yield the lines that list groups and tasks."""
    yield "Groups (group=choice):\n"
    for group, choices in groups().items():
        yield _listed(group, choices)
    yield "\nTasks (task=NAME, or a list of them), and groups of tasks:\n"
    yield _listed("tasks", LISTED_TASKS)
    yield _listed("groups", GROUPS)


def _listed(title: str, items: Sequence[str] | Mapping[str, Any]) -> str:
    """Return a title and its items, wrapped."""
    indent = " " * 12
    text = f"{title:<12}{', '.join(items)}"
    return fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _settings(settings: Mapping[str, Any], choices: Mapping[str, str]) -> Iterator[str]:
    """Yield the settings with their comments: those of no group, then those of the chosen model, method, decoding and job."""
    yield "\nSettings (name=value), as this command line leaves them:\n"
    _, *lines = conf_lines(conf_file("", MAIN))  # the first says what this page says
    for line in _stripped(lines):
        yield _with_value(line, settings)
    for group in SHOWN_GROUPS:
        if group not in choices:  # ~group: a run says what is wrong with that
            continue
        yield f"\n{group}:"
        for line in _stripped(conf_lines(conf_file(group, choices[group]))):
            yield f"  {_with_value(line, settings.get(group, {}))}".rstrip()


def _stripped(lines: Sequence[ConfLine]) -> Sequence[ConfLine]:
    """Return the lines without blank ones at either end."""
    filled = [index for index, line in enumerate(lines) if line.text.strip()]
    return lines[filled[0] : filled[-1] + 1]


def _with_value(line: ConfLine, settings: Mapping[str, Any]) -> str:
    """Return a line of conf/ with the value that a setting has now; its comment stays where it was if there is room."""
    if not line.name or not line.value:  # a comment, or a name with settings below it
        return line.text
    value: Any = settings
    for key in line.name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return line.text  # taken out, or replaced by a value: a run says what is wrong with that
        value = value[key]
    written: Any = OmegaConf.to_container(OmegaConf.create(f"value: {line.value}"))
    if written["value"] == value:
        return line.text
    before, _, _ = line.text.removesuffix(line.comment).rpartition(line.value)
    comment = line.comment.lstrip()
    column = len(line.text) - len(comment)
    return f"{before}{_yaml(value)}".ljust(column - 1) + f" {comment}" if comment else f"{before}{_yaml(value)}"


def _yaml(value: Any) -> str:
    """Return a value as it is written in YAML, on one line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"[{', '.join(map(_yaml, value))}]" if isinstance(value, list) else str(value)
