"""The `job` group of the commands that train or measure gates, checked before a model is loaded."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig

from harness.core.errors import UserError
from harness.training.gates.gate_spec import GateSpec
from harness.training.gates.recipe import Recipe


def read_recipe(job: DictConfig, spec: GateSpec, seed: int) -> Recipe:
    """Return the recipe that the settings name. Raises UserError for a value that is of the wrong type or out of range."""
    return Recipe(
        steps=whole_number(job, "steps"),
        block_size=spec.block_size,
        lr=_number(job, "lr"),
        warmup=whole_number(job, "warmup"),
        min_lr=_number(job, "min_lr"),
        weight_decay=_number(job, "weight_decay"),
        clip=None if job.clip is None else _number(job, "clip"),
        pool=str(job.pool),
        skip_rows=_number(job, "skip_rows"),
        row_weight=str(job.row_weight),
        micro_rows=None if job.micro_rows is None else whole_number(job, "micro_rows"),
        q_linear=spec.q_linear,
        dtype=str(job.dtype),
        seed=seed,
    )


def read_lengths(value: Any, block_size: int) -> list[int]:
    """Return job.lengths, in tokens. Raises UserError unless it is a list of whole numbers of at least two blocks each."""
    lengths = list(value) if isinstance(value, ListConfig) else []
    if not lengths or not all(type(length) is int and length >= 2 * block_size for length in lengths):
        raise UserError(
            f"job.lengths={value}: must be a list of whole numbers, each at least {2 * block_size}, two blocks, for example "
            "[4096,8192]"
        )
    return lengths


def whole_number(job: DictConfig, name: str, least: int | None = None) -> int:
    """Return a setting of the job. Raises UserError unless it is a whole number of at least `least`."""
    value = job[name]
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise UserError(f"job.{name}={value}: must be a whole number" + ("" if least is None else f" of at least {least}"))
    return value


def _number(job: DictConfig, name: str) -> float:
    value = job[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"job.{name}={value}: must be a number")
    return float(value)
