"""From the composed Hydra config to checked settings, and from Hydra's errors to one line a person can act on."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.core import checks
from harness.core.conf_files import ABOUT, conf_dir
from harness.core.errors import UserError
from harness.core.question import QUESTION_LATER, QUESTION_REREAD, QUESTION_SEEN

DTYPES = ("auto", "float32", "float16", "bfloat16", "float64")
ANSWERING = ("evaluate", "report", "power", "archive")
"""Jobs that ask questions, or read what such a job recorded."""
RESERVED = ("name", "paper", ABOUT)
"""Keys of a conf/method or conf/decode file that are no knobs of the method."""

SWEPT = ("method", "decode")
"""Groups whose choices have settings of their own."""


@dataclass(frozen=True)
class Settings:
    """What the user asked for, checked. `model`, `method_knobs` and `data` are the plain dicts of their groups, `options`
    that of the job, its name aside."""

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
    seed: int
    block_size: int
    device: torch.device
    dtype: torch.dtype
    kernel: str
    dense_kernel: str
    decode_kernel: str
    latency: bool
    batch_tokens: int | None
    latency_repeats: int
    latency_seconds: float
    calibration_prompts: int
    progress: bool
    report: bool
    margin: float
    checks: bool
    data: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder of the study."""
        return self.results / self.study


def read_settings(cfg: DictConfig) -> Settings:
    """Check a composed config. Raises UserError naming the setting, its value and the range it may have."""
    try:
        raw: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from None
    tasks = raw["task"]["tasks"]
    device = _device(raw["device"])
    return Settings(
        job=str(raw["job"]["name"]),
        study=_study(raw["study"]),
        results=Path(str(raw["results"])),
        model=dict(raw["model"]),
        method=str(raw["method"]["name"]),
        method_knobs={k: v for k, v in raw["method"].items() if k not in RESERVED},
        decode=str(raw["decode"]["name"]),
        decode_knobs={k: v for k, v in raw["decode"].items() if k not in RESERVED},
        tasks=tuple(str(t) for t in ([tasks] if isinstance(tasks, str) else tasks)),
        length=checks.whole_number("length", raw["length"], 1),
        sparsity=_sparsity(raw["sparsity"]),
        samples=checks.whole_number("samples", raw["samples"], 1),
        question=_question(raw["question"], str(raw["job"]["name"])),
        seed=checks.whole_number("seed", raw["seed"], 0),
        block_size=checks.whole_number("block_size", raw["block_size"], 1),
        device=device,
        dtype=_dtype(raw["dtype"], device),
        kernel=str(raw["kernel"]),
        dense_kernel=str(raw["dense_kernel"]),
        decode_kernel=str(raw["decode_kernel"]),
        latency=checks.true_or_false("latency", raw["latency"]),
        batch_tokens=None if raw["batch_tokens"] == "auto" else checks.whole_number("batch_tokens", raw["batch_tokens"], 1),
        latency_repeats=checks.whole_number("latency_repeats", raw["latency_repeats"], 1),
        latency_seconds=checks.seconds("latency_seconds", raw["latency_seconds"]),
        calibration_prompts=checks.whole_number("calibration_prompts", raw["calibration_prompts"], 1),
        progress=checks.true_or_false("progress", raw["progress"]),
        report=checks.true_or_false("report", raw["report"]),
        margin=checks.share("margin", raw["margin"]),
        checks=checks.true_or_false("checks", raw["checks"]),
        data=dict(raw["data"]),
        options={k: v for k, v in raw["job"].items() if k != "name"},
    )


def _sparsity(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise UserError(f"sparsity={value}: must be at least 0 (keep every block) and below 1, for example 0.9")
    return float(value)


def _question(value: Any, job: str) -> str:
    if value not in (QUESTION_SEEN, QUESTION_LATER, QUESTION_REREAD):
        raise UserError(
            f"question={value}: must be {QUESTION_SEEN} (the prompt is prefilled whole), {QUESTION_LATER} (its context, then the question with "
            f"full attention) or {QUESTION_REREAD} (the prompt whole, then the question again with full attention)"
        )
    if value != QUESTION_SEEN and job not in ANSWERING:
        raise UserError(f"job={job} asks no question of a prompt, so question={value} does not change it: leave question out")
    return str(value)


def _study(value: Any) -> str:
    name = str(value)
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"study={name}: must be the name of a folder below results=, for example study=mine")
    return name


