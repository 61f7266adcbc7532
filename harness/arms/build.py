"""From settings to arms that are ready to run: the method built, its weights loaded, the kernels resolved by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attention_kernels import column_sparse
from attention_kernels.block_sparse import resolve_kernel
from attention_kernels.decode import resolve_decode
from attention_kernels.dense import resolve_dense
from attention_kernels.skip_softmax import resolve_skip

import methods
from harness.arms import gate_files, head_files
from harness.arms.head_files import model_overrides
from harness.core.errors import UserError
from harness.core.method_facts import method_facts
from harness.core.settings import Settings
from harness.models.loading import LoadedModel
from harness.study.identity import ArmIdentity, Decoding, Setting
from harness.study.provenance import file_hash
from methods import decode
from methods.decode.parts.base import DecodeMethod
from methods.parts.base import Knob, Method

OWN_GATES = "gates"
"""Folder (below the working folder) for trained weights of a model whose own folder is not ours to write into."""


@dataclass(frozen=True)
class RunnableArm:
    """An arm and what runs it; method None is dense attention at prefill, decoding None dense attention at decode."""

    identity: ArmIdentity
    method: Method | None
    decoding: DecodeMethod | None = None

    @property
    def baseline(self) -> bool:
        """Whether it is the arm that all others are compared with."""
        return self.method is None and self.decoding is None


Calibrated = Callable[[RunnableArm, Knob], float]
"""Finds the value of a knob for an arm's sparsity."""


def build_arms(settings: Settings, loaded: LoadedModel, calibrated: Calibrated | None = None) -> list[RunnableArm]:
    """The arms of one command, the dense baseline first. `calibrated` is called where a knob must be found for the
    sparsity, with the arm that lacks it. Raises UserError for what this model or device can't do."""
    try:
        cls = methods.get(settings.method)
        dense_kernel = resolve_dense(settings.dense_kernel, device=loaded.device, dtype=loaded.dtype, head_dim=loaded.head_dim)
        setting = Setting(
            model=loaded.name,
            model_hash=loaded.revision_hash,
            length=settings.length,
            seed=settings.seed,
            dtype=str(loaded.dtype).removeprefix("torch."),
            device_type=loaded.device.type,
            dense_kernel=dense_kernel,
        )
        arms = [RunnableArm(ArmIdentity(setting, baseline_name(), 0.0), None)]
        found, decoding = _decoding(settings, loaded)
        if cls.family != "none":
            sparse = _sparse(settings, loaded, setting, calibrated)
            arms.append(replace(sparse, identity=replace(sparse.identity, decode=found), decoding=decoding))
        elif decoding is not None:
            arms.append(RunnableArm(replace(arms[0].identity, decode=found), None, decoding))
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


def _decoding(settings: Settings, loaded: LoadedModel) -> tuple[Decoding | None, DecodeMethod | None]:
    """The method that decodes, for the arm and as it runs; None twice for full attention."""
    method = build_decoding(settings)
    if method.family == "none":
        return None, None
    kernel = resolve_decode(
        settings.decode_kernel,
        device=loaded.device,
        dtype=loaded.dtype,
        head_dim=loaded.head_dim,
        k_block=method.block_size,
        rows=loaded.heads // loaded.kv_heads,
    )
    weights_hash = load_weights(method, "decode", settings, loaded)
    return Decoding(method.name, method.knobs(), kernel, weights_hash), method.to(loaded.device)


def full_decode(settings: Settings) -> bool:
    """Whether tokens after the first are to attend to everything."""
    try:
        return decode.get(settings.decode).family == "none"
    except ValueError as error:
        raise UserError(str(error)) from error


def build_decoding(settings: Settings) -> DecodeMethod:
    """The method of decoding with its knobs."""
    try:
        return decode.build(settings.decode, **{"seed": settings.seed} | settings.decode_knobs)
    except TypeError as error:  # a word where a number belongs, say
        knobs = ", ".join(f"decode.{k}={v}" for k, v in settings.decode_knobs.items())
        raise UserError(f"decode method {settings.decode} can't be made with {knobs}: {error}") from error


def build(settings: Settings) -> Method:
    """The method with its knobs."""
    shared = {"block_size": settings.block_size, "sparsity": settings.sparsity, "seed": settings.seed}
    try:
        return methods.build(settings.method, **(shared | settings.method_knobs))
    except TypeError as error:  # a word where a number belongs, say
        knobs = ", ".join(f"method.{k}={v}" for k, v in settings.method_knobs.items())
        raise UserError(f"method {settings.method} can't be made with {knobs}: {error}") from error


