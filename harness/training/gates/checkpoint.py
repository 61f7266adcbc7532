"""What a killed training needs to go on as if nothing had happened.

Weights, AdamW's moments, and the steps so far; the schedule follows from the step. Training itself draws no random
numbers: those of the text belong to its source, which is run again to the same row.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from harness.core.errors import UserError
from harness.core.files import write_atomically


@dataclass(frozen=True)
class Step:
    """One training step.

    loss: KL in nats. recall: at STEP_DENSITY, of a sample of the rows. Both are means over layers, heads and rows. tokens: seen
    up to here. grad_norm: of the gradient before clipping. seconds: the drawing of the next step's text included.
    """

    step: int
    loss: float
    recall: float
    lr: float
    tokens: int
    grad_norm: float
    seconds: float


AnyStep = TypeVar("AnyStep")
"""The dataclass of a training's steps."""


@dataclass(frozen=True)
class Checkpoint:
    """Where the state of a training is written, every `every` steps, and what it is of.

    The file is there from before the first step until everything that a training gives is written: it says that there is
    something to go on with.

    about: all that changes the result, by the names of the settings; a state of anything else is refused. training: the
    name of this training in the records, the same after a restart. replaces: the training began with job.overwrite=true.
    trains: what, for messages.
    """

    path: Path
    every: int
    about: dict[str, Any]
    training: str = ""
    replaces: bool = False
    trains: str = "gates"

    def due(self, done: int, steps: int) -> bool:
        """Tell whether the state is to be written after `done` of so many steps."""
        return self.every > 0 and (done % self.every == 0 or done == steps)

    def begin(self) -> None:
        """Write the state before the first step, in place of any other: gates and optimiser are as new ones."""
        self._write(None, None, [])

    def save(self, modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer, steps: Sequence[Any]) -> None:
        """Write the state, whole or not at all. modules: what is trained, gates or others. steps: dataclasses, as `Step` is."""
        self.save_states([module.state_dict() for module in modules], optimizer.state_dict(), steps)

    def save_states(self, modules: list[dict[str, Any]], optimizer: dict[str, Any], steps: Sequence[Any]) -> None:
        """Write states as `save` does, from dicts."""
        self._write(modules, optimizer, [asdict(step) for step in steps])

    def _write(self, gates: list[Any] | None, optimizer: dict[str, Any] | None, steps: list[dict[str, Any]]) -> None:
        state = {"about": self.about, "training": self.training, "replaces": self.replaces}
        state |= {"gates": gates, "optimizer": optimizer, "steps": steps}
        write_atomically(self.path, lambda file: torch.save(state, file))

    def read(self) -> dict[str, Any] | None:
        """Return the state in the file, on the CPU; None where there is none, or none of other settings that is worth keeping.

        Raises UserError where it can't be read or is of another training.
        """
        if not self.path.exists():
            return None
        cure = "remove it, or say job.overwrite=true, to begin anew"
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            about, steps, *_ = (state[key] for key in ("about", "steps", "training", "replaces", "gates", "optimizer"))
        except (RuntimeError, LookupError, TypeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise UserError(f"{self.path} is no checkpoint of {self.trains} ({type(error).__name__}): {cure}") from None
        for name in sorted(about.keys() | self.about.keys()):
            recorded, current = about.get(name), self.about.get(name)
            if recorded != current:
                if not steps:  # it had only begun
                    return None
                raise UserError(
                    f"{self.path} is of a training with {name}={recorded}, not {current}: go on with that, or {cure}"
                )
        return state

    def remove(self) -> None:
        """Delete the file, if it is there."""
        self.path.unlink(missing_ok=True)


def restore(
    state: dict[str, Any], modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer, step_type: type[AnyStep]
) -> list[AnyStep]:
    """Put a state into what is trained, as new, and its optimiser; return the steps that were done, as `step_type`."""
    if not state["steps"]:
        return []
    for module, weights in zip(modules, state["gates"], strict=True):
        module.load_state_dict(weights)
    optimizer.load_state_dict(state["optimizer"])
    return [step_type(**step) for step in state["steps"]]