def _device(value: Any) -> torch.device:
    if value == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(str(value))
    except RuntimeError:
        raise UserError(f"device={value}: must be auto, cpu, cuda or cuda:0, cuda:1, …") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={value}: torch finds no CUDA device here; use device=cpu or device=auto")
    return device


def _dtype(value: Any, device: torch.device) -> torch.dtype:
    if value not in DTYPES:
        raise UserError(f"dtype={value}: must be one of {', '.join(DTYPES)}")
    if value == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, value)
    return dtype


def check_choices(arguments: Sequence[str]) -> None:
    """Raise UserError for a group that is given no choice (experiment=null): Hydra has no line of its own for that."""
    for argument in arguments:
        group, equals, choice = argument.partition("=")
        if equals and choice in ("", "null") and (options := _options(group)):
            raise UserError(f"{argument}: leave {group}= out, or choose one of: {', '.join(options)}")


def one_for_all(arguments: Sequence[str]) -> list[str]:
    """The overrides with `method.K=V` beside `method=a,b` as a sweep over that one value (decode alike). Hydra composes the
    config of a sweep without what is swept, so it would look for the setting in the default method's file."""
    several = {group for group, _, value in (a.partition("=") for a in arguments) if group in SWEPT and "," in value}
    sweeps = any(a in ("-m", "--multirun") or a.startswith("experiment=") for a in arguments)
    swept = several if sweeps else set()  # else Hydra says that several methods need -m

    def each(argument: str) -> str:
        name, equals, value = argument.partition("=")
        group, dot, _ = name.partition(".")
        plain = bool(equals and dot and value) and group in swept and "," not in value and not value.endswith(")")
        return f"{name}=choice({value})" if plain else argument

    return [each(argument) for argument in arguments]


def explain(error: BaseException) -> str:
    """One line for an error of Hydra or OmegaConf: what is wrong and which names would be right."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = list(error.options or _options(group))
        if group and options:
            return f"{group}={name} is not known{_like(name, options)}; choose one of: {', '.join(options)}"
    if isinstance(error, OverrideParseException):
        return f"can't read '{error.override}' on the command line: settings are written name=value, e.g. sparsity=0.9"
    key = getattr(error.__cause__, "full_key", None) or getattr(error, "full_key", None)
    text = _first_line(error) or _first_line(error.__cause__)
    if text.startswith("Could not override") or "is not in struct" in text:
        name = text.split("'")[1] if "'" in text else str(key)
        known = _known_keys(name)
        if name in known:
            return _elsewhere(name)
        return f"unknown setting '{name}'{_like(name, known)}; known: {', '.join(known) or 'none here'}"
    if "Missing mandatory value" in text:
        name = text.rsplit(": ", 1)[1] if ": " in text else str(key)
        return f"{name} has no value: give it on the command line, {name}=…"
    if text.startswith("Ambiguous value"):
        return f"{text}: quote a list as 'name=[a,b]', or add -m to sweep over its values"
    if text.startswith("In ") and "Could not find" in text:
        return text.split(": ", 1)[1]
    return text


def _first_line(error: BaseException | None) -> str:
    return next((line.strip() for line in str(error or "").splitlines() if line.strip()), "")


def _options(group: str) -> list[str]:
    """The choices of a group: the names of its files."""
    return sorted(p.stem for p in (conf_dir() / group).glob("*.yaml"))


def _known_keys(name: str) -> list[str]:
    """The settings `name` may have been meant to be: those at its level of conf/."""
    parts = name.split(".")
    root: Any = OmegaConf.load(conf_dir() / "config.yaml")
    groups = sorted(p.name for p in conf_dir().iterdir() if p.is_dir() and any(p.glob("*.yaml")))
    if len(parts) > 1 and parts[0] in groups:
        found = {str(k) for f in (conf_dir() / parts[0]).glob("*.yaml") for k in OmegaConf.load(f)}
        return sorted(f"{parts[0]}.{k}" for k in found if k not in RESERVED)
    if len(parts) > 1 and OmegaConf.is_dict(root.get(parts[0])):
        return sorted(f"{parts[0]}.{k}" for k in root[parts[0]])
    return groups + sorted(str(k) for k in root if k not in ("defaults", "hydra"))


def _elsewhere(name: str) -> str:
    """A setting that exists, but not in the choice of its group that is named here."""
    group, key = name.split(".", 1)
    having = sorted(p.stem for p in (conf_dir() / group).glob("*.yaml") if key in OmegaConf.load(p))
    return f"unknown setting '{name}' for this {group}=; it belongs to {', '.join(having)}"


def _like(name: str, options: list[str]) -> str:
    close = difflib.get_close_matches(name, options, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
