"""The Python front door: what `import harness` gives a notebook. docs/python.md shows it at work.

Everything goes by the settings of conf/ and their checks, so a call means what the command of the same names means.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from harness.arms.build import RunnableArm, build_arms, with_knob, with_release
from harness.arms.calibration import calibrate
from harness.core import checks
from harness.core.chat_options import DEFAULT_DATE, ChatOptions, check_date
from harness.core.compose import compose_settings
from harness.core.devices import check_device, check_dtype, torch_device, torch_dtype
from harness.core.errors import UserError
from harness.core.model_name import name_of_path
from harness.core.settings import RESERVED, Settings
from harness.core.terminal import Terminal
from harness.jobs.measure import check_can_measure
from harness.jobs.studies import OpenStudy
from harness.measure.run import measure
from harness.measure.sweep import SweepCache, load_quietly
from harness.models.bridge import Bridge
from harness.models.loading import LoadedModel, ModelConfig
from harness.report.leaderboard import leaderboard_rows
from harness.report.leaderboard_csv import row_columns
from harness.study.integrity import left_out
from harness.study.joining import join_parts
from harness.study.matching import is_matched
from harness.study.parts import own_parts
from harness.study.store import Store
from harness.tasks.frozen_template import published_template
from harness.tasks.names import expand_tasks

if TYPE_CHECKING:
    import torch

    from harness.report.rows import Row

OF_THE_MODEL = ("device", "dtype")
"""Settings that a loaded model has already."""
DEFAULT = "default"
"""The value of an argument that stands for the command's own default."""
NOT_HERE = ("job", "experiment", "hydra")
"""Groups of the command that a call of `evaluate` or `attach` has no use for."""


def load_model(
    path: str | Path = "bundled",
    *,
    name: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    max_length: int | None = None,
    date: str = DEFAULT_DATE,
    enable_thinking: bool | None = None,
) -> LoadedModel:
    """Load a model with its tokenizer: "bundled", a folder, or a hub id of any decoder of transformers.

    name: what rows call it; None: the folder's own name, or the hub id. device and dtype: as the settings of the same names, or
    torch's own. date and enable_thinking: what its chat template is given, as the settings of `model` of the same names.
    max_length: tokens of the longest text, where that is not what the model's config says.
    `.model` of what is returned is the transformers model, `.tokenizer` its tokenizer. Raises UserError where that can't be.
    """
    path = checks.text("path", str(path) if isinstance(path, Path) else path)
    chosen_device = torch_device(check_device(str(device)))
    chosen_dtype = torch_dtype(check_dtype(str(dtype).removeprefix("torch.")), chosen_device)
    max_length = checks.whole_number_or_null("max_length", max_length, 1)
    if enable_thinking is not None:
        checks.true_or_false("enable_thinking", enable_thinking)
    chat = ChatOptions(check_date("date", date), enable_thinking)
    name = name or name_of_path(path)
    return load_quietly(ModelConfig(name, path, chosen_dtype, chosen_device, max_length, chat))


@dataclass(frozen=True)
class Attached:
    """A method inside a model, and what it did there. arm: the method as it runs, with its knobs; bridge: what it runs in."""

    arm: RunnableArm
    bridge: Bridge

    @property
    def densities(self) -> list[float]:
        """Return the density of every prefill so far, in order: kept ÷ causal blocks, the mean over layers and heads."""
        return self.bridge.prefill_densities()

    def layers(self) -> pd.DataFrame:
        """Return a row a layer: its prefills (`calls`), mean density, kernel and, with times=True, milliseconds a call."""
        columns = ["layer", "calls", "density", "kernel", "selection_ms", "attention_ms"]
        return pd.DataFrame([dict(stats) for stats in self.bridge.stats()], columns=columns)

    def reset(self) -> None:
        """Forget what ran so far."""
        self.bridge.reset()


