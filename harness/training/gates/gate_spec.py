"""Which gates a command trains, measures or converts: their kind, block size and file, from its settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import methods
from harness.arms.build import build_decode_method, build_method, decodes_densely
from harness.core.errors import UserError
from harness.core.mistakes import as_user_error
from harness.core.settings import Settings
from methods import decode
from methods.gates.gate import Gate
from methods.gates.weights import with_training_name


@dataclass(frozen=True)
class GateSpec:
    """Gates of a kind, for blocks of a size, in a file named by a pattern. q_linear: an option of AttnGate. training: the name
    of one of several trainings, which gates for decoding have not (`decoding`)."""

    kind: type[Gate]
    file: str
    block_size: int
    q_linear: bool = False
    training: str | None = None
    decoding: bool = False

    @property
    def file_name(self) -> str:
        """Return the file's name for this block size."""
        return self.file.format(block_size=self.block_size)

    @property
    def suffix(self) -> str:
        """Return what tells the files of one training from another's in a study: block size and name."""
        return self.file_name.partition(".")[0].removeprefix("gates-")

    def named(self, training: str) -> GateSpec:
        """Return the gates of a named training. Raises ValueError for a name that can't be part of a file's name."""
        return replace(self, file=with_training_name(self.file, training), training=training)

    @property
    def options(self) -> dict[str, bool]:
        """Return the options that gates of this kind are built with."""
        return {"q_linear": True} if self.q_linear else {}


def gate_spec(settings: Settings) -> GateSpec:
    """Return the gates that the settings name: the decode method's, if one is named, else the prefill method's.

    Raises UserError where the method has none.
    """
    try:
        if not decodes_densely(settings.decode):
            decoding = build_decode_method(replace(settings, as_released=False))  # gates are of the settings as they stand
            return GateSpec(*_gates("decode method", decoding, decode), decoding.block_size, decoding=True)
        kind, file = _gates("method", methods.get(settings.method), methods)
        if settings.sparsity is not None:
            build_method(replace(settings, as_released=False))  # a knob that is wrong is said now, not when the gates are used
        training = settings.method_knobs.get("gates")
        file = with_training_name(file, training)
    except ValueError as error:
        raise as_user_error(error) from error
    return GateSpec(kind, file, settings.block_size, bool(settings.method_knobs.get("q_linear", False)), training)


def _gates(role: str, method: Any, registry: ModuleType) -> tuple[type[Gate], str]:
    """Return the kind of a method's gates and how their file is named. Raises UserError where it has none."""
    if method.gate is None:
        able = [name for name in registry.names() if registry.get(name).gate is not None]
        raise UserError(f"{role} {method.name} has no gates to train; choose one of: {', '.join(able)}")
    return method.gate, str(method.weights)
