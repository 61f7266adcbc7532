"""Running the cells of one command: the arms, dense first, on the same samples; accuracy, then times."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from rich.console import Console

from harness import tasks
from harness.arms.build import build_arms, decodes_densely
from harness.arms.warnings import arm_warnings
from harness.core.errors import UserError
from harness.core.question import QUESTION_SEEN
from harness.core.settings import Settings
from harness.measure import perplexity
from harness.measure.accuracy import evaluate
from harness.measure.context import RunContext
from harness.measure.kept_mass import measure_mass
from harness.measure.knob_values import with_calibrated_knob
from harness.measure.latency.record import time_arm
from harness.models.bridge import Bridge
from harness.models.loading import LoadedModel, ModelConfig, load_model
from harness.study.store import Store


@dataclass
class Done:
    """What a command did: the ids of its arms and how many cells failed."""

    arms: set[str] = field(default_factory=set)
    failed: int = 0


def measure(settings: Settings, store: Store, console: Console) -> Done:
    """Run what the settings ask for and the records of `store` don't have yet. Raises UserError for bad input."""
    loaded = model_of(settings)
    if settings.length > loaded.max_length:
        raise UserError(
            f"length={settings.length}: {loaded.name} has a context of {loaded.max_length} tokens; "
            f"choose length={loaded.max_length} or less"
        )
    context = RunContext(settings, loaded, store, console)
    names = tasks.group(settings.tasks)
    if settings.job in ("latency", "perplexity") and not decodes_densely(settings.decode):
        raise UserError(
            f"job={settings.job} measures prefill, which decode={settings.decode} does not change: leave decode out"
        )
    if settings.question != QUESTION_SEEN and (silent := [name for name in names if not tasks.get(name).asks]):
        found = ", ".join(silent)
        raise UserError(f"question={settings.question}: no question follows the context in {found}: leave these tasks out")
    arms = [with_calibrated_knob(context, settings, arm, names) for arm in build_arms(settings, loaded)]
    with Bridge(loaded, None, dense_kernel=settings.dense_kernel):
        pass  # a model whose attention can't be changed stops here, not in every cell
    texts = perplexity.read(context) if settings.job == "perplexity" else None
    for arm in arms:
        for line in arm_warnings(arm, settings.model, loaded):
            context.complain(line)
    done = Done({arm.identity.id for arm in arms})
    for arm in arms:
        if texts is not None:
            done.failed += perplexity.measure(context, arm, texts)
            continue
        if settings.job == "evaluate":
            done.failed += evaluate(context, arm, names)
        if settings.job == "kept_mass":
            done.failed += measure_mass(context, arm, names)
            continue
        timed = arm.method is not None or arm.baseline  # dense prefill is timed with the baseline
        if timed and (settings.latency or settings.job == "latency"):
            done.failed += time_arm(context, arm, names)
    return done


def model_of(settings: Settings) -> LoadedModel:
    """The model of the settings; the jobs of a sweep share it."""
    name, path = str(settings.model["name"]), str(settings.model["path"])
    return _load(ModelConfig(name=name, path=path, dtype=settings.dtype, device=settings.device))


@lru_cache(maxsize=1)
def _load(config: ModelConfig) -> LoadedModel:
    from transformers.utils import logging

    logging.disable_progress_bar()  # of the weights; the only bar is that of the samples
    return load_model(config)