@contextmanager
def attach(
    loaded: LoadedModel,
    method: str,
    *,
    sparsity: float | Literal["default"] | None = "default",
    block_size: int | Literal["default"] = "default",
    as_released: bool = False,
    knobs: Mapping[str, Any] | None = None,
    decode: str | None = None,
    decode_knobs: Mapping[str, Any] | None = None,
    gates: str | None = None,
    calibration_prompts: Sequence[Sequence[int]] = (),
    times: bool = False,
    kernel: str = "auto",
) -> Iterator[Attached]:
    """Run a method in a model while the `with` block lasts: `loaded.model(...)` and `loaded.model.generate(...)` go through it.

    sparsity: share of causal blocks left out; None: the method's own knob decides; "default": 0.9, or as released None.
    block_size: tokens of a block; "default": 64, or as released the release's. as_released: the method, and the one that
    decodes, with the settings and quirks of their releases, under what is given here. knobs, decode_knobs: settings of
    conf/method/METHOD.yaml and conf/decode/DECODE.yaml by name. gates: folder of trained weights that don't lie beside the
    model. calibration_prompts: token ids of prompts on which a knob without a formula is found for the sparsity. times: take
    times of every layer. Prompts go in one at a time, without padding. Raises UserError for what this model, device or method
    can't do, among it a method without a formula that is given no prompts. Warns of a sparsity that is out of reach.
    """
    groups = _groups(method, decode)
    shared = {"sparsity": sparsity, "block_size": block_size}
    values: dict[str, Any] = {name: value for name, value in shared.items() if value != DEFAULT}
    values |= {"as_released": as_released, "kernel": kernel, **_knob_values(knobs, decode_knobs)}
    settings = with_release(_settings(loaded, groups, values | {"model.gates": gates}))
    arm = build_arms(settings, loaded)[-1]
    knob = None if arm.method is None else arm.method.calibrates()
    if arm.method is not None and knob is not None:
        prompts = _token_ids(calibration_prompts)
        if not prompts:
            raise UserError(
                f"method {method} has no formula for sparsity={settings.sparsity}: give calibration_prompts=[token ids, …] on "
                f"which its {knob.name} is found, or knobs={{'{knob.name}': …}} with sparsity=None"
            )
        target = 1 - (arm.method.sparsity or 0.0)
        reached = calibrate(loaded, arm.method, knob, {"prompts": prompts}, target, sparse_kernel=kernel).reached
        if not is_matched(1 - target, reached.density):
            text = f"density {target:.3g} is not reached, the nearest is {reached.density:.3g} at {knob.name}="
            warnings.warn(f"{method}: {text}{reached.value:.4g}", stacklevel=3)
        arm = with_knob(settings, arm, knob, reached.value)
    with Bridge(loaded, arm.method, sparse_kernel=kernel, timer=times, decoding=arm.decoding) as bridge:
        yield Attached(arm, bridge)


