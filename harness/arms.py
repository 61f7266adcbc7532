"""From settings to arms that are ready to run: the method built, its weights loaded, the kernels resolved by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import methods
from harness.config import Settings
from harness.errors import UserError
from harness.models import LoadedModel
from harness.plan import Arm, Setting
from harness.provenance import file_hash
from kernels.block_sparse import resolve_kernel
from kernels.dense import resolve_dense
from methods.base import Knob, Method

OWN_GATES = "gates"
"""Folder (below the working folder) for trained weights of a model whose own folder is not ours to write into."""


@dataclass(frozen=True)
class Ready:
    """An arm and what runs it; method None is dense attention."""

    arm: Arm
    method: Method | None


Calibrated = Callable[[Ready, Knob], float]
"""Finds the value of a knob for an arm's sparsity."""


def ready(wanted: Settings, loaded: LoadedModel, calibrated: Calibrated | None = None) -> list[Ready]:
    """The arms of one command, the dense baseline first. `calibrated` is called where a knob must be found for the
    sparsity, with the arm that lacks it. Raises UserError for what this model or device can't do."""
    try:
        cls = methods.get(wanted.method)
        dense_kernel = resolve_dense(wanted.dense_kernel, device=loaded.device, dtype=loaded.dtype, head_dim=loaded.head_dim)
        setting = Setting(
            model=loaded.name, model_hash=loaded.revision_hash, length=wanted.length, seed=wanted.seed,
            dtype=str(loaded.dtype).removeprefix("torch."), device_type=loaded.device.type, dense_kernel=dense_kernel,
        )  # fmt: skip
        arms = [Ready(Arm(setting, baseline_name(), 0.0), None)]
        if cls.family != "none":
            arms.append(_sparse(wanted, loaded, setting, calibrated))
    except UserError:
        raise
    except ValueError as error:  # methods/ and kernels/ raise plain ValueErrors, one line each, for what they can't do
        raise UserError(str(error)) from error
    return arms


def baseline_name() -> str:
    """The name of the method that drops nothing, with which all others are compared."""
    found = [name for name in methods.names() if methods.get(name).family == "none"]
    if len(found) != 1:
        raise UserError(f"methods of family none: {', '.join(found) or 'not one'}; there must be one, the baseline")
    return found[0]


def build(wanted: Settings) -> Method:
    """The method with its knobs."""
    shared = {"block_size": wanted.block_size, "sparsity": wanted.sparsity, "seed": wanted.seed}
    try:
        return methods.build(wanted.method, **(shared | wanted.method_knobs))
    except TypeError as error:  # a word where a number belongs, say
        knobs = ", ".join(f"method.{k}={v}" for k, v in wanted.method_knobs.items())
        raise UserError(f"method {wanted.method} can't be made with {knobs}: {error}") from error


def _sparse(wanted: Settings, loaded: LoadedModel, setting: Setting, calibrated: Calibrated | None) -> Ready:
    method = build(wanted)
    kernel = _kernel(wanted, loaded, method)
    weights = method.weights_name()
    weights_hash = None
    if weights is not None:
        path = weights_folder(wanted, loaded) / weights
        _load(method, path, wanted, loaded)
        weights_hash = file_hash(path)
    each = Ready(
        Arm(
            setting, method.name, method.sparsity, {**wanted.method_knobs, **method.knobs()}, method.block_size, kernel,
            weights_hash,
        ),
        method.to(loaded.device),
    )  # fmt: skip
    knob = method.calibrates()
    if knob is None or calibrated is None:
        return each
    method.set_knob(knob, calibrated(each, knob))
    return Ready(replace(each.arm, knobs={**wanted.method_knobs, **method.knobs()}), method)


def _kernel(wanted: Settings, loaded: LoadedModel, method: Method) -> str:
    """The kernel that the method's blocks call for. A method may share an index between the heads of a GQA group without
    saying so: a kernel that runs only where they do is let through, and refused at its first call if they don't. What ran
    is recorded from the calls themselves."""
    group = loaded.heads // loaded.kv_heads
    shape: dict[str, Any] = {
        "device": loaded.device, "dtype": loaded.dtype, "head_dim": loaded.head_dim,
        "q_block": method.block_size, "k_block": method.block_size,
    }  # fmt: skip
    try:
        return resolve_kernel(wanted.kernel, **shape, shared=group if getattr(method, "shared", False) else 1)
    except ValueError:
        with suppress(ValueError):
            return resolve_kernel(wanted.kernel, **shape, shared=group)
        raise


def weights_folder(wanted: Settings, loaded: LoadedModel) -> Path:
    """Where trained weights of a method for this model lie: `model.gates` if given; the model's folder if the user
    named one (or it is the bundled model); `gates/ID` for a model from the hub, whose cache isn't ours: by its id, not by
    what a yaml calls it."""
    if wanted.model.get("gates"):
        return Path(wanted.model["gates"]).expanduser()
    path = str(wanted.model["path"])
    if loaded.path is not None and (path == "bundled" or Path(path).expanduser().is_dir()):
        return loaded.path
    return Path(OWN_GATES) / re.sub(r"[^\w.-]+", "-", path)


def _load(method: Method, path: Path, wanted: Settings, loaded: LoadedModel) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(
            f"no weights of {method.name} for {loaded.name} at block size {method.block_size}: {path} is missing; "
            f"train them with `python -m harness job=distill method={method.name} {_model_overrides(wanted)}"
            f"block_size={method.block_size}`"
        )
    try:
        state = load_file(str(path), device=str(loaded.device))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no safetensors file ({error}); train the weights again with job=distill") from error
    shape = {"layers": loaded.layers, "heads": loaded.heads, "kv_heads": loaded.kv_heads, "head_dim": loaded.head_dim}
    try:
        method.load(state, **shape)
    except ValueError as error:
        raise UserError(f"{path} does not fit {loaded.name}: {error}") from error


def _model_overrides(wanted: Settings) -> str:
    """How this model is named on the command line; `hf` takes any path, and the folder of the gates is the same."""
    path = str(wanted.model["path"])
    return "model=bundled " if path == "bundled" else f"model=hf model.path={path} "
