"""The Python front door: what `import harness` gives a notebook. docs/python.md shows it at work.

Everything goes by the settings of conf/ and their checks, so a call means what the command of the same names means.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console

from harness.arms.build import RunnableArm, build_arms, with_knob
from harness.arms.calibration import calibrate
from harness.core.compose import compose_settings
from harness.core.devices import check_device, check_dtype, torch_device, torch_dtype
from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.measure.run import measure
from harness.measure.sweep import SweepCache, load_quietly
from harness.models.bridge import Bridge
from harness.models.loading import BUNDLED, LoadedModel, ModelConfig
from harness.report.leaderboard import leaderboard_rows
from harness.report.leaderboard_csv import row_columns
from harness.study.store import Store
from harness.tasks.names import expand_tasks

if TYPE_CHECKING:
    from harness.report.rows import Row


def load_model(path: str = "bundled", *, name: str | None = None, device: str = "auto", dtype: str = "auto") -> LoadedModel:
    """Load a model with its tokenizer: "bundled", a folder, or a hub id of any decoder of transformers.

    name: what rows call it, its path where none is given. device and dtype: as the settings of the same names. The
    transformers model is `.model` of what is returned, its tokenizer `.tokenizer`. Raises UserError where it can't be loaded.
    """
    chosen_device = torch_device(check_device(device))
    chosen_dtype = torch_dtype(check_dtype(dtype), chosen_device)
    return load_quietly(ModelConfig(name=name or path, path=path, dtype=chosen_dtype, device=chosen_device))


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
    sparsity: float | None = 0.9,
    block_size: int = 64,
    knobs: Mapping[str, Any] | None = None,
    decode: str | None = None,
    decode_knobs: Mapping[str, Any] | None = None,
    gates: str | None = None,
    calibration_prompts: Sequence[Sequence[int]] = (),
    times: bool = False,
    kernel: str = "auto",
) -> Iterator[Attached]:
    """Run a method in a model while the `with` block lasts: `loaded.model(...)` and `loaded.model.generate(...)` go through it.

    sparsity: share of causal blocks left out; None: the method's own knob decides. knobs, decode_knobs: settings of
    conf/method/METHOD.yaml and conf/decode/DECODE.yaml by name. gates: folder of trained weights that don't lie beside the
    model. calibration_prompts: token ids of prompts on which a knob without a formula is found for the sparsity. times: take
    times of every layer. Prompts go in one at a time, without padding. Raises UserError for what this model, device or method
    can't do, among it a method without a formula that is given no prompts.
    """
    groups = _groups(method, decode)
    values = {"sparsity": sparsity, "block_size": block_size, "kernel": kernel, **_knob_values(knobs, decode_knobs)}
    settings = _settings(loaded, groups, values | {"model.gates": gates})
    arm = build_arms(settings, loaded)[-1]
    knob = None if arm.method is None else arm.method.calibrates()
    if arm.method is not None and knob is not None:
        if not calibration_prompts:
            raise UserError(
                f"method {method} has no formula for sparsity={sparsity}: give calibration_prompts=[token ids, …] on which its "
                f"{knob.name} is found, or knobs={{'{knob.name}': …}} with sparsity=None"
            )
        target = 1 - (arm.method.sparsity or 0.0)
        arm = with_knob(settings, arm, knob, calibrate(loaded, arm.method, knob, calibration_prompts, target).value)
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
    store = Store(checked.folder)
    with _as_command(checked, groups, values):
        done = measure(checked, store, Console(), SweepCache(in_memory=loaded))
    return _frame(row for row in leaderboard_rows(store, checked.margin) if row.arm in done.arms)


def read_rows(study: str, results: str | Path = "results") -> pd.DataFrame:
    """Return all rows of a study as a frame, with the columns of its leaderboard. Raises UserError where it has no records."""
    store = Store(Path(results) / study)
    if not any(file.exists() for file in store.files()):
        raise UserError(f"study={study}: no records in {store.folder}; measure something with that study")
    return _frame(leaderboard_rows(store))


def _groups(method: str, decode: str | None) -> dict[str, str]:
    """Return the choices of the groups; decode None: every token attends to all keys."""
    return {"method": method} | ({} if decode is None else {"decode": decode})


def _frame(rows: Iterator[Row] | Sequence[Row]) -> pd.DataFrame:
    return pd.DataFrame([row_columns(row) for row in rows]).dropna(axis="columns", how="all")


def _knob_values(knobs: Mapping[str, Any] | None, decode_knobs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return knobs as settings, by dotted name."""
    prefill = {f"method.{name}": value for name, value in (knobs or {}).items()}
    return prefill | {f"decode.{name}": value for name, value in (decode_knobs or {}).items()}


def _settings(loaded: LoadedModel, groups: Mapping[str, str], values: Mapping[str, Any]) -> Settings:
    """Return the settings that name a model which is loaded already. Raises UserError for bad input."""
    bundled = loaded.path == BUNDLED
    if not bundled:
        folder = loaded.path if loaded.path is not None and Path(loaded.name).expanduser().is_dir() else loaded.name
        values = {"model.path": str(folder), "model.chat_template": bool(loaded.tokenizer.chat_template), **values}
    model = {"model": "bundled" if bundled else "hf"}
    device, dtype = str(loaded.device), str(loaded.dtype).removeprefix("torch.")
    return compose_settings({**model, **groups}, {"model.name": loaded.name, "device": device, "dtype": dtype, **values})


@contextmanager
def _as_command(checked: Settings, groups: Mapping[str, str], values: Mapping[str, Any]) -> Iterator[None]:
    """Let records name the command that measures the same, in place of the notebook's own. values: settings that were given."""
    path, name = checked.model["path"], checked.model["name"]
    model = {"model": "bundled"} if path == "bundled" else {"model": "hf", "model.path": path, "model.name": name}
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
