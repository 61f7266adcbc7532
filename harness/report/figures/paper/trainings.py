"""The trainings of a study of fine-tuning, from its records: which model each made, from what, under which attention."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from harness.study.store import Record


@dataclass(frozen=True)
class Trained:
    """A training: the folder that it made, by whose name rows call the model; the model that it began with; the method and
    sparsity of its attention; its seed; and whether gates alone learnt."""

    name: str
    began_with: str
    method: str
    sparsity: str
    seed: str
    gates_only: bool

    @property
    def arm(self) -> str:
        """Return the method and the sparsity, as a line is called; of dense attention no sparsity."""
        return self.method if self.sparsity in ("0", "0.0") else f"{self.method} {self.sparsity}"


def read_trainings(steps: Iterable[Record]) -> dict[str, Trained]:
    """Return the trainings of records of steps by the names of their models; the later one of a name."""
    return {one.name: one for one in (_trained(record["about"]) for record in steps if record["about"]) if one.name}


def _trained(about: dict[str, Any]) -> Trained:
    texts = [str(about.get(key, "")) for key in ("out", "model", "method", "sparsity", "seed")]
    name, began_with, method, sparsity, seed = texts
    return Trained(name, began_with, method, sparsity, seed, about.get("gates_only") is True)


def base_of(model: str, trainings: dict[str, Trained]) -> str:
    """Return the model that all trainings on the way to this one began with; itself where none made it."""
    seen = {model}
    while model in trainings and trainings[model].began_with not in seen:
        model = trainings[model].began_with
        seen.add(model)
    return model


def training_text(model: str, trainings: dict[str, Trained]) -> str:
    """Return in a few words how a model was fine-tuned; empty for one that was not."""
    if (trained := trainings.get(model)) is None:
        return ""
    if trained.gates_only:
        before = trainings.get(trained.began_with)
        return f"{before.arm if before else trained.began_with}, gates after"
    return f"trained with {trained.arm}"