def _sparse(settings: Settings, loaded: LoadedModel, setting: Setting, calibrated: Calibrated | None) -> RunnableArm:
    method = build(settings)
    kernel = _kernel(settings, loaded, method)
    weights_hash = load_weights(method, "method", settings, loaded)
    found = head_files.load(method, weights_folder(settings, loaded), settings, loaded)
    if found is not None:
        weights_hash = found if weights_hash is None else f"{weights_hash}+{found}"
    arm = RunnableArm(
        ArmIdentity(setting, method.name, method.sparsity, _knobs(settings, method), method.block_size, kernel, weights_hash),
        method.to(loaded.device),
    )
    knob = method.calibrates()
    if knob is None or calibrated is None:
        return arm
    method.set_knob(knob, calibrated(arm, knob))
    return RunnableArm(replace(arm.identity, knobs=_knobs(settings, method)), method)


def _knobs(settings: Settings, method: Method) -> dict[str, Any]:
    """The knobs of an arm: as asked for, then as the method has them."""
    knobs = {**settings.method_knobs, **method.knobs()}
    return {name: value for name, value in knobs.items() if (name, value) not in method_facts(method.name).added_knobs.items()}


def with_knob(settings: Settings, arm: RunnableArm, knob: Knob, value: float) -> RunnableArm:
    """Return the arm with a knob of its method set to a value that was found for its sparsity."""
    assert arm.method is not None
    arm.method.set_knob(knob, value)
    return replace(arm, identity=replace(arm.identity, knobs=_knobs(settings, arm.method)))


def at_zero(settings: Settings, loaded: LoadedModel) -> Method | None:
    """The method as it is at sparsity 0, where it must keep everything, ready to run. Knobs that a sparsity doesn't go with
    are left out; None where none will do."""
    for knobs in (settings.method_knobs, {}):
        zero = replace(settings, sparsity=0.0, method_knobs=knobs)
        with suppress(ValueError):
            method = build(zero)
            load_weights(method, "method", zero, loaded)
            head_files.load(method, weights_folder(zero, loaded), zero, loaded)
            return method.to(loaded.device)
    return None


def _kernel(settings: Settings, loaded: LoadedModel, method: Method) -> str:
    """The kernel that the method's blocks call for. A method may share an index between the heads of a GQA group without
    saying so: a kernel that runs only where they do is let through, and refused at its first call if they don't. What ran
    is recorded from the calls themselves."""
    group = loaded.heads // loaded.kv_heads
    shape: dict[str, Any] = {
        "device": loaded.device,
        "dtype": loaded.dtype,
        "head_dim": loaded.head_dim,
        "q_block": method.block_size,
        "k_block": method.block_size,
    }
    if method.columns:
        return column_sparse.resolve_kernel(settings.kernel, **shape)
    if method.in_kernel:
        return resolve_skip(settings.kernel, **shape)
    try:
        return resolve_kernel(settings.kernel, **shape, shared=group if getattr(method, "shared", False) else 1)
    except ValueError:
        with suppress(ValueError):
            return resolve_kernel(settings.kernel, **shape, shared=group)
        raise


def weights_folder(settings: Settings, loaded: LoadedModel) -> Path:
    """Where trained weights of a method for this model lie: `model.gates` if given; the model's folder if the user
    named one (or it is the bundled model); `gates/ID` for a model from the hub, whose cache isn't ours: by its id, not by
    what a yaml calls it."""
    if settings.model.get("gates"):
        return Path(settings.model["gates"]).expanduser()
    path = str(settings.model["path"])
    if loaded.path is not None and (path == "bundled" or Path(path).expanduser().is_dir()):
        return loaded.path
    return Path(OWN_GATES) / re.sub(r"[^\w.-]+", "-", path)


def load_weights(method: Method | DecodeMethod, group: str, settings: Settings, loaded: LoadedModel) -> str | None:
    """Load the trained weights of a method, if it needs any; returns the hash of their file. group: of the command line."""
    if (name := method.weights_name()) is None:
        return None
    folder = weights_folder(settings, loaded)
    training = settings.method_knobs.get("gates") if group == "method" else None
    path = gate_files.find(folder, name, method.gate, released_id(settings, group), training=training)
    if path is None:
        size = "block_size" if group == "method" else f"{group}.block_size"
        raise UserError(
            f"no weights of {method.name} for {loaded.name} at block size {method.block_size}: {folder / name} is missing; "
            f"name the folder that has them (model.gates=FOLDER), or train them with "
            f"`python -m harness job=distill {group}={method.name} {model_overrides(settings)}"
            f"{size}={method.block_size}{'' if training is None else f' method.gates={training}'}`"
        )
    state = gate_files.read(path, method.gate, block_size=method.block_size)
    state = gate_files.fit(state, path, loaded, settings.length)
    try:
        method.load(state, **head_files.model_shape(loaded))
    except ValueError as error:
        raise UserError(f"{path} does not fit {loaded.name}: {error}") from error
    return file_hash(path)


def released_id(settings: Settings, group: str) -> str | None:
    """Where the hub has gates of this model from their authors, for the method of that group of the command line."""
    ids = settings.model.get("released_gates") or {}
    return ids.get("prefill" if group == "method" else group)
