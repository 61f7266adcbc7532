"""From the composed Hydra config to checked settings. Reading them imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.core import checks, devices
from harness.core.chat_options import DEFAULT_DATE, ChatOptions
from harness.core.conf_files import ABOUT, MAIN, about_of, defaults, groups, setting_names
from harness.core.errors import UserError
from harness.core.given import given_settings
from harness.core.hydra_text import TASK_IS_A_VALUE, explain, unknown_setting
from harness.core.model_settings import model_settings
from harness.core.question import check_question
from harness.core.sizing import check_sizing
from harness.core.task_settings import TASK_SETTINGS

if TYPE_CHECKING:
    import torch

RESERVED = ("name", "paper", ABOUT)
"""Keys of a conf/method or conf/decode file that are no knobs of the method."""
PREFILL = "prefill"
"""The section of conf/config.yaml that says how prompts go through the model."""
WITH_OWN_SETTINGS = ("method", "decode", "job")
"""Groups of which every choice has settings of its own, those of its file."""
LONGEST, MOST, LARGEST_SEED = 10**9, 10**6, 2**32 - 1
"""Tokens of a prompt, samples of a task, and a seed that every library takes: more is a slip of the hand."""


@dataclass(frozen=True)
class Settings:
    """What the user asked for, checked; conf/config.yaml describes the fields. `model` and `data` are the plain dicts of their
    groups, `data` with the sizing of prompts (`harness.core.sizing`), `method_knobs`, `decode_knobs` and `options` (the job's)
    those of theirs without their names. `tasks` are names of tasks or of groups of them. `device_choice` and `dtype_choice` are
    texts, which may be "auto". `given` are the dotted names of the settings that the user gave."""

    job: str
    study: str
    results: Path
    model: dict[str, Any]
    method: str
    method_knobs: dict[str, Any]
    decode: str
    decode_knobs: dict[str, Any]
    tasks: tuple[str, ...]
    length: int
    sparsity: float | None
    samples: int
    question: str
    prefill_chunk: int | None
    seed: int
    block_size: int
    device_choice: str
    dtype_choice: str
    kernel: str
    dense_kernel: str
    decode_kernel: str
    latency: bool
    batch_tokens: int | None
    latency_repeats: int
    latency_seconds: float
    progress: bool
    report: bool
    margin: float
    checks: bool
    debug: bool = False
    as_released: bool = False
    knob_value: float | None = None
    cell_minutes: float | None = None
    retry_failed: bool = False
    data: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    given: frozenset[str] = frozenset()

    @property
    def folder(self) -> Path:
        """Return the folder of the study."""
        return self.results / self.study

    @property
    def by_shape(self) -> bool:
        """Return whether the model's weights are drawn at random for a config (`model.shape`)."""
        return self.model.get("shape") is not None

    @property
    def chat_options(self) -> ChatOptions:
        """Return what the model's chat template is given."""
        return ChatOptions(str(self.model.get("date", DEFAULT_DATE)), self.model.get("enable_thinking"))

    @cached_property
    def device(self) -> torch.device:
        """Return the device to run on. Raises UserError where this machine has none of that name."""
        return devices.torch_device(self.device_choice)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the model's weights; "auto" depends on the device."""
        return devices.torch_dtype(self.dtype_choice, self.device)


def read_settings(cfg: DictConfig) -> Settings:
    """Check a composed config. Raises UserError naming the setting, its value and the range it may have."""
    try:
        raw: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from None
    _check_names(raw)
    checks.texts(raw)
    model, method, decode, job = raw["model"], raw["method"], raw["decode"], raw["job"]
    return Settings(
        job=checks.text("job.name", job["name"]),
        study=checks.study_name("study", raw["study"]),
        results=Path(checks.text("results", raw["results"])),
        model=model_settings(model),
        method=checks.text("method.name", method["name"]),
        method_knobs={name: value for name, value in method.items() if name not in RESERVED},
        decode=checks.text("decode.name", decode["name"]),
        decode_knobs={name: value for name, value in decode.items() if name not in RESERVED},
        tasks=_tasks(raw["task"]),
        length=checks.whole_number("length", raw["length"], 1, LONGEST),
        sparsity=checks.sparsity("sparsity", raw["sparsity"]),
        samples=checks.whole_number("samples", raw["samples"], 1, MOST),
        question=check_question(raw["question"]),
        prefill_chunk=checks.whole_number_or_null("prefill.chunk", raw[PREFILL]["chunk"], 1, LONGEST),
        seed=checks.whole_number("seed", raw["seed"], 0, LARGEST_SEED),
        block_size=checks.whole_number("block_size", raw["block_size"], 1),
        device_choice=devices.check_device(raw["device"]),
        dtype_choice=devices.check_dtype(raw["dtype"]),
        kernel=checks.text("kernel", raw["kernel"]),
        dense_kernel=checks.text("dense_kernel", raw["dense_kernel"]),
        decode_kernel=checks.text("decode_kernel", raw["decode_kernel"]),
        latency=checks.true_or_false("latency", raw["latency"]),
        batch_tokens=None if raw["batch_tokens"] == "auto" else checks.whole_number("batch_tokens", raw["batch_tokens"], 1),
        latency_repeats=checks.whole_number("latency_repeats", raw["latency_repeats"], 1, MOST),
        latency_seconds=checks.seconds("latency_seconds", raw["latency_seconds"]),
        progress=checks.true_or_false("progress", raw["progress"]),
        report=checks.true_or_false("report", raw["report"]),
        margin=checks.share("margin", raw["margin"]),
        checks=checks.true_or_false("checks", raw["checks"]),
        debug=checks.true_or_false("debug", raw["debug"]),
        as_released=checks.true_or_false("as_released", raw["as_released"]),
        knob_value=checks.number_or_null("knob_value", raw["knob_value"]),
        cell_minutes=checks.minutes_or_null("cell_minutes", raw["cell_minutes"]),
        retry_failed=checks.true_or_false("retry_failed", raw["retry_failed"]),
        data=_data(raw["data"], raw[TASK_SETTINGS]),
        options=_options(job),
        given=given_settings(raw),
    )


def _check_names(raw: Mapping[str, Any]) -> None:
    """Raise UserError for a setting that nothing reads (an experiment's file and +name=value may add any), for one that is gone
    (~name), and for a value in place of a group."""
    in_no_group = setting_names("", MAIN)
    sections = {
        group: _settings_of(group, raw) for group in groups() if group != "experiment"
    }  # experiments set other settings
    for section in ("data", TASK_SETTINGS, PREFILL):
        sections[section] = {name.partition(".")[2] for name in in_no_group if name.startswith(f"{section}.")}
    _compare("", raw, {*sections, *(name for name in in_no_group if "." not in name)})
    for section, names in sections.items():
        if not isinstance(raw[section], dict):
            raise UserError(f"{section}={raw[section]}: it has settings below it: {', '.join(sorted(names)) or 'name'}")
        _compare(f"{section}.", raw[section], names)
    _check_below(raw)


def _settings_of(group: str, raw: Mapping[str, Any]) -> set[str]:
    """Return the names that the settings of a group must have: those of the chosen file, else those that all files have."""
    choices, settings = groups()[group], raw.get(group)
    if group in WITH_OWN_SETTINGS and isinstance(settings, dict):
        choice = settings.get("name")
        if choice not in choices:  # that is said where the job, or the method, is looked up
            return {"name", *settings}
        choices = [choice]
        return {name for name in setting_names(group, choice) if "." not in name} | ({ABOUT} & set(settings))
    return {name for name in setting_names(group, choices[0]) if "." not in name}


def _check_below(raw: Mapping[str, Any]) -> None:
    """Raise UserError for what no setting is, further down: facts of a method (`ABOUT`) that are not those of its file, and
    releases of gates for what is no phase."""
    for group in WITH_OWN_SETTINGS:
        choice = raw[group]["name"]
        if choice in groups()[group] and (raw[group].get(ABOUT) or {}) != about_of(group, choice):
            raise UserError(f"{group}.{ABOUT} is no setting: it says what {choice} is, and is in its file alone; leave it out")
    phases = raw["model"]["released_gates"]
    known = {
        name.partition(".")[2] for name in setting_names("model", groups()["model"][0]) if name.startswith("released_gates.")
    }
    if isinstance(phases, dict):
        _compare("model.released_gates.", phases, known)


def _compare(prefix: str, settings: Mapping[str, Any], names: set[str]) -> None:
    """Raise UserError where the settings of a level are not those of conf/."""
    for name in settings:
        if name not in names:
            raise UserError(unknown_setting(f"{prefix}{name}"))
    for name in sorted(names):
        if name not in settings:
            raise UserError(
                f"{prefix}{name} is missing: no setting can be taken out with ~, leave it as it is or give it a value"
                + (", and begin a file of your own in conf/model with `defaults: [hf]`" if prefix == "model." else "")
            )


def _options(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a job. Those that are a number or a truth value in its file must be one: the job knows their
    range, and what the others may be. Raises UserError."""
    standing = defaults("job", job["name"]) if job["name"] in groups()["job"] else {}
    for name, value in job.items():
        default = standing.get(name)
        if isinstance(default, bool):
            checks.true_or_false(f"job.{name}", value)
        elif isinstance(default, int):
            checks.whole_number(f"job.{name}", value, high=LONGEST)
        elif isinstance(default, float):
            checks.number(f"job.{name}", value)
    return {name: value for name, value in job.items() if name != "name"}


def _data(settings: Mapping[str, Any], of_tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the data, and those of tasks, which say how prompts are made of it, checked."""
    data = {name: checks.text_or_null(f"data.{name}", value) for name, value in settings.items()}
    return data | {"sizing": check_sizing(of_tasks["sizing"])}


def _tasks(value: Any) -> tuple[str, ...]:
    """Return the names of tasks and groups in `task`; an experiment's file may have them below it, as `tasks`."""
    if isinstance(value, dict) and (others := sorted({*value} - {"tasks"})):
        raise UserError(f"task.{others[0]} can't be set below task: {TASK_IS_A_VALUE}")
    names = value.get("tasks") if isinstance(value, dict) else value
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"task={'null' if names is None else names}: {TASK_IS_A_VALUE}")
    return tuple(names)
