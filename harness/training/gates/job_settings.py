"""The `job` group of the commands that train or measure gates, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from harness.core import checks
from harness.core.errors import UserError, did_you_mean
from harness.core.settings import LARGEST_SEED, LONGEST
from harness.training.gates.gate_spec import GateSpec
from harness.training.gates.recipe import Recipe
from harness.training.gates.rows import KINDS

OF_A_TRAINING = (
    "steps",
    "first_step",
    "lr",
    "warmup",
    "min_lr",
    "weight_decay",
    "clip",
    "pool",
    "skip_rows",
    "row_weight",
    "dtype",
    "seed",
    "pooling",
    "block_rope",
)
"""The settings that each of job.trainings may have of its own; `seed` is that of its first weights, the last two are options
of its gates."""


@dataclass(frozen=True)
class TrainingSettings:
    """What a command is told of one of its trainings: its gates, its recipe, and the first of the text's batches that it
    learns from."""

    spec: GateSpec
    recipe: Recipe
    first_step: int

    @property
    def end(self) -> int:
        """Return how many batches of the text there must be."""
        return self.first_step + self.recipe.steps


def read_trainings(job: DictConfig, spec: GateSpec, seed: int) -> list[TrainingSettings]:
    """Return the trainings that job.trainings names, each with its own settings in place of the job's; without it the one that
    the job's settings are of.

    Raises UserError for a value that is of the wrong type or out of range, and for names or settings that can't be.
    """
    if job.trainings is None:
        return [TrainingSettings(spec, _recipe(job, spec, seed), whole_number(job, "first_step", 0))]
    example = "for example {short:{steps:400},long:{steps:1600,lr:3e-3}}"
    if not isinstance(job.trainings, DictConfig) or not job.trainings:
        raise UserError(f"job.trainings={job.trainings}: must be null, or settings by the names of trainings, {example}")
    if spec.decoding:
        raise UserError("job.trainings: gates for decoding have no names; train them one after the other, job.trainings=null")
    if spec.training is not None:
        raise UserError(f"method.gates={spec.training} names one training and job.trainings several: leave out one of them")
    return [_named_training(job, spec, name, own, seed, example) for name, own in job.trainings.items()]


def _named_training(job: DictConfig, spec: GateSpec, name: Any, own: Any, seed: int, example: str) -> TrainingSettings:
    """Return one of job.trainings. own: its settings. Raises UserError, naming the training, for one that can't be."""
    if not isinstance(own, DictConfig):
        given = "null" if own is None else own
        raise UserError(f"job.trainings.{name}={given}: must be settings by name, {example}")
    for setting in map(str, own):
        if setting not in OF_A_TRAINING:
            near, choices = did_you_mean(setting, OF_A_TRAINING), ", ".join(OF_A_TRAINING)
            raise UserError(f"job.trainings.{name}.{setting} is no setting of a training{near}; choose from: {choices}")
    merged = OmegaConf.create({**job, "seed": seed, **own})
    assert isinstance(merged, DictConfig)
    try:
        options = {
            option: checks.true_or_false(option, own[option]) if isinstance(usual, bool) else own[option]
            for option, usual in spec.kind.options.items()
            if option in own
        }
        own_spec = spec.named(name, options)
        recipe = _recipe(merged, own_spec, whole_number(merged, "seed", 0, LARGEST_SEED))
        return TrainingSettings(own_spec, recipe, whole_number(merged, "first_step", 0))
    except ValueError as error:
        raise UserError(f"job.trainings.{name}: {error}") from error


def _recipe(job: DictConfig, spec: GateSpec, seed: int) -> Recipe:
    return read_recipe(job, spec.block_size, seed, spec.options)


def read_recipe(job: DictConfig, block_size: int, seed: int, options: Mapping[str, Any]) -> Recipe:
    """Return the recipe that the settings name. options: of the gates, those that are not as usual.

    Raises UserError for a value that is of the wrong type or out of range.
    """
    return Recipe(
        steps=whole_number(job, "steps"),
        block_size=block_size,
        lr=_number(job, "lr"),
        warmup=whole_number(job, "warmup"),
        min_lr=_number(job, "min_lr"),
        weight_decay=_number(job, "weight_decay"),
        clip=None if job.clip is None else _number(job, "clip"),
        pool=str(job.pool),
        skip_rows=_number(job, "skip_rows"),
        row_weight=str(job.row_weight),
        micro_rows=None if job.micro_rows is None else whole_number(job, "micro_rows"),
        dtype=str(job.dtype),
        seed=seed,
        **options,
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


def whole_number(job: DictConfig, name: str, least: int | None = None, most: int = LONGEST) -> int:
    """Return a setting of the job. Raises UserError unless it is a whole number from `least` to `most`."""
    return checks.whole_number(f"job.{name}", job[name], least, most)


def _number(job: DictConfig, name: str) -> float:
    return checks.number(f"job.{name}", job[name])


def check_rows(job: DictConfig) -> None:
    """Raise UserError for a kind of rows that there isn't, or a data set that has no name."""
    if job.rows not in KINDS:
        raise UserError(f"job.rows={'null' if job.rows is None else job.rows}: must be one of {', '.join(KINDS)}")
    if job.rows == "hub":
        checks.text("job.hub", job.hub)