def evaluate(
    loaded: LoadedModel,
    method: str,
    *,
    task: str | Sequence[str] | None = None,
    study: str = "notebook",
    decode: str | None = None,
    knobs: Mapping[str, Any] | None = None,
    decode_knobs: Mapping[str, Any] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Measure a method beside dense attention on tasks, as the command does, and return the rows of both as a frame.

    settings: those of conf/config.yaml by name, such as length=4096, sparsity=0.9, samples=4, latency=False, results="results".
    task: a task, a group of tasks, or a list of both; None: the command's default. What the study has recorded already is not
    measured again. A failed cell is a row with status "failed" and its reason.
    Raises UserError for bad input.
    """
    groups = _groups(method, decode)
    values = settings | _knob_values(knobs, decode_knobs)
    tasks = {} if task is None else {"task": task}
    checked = _settings(loaded, groups, {**values, **tasks, "study": study})
    checked = replace(checked, tasks=tuple(expand_tasks(checked.tasks)))
    study_of_rows = OpenStudy(Store(checked.folder), checked.margin)
    check_can_measure(checked, study_of_rows, Terminal())
    join_parts(checked.folder)
    with _as_command(checked, groups, values), own_parts(always=False):
        done = measure(checked, study_of_rows.store, Terminal(), SweepCache(in_memory=loaded))
    join_parts(checked.folder)
    return _frame(row for row in leaderboard_rows(study_of_rows.store, checked.margin) if row.arm in done.arms)


def read_rows(study: str, results: str | Path = "results") -> pd.DataFrame:
    """Return all rows of a study as a frame, with the columns of its leaderboard. Warns of an unfinished last line, and
    leaves it out. Raises UserError where there are no records."""
    store = Store(Path(checks.text("results", str(results))) / checks.text("study", study))
    if not any(file.exists() for file in store.files()):
        raise UserError(f"study={study}: no records in {store.folder}; measure something with that study")
    rows = leaderboard_rows(store)
    for line in left_out(store):
        warnings.warn(line, stacklevel=2)
    return _frame(rows)


def _groups(method: str, decode: str | None) -> dict[str, str]:
    """Return the choices of the groups; decode None: every token attends to all keys."""
    return {"method": method} | ({} if decode is None else {"decode": decode})


def _frame(rows: Iterator[Row] | Sequence[Row]) -> pd.DataFrame:
    return pd.DataFrame([row_columns(row) for row in rows]).dropna(axis="columns", how="all")


def _knob_values(knobs: Mapping[str, Any] | None, decode_knobs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return knobs as settings, by dotted name. Raises UserError for what is no mapping of knobs."""
    values: dict[str, Any] = {}
    for group, chosen in (("method", knobs), ("decode", decode_knobs)):
        if chosen is not None and not isinstance(chosen, Mapping):
            raise UserError(f"knobs={chosen}: must be a dict of a knob's name and its value, such as {{'last': 2}}")
        for name, value in (chosen or {}).items():
            if name in RESERVED:
                raise UserError(f"knobs: {name} is no knob of a {group}; it belongs to its configuration")
            values[f"{group}.{name}"] = value
    return values


def _token_ids(prompts: Any) -> list[list[int]]:
    """Return prompts, a list of lists or a tensor [prompts, tokens], as lists of token ids. Raises UserError for others."""
    try:
        ids = [[int(token) for token in prompt] for prompt in prompts]
    except (TypeError, ValueError, RuntimeError):
        ids = [[]]
    if not all(len(prompt) > 1 for prompt in ids):
        raise UserError("calibration_prompts: must be prompts of at least two token ids each, [[id, id, …], …]")
    return ids


def _settings(loaded: LoadedModel, groups: Mapping[str, str], values: Mapping[str, Any]) -> Settings:
    """Return the settings that name a model which is loaded already. Raises UserError for bad input."""
    if not isinstance(loaded, LoadedModel):
        raise UserError(f"a {type(loaded).__name__} is no loaded model: give what harness.load_model(…) returned")
    for name in values:
        if name in OF_THE_MODEL or name.partition(".")[0] in NOT_HERE or (name.startswith("model.") and name != "model.gates"):
            raise UserError(f"{name}= can't be set here: it belongs to load_model, or to the command")
    numbers = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
    chosen = {"model": "bundled" if loaded.source == "bundled" else "hf", **groups}
    return compose_settings(chosen, _of_model(loaded) | numbers)


def _of_model(loaded: LoadedModel) -> dict[str, Any]:
    """Return the settings that load the same model."""
    return {
        "model.path": loaded.source or loaded.name,
        "model.name": loaded.name,
        "model.max_length": loaded.asked_length,
        "model.chat_template": bool(getattr(loaded.tokenizer, "chat_template", None)),
        **{f"model.{option}": value for option, value in published_template(loaded.tokenizer)[1].items()},
        "device": str(loaded.device),
        "dtype": str(loaded.dtype).removeprefix("torch."),
    }


@contextmanager
def _as_command(checked: Settings, groups: Mapping[str, str], values: Mapping[str, Any]) -> Iterator[None]:
    """Let records name the command that measures the same, in place of the notebook's own. values: settings that were given."""
    model = {"model": "bundled" if checked.model["path"] == "bundled" else "hf"}
    model |= {f"model.{key}": checked.model[key] for key in ("path", "name", "chat_template")}
    if (longest := checked.model.get("max_length")) is not None:
        model["model.max_length"] = str(longest)
    model |= {f"model.{option}": getattr(checked.chat_options, option) for option in checked.chat_options.given}
    model |= {"device": checked.device_choice, "dtype": checked.dtype_choice}
    choices = {**model, **groups, "task": list(checked.tasks), "study": checked.study}
    before = sys.argv
    sys.argv = ["harness", *(f"{name}={_text(value)}" for name, value in (choices | dict(values)).items())]
    try:
        yield
    finally:
        sys.argv = before


def _text(value: Any) -> str:
    """Return a value as the command line has it: true, false, null, and lists in brackets."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
