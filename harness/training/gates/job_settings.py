"""The `job` group of the commands that train or measure gates, checked before a model is loaded."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig

from harness.core import checks
from harness.core.errors import UserError
from harness.core.settings import LONGEST
from harness.training.gates.gate_spec import GateSpec
from harness.training.gates.recipe import Recipe
from harness.training.gates.rows import KINDS


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
    if not lengths or not all(type(length) is int and 2 * block_size <= length <= LONGEST for length in lengths):
        raise UserError(
            f"job.lengths={value}: must be a list of whole numbers, each at least {2 * block_size}, two blocks, for example "
            "[4096,8192]"
        )
    return lengths


def whole_number(job: DictConfig, name: str, least: int | None = None) -> int:
    """Return a setting of the job. Raises UserError unless it is a whole number of at least `least`."""
    return checks.whole_number(f"job.{name}", job[name], least)


def _number(job: DictConfig, name: str) -> float:
    return checks.number(f"job.{name}", job[name])


def check_rows(job: DictConfig) -> None:
    """Raise UserError for a kind of rows that there isn't, or a data set that has no name."""
    if job.rows not in KINDS:
        raise UserError(f"job.rows={'null' if job.rows is None else job.rows}: must be one of {', '.join(KINDS)}")
    if job.rows == "hub":
        checks.text("job.hub", job.hub)
