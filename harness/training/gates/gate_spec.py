"""Which gates a command trains, measures or converts: their kind, block size and file, from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import methods
from harness.arms.build import build_decode_method, build_method, decodes_densely
from harness.core.errors import UserError
from harness.core.mistakes import as_user_error
from harness.core.settings import Settings
from methods import decode
from methods.gates.gate import Gate
from methods.gates.weights import training_name, with_training_name


@dataclass(frozen=True)
class GateSpec:
    """Gates of a kind, for blocks of a size, in a file named by a pattern. options: of the kind, those that are not as usual.
    training: the name of one of several trainings, which gates for decoding have not (`decoding`)."""

    kind: type[Gate]
    file: str
    block_size: int
    options: Mapping[str, Any] = field(default_factory=dict)
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

    @property
    def name(self) -> str | None:
        """Return what the file's name has beside the block size, None where it has nothing: no release stands for others."""
        name: str | None = training_name(self.kind, {**self.options, "gates": self.training})
        return name

    def named(self, training: str, own: Mapping[str, Any]) -> GateSpec:
        """Return the gates of a named training, with options of its own in place of these.

        Raises ValueError for a name that can't be part of a file's name, for options that there aren't, and for a name that
        does not end in that of unusual options: the method looks for them under such a name.
        """
        pattern = self.file if self.name is None else self.file.replace(f"-{self.name}.", ".")
        options = self.kind.unusual({**self.options, **own})
        variant, given = self.kind.variant(options), str(training)
        file = with_training_name(pattern, training)
        if variant is not None and f"_{given}".endswith(f"_{variant}"):
            training = given.removesuffix(variant).removesuffix("_")
        elif variant is not None:
            raise ValueError(f"its gates are found by their options: call it {variant}, or {given}_{variant}")
        return replace(self, file=file, training=training or None, options=options)


def gate_spec(settings: Settings) -> GateSpec:
    """Return the gates that the settings name: the decode method's, if one is named, else the prefill method's.

    Raises UserError where the method has none.
    """
    try:
        if not decodes_densely(settings.decode):
            decoding = build_decode_method(replace(settings, as_released=False))  # gates are of the settings as they stand
            return GateSpec(*_gates("decode method", decoding, decode), decoding.block_size, decoding=True)
        knobs = settings.method_knobs
        kind, file = _gates("method", methods.get(settings.method), methods)
        if settings.sparsity is not None:
            build_method(replace(settings, as_released=False))  # a knob that is wrong is said now, not when the gates are used
        file = with_training_name(file, training_name(kind, knobs))
    except ValueError as error:
        raise as_user_error(error) from error
    return GateSpec(kind, file, settings.block_size, kind.unusual(knobs), knobs.get("gates"))


def _gates(role: str, method: Any, registry: ModuleType) -> tuple[type[Gate], str]:
    """Return the kind of a method's gates and how their file is named. Raises UserError where it has none."""
    if method.gate is None:
        able = [name for name in registry.names() if registry.get(name).gate is not None]
        raise UserError(f"{role} {method.name} has no gates to train; choose one of: {', '.join(able)}")
    return method.gate, str(method.weights)
