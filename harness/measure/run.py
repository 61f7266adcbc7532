"""Running the cells of one command: the arms, dense first, on the same samples; accuracy, then times."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from rich.console import Console

from harness import tasks
from harness.arms.build import full_decode, ready
from harness.arms.warnings import notices
from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.measure import perplexity
from harness.measure.accuracy import evaluate
from harness.measure.context import Bench
from harness.measure.kept_mass import measure_mass
from harness.measure.knob_values import knob_value
from harness.measure.latency.record import time_arm
from harness.models.bridge import Bridge
from harness.models.loading import LoadedModel, ModelConfig, load_model
from harness.study.identity import SEEN
from harness.study.store import Store


@dataclass
class Done:
    """What a command did: the ids of its arms and how many cells failed."""

    arms: set[str] = field(default_factory=set)
    failed: int = 0


def measure(wanted: Settings, store: Store, console: Console) -> Done:
    """Run what the settings ask for and the records of `store` don't have yet. Raises UserError for bad input."""
    loaded = model_of(wanted)
    if wanted.length > loaded.max_length:
        raise UserError(
            f"length={wanted.length}: {loaded.name} has a context of {loaded.max_length} tokens; "
            f"choose length={loaded.max_length} or less"
        )
    bench = Bench(wanted, loaded, store, console)
    names = tasks.group(wanted.tasks)
    if wanted.job in ("latency", "perplexity") and not full_decode(wanted):
        raise UserError(f"job={wanted.job} measures prefill, which decode={wanted.decode} does not change: leave decode out")
    if wanted.question != SEEN and (silent := [name for name in names if not tasks.get(name).asks]):
        found = ", ".join(silent)
        raise UserError(f"question={wanted.question}: no question follows the context in {found}: leave these tasks out")
    arms = ready(wanted, loaded, lambda each, knob: knob_value(bench, each, knob, names))
    with Bridge(loaded, None, dense_kernel=wanted.dense_kernel):
        pass  # a model whose attention can't be changed stops here, not in every cell
    texts = perplexity.read(bench) if wanted.job == "perplexity" else None
    for each in arms:
        for line in notices(each, wanted, loaded):
            bench.complain(line)
    done = Done({each.arm.id for each in arms})
    for each in arms:
        if texts is not None:
            done.failed += perplexity.measure(bench, each, texts)
            continue
        if wanted.job == "evaluate":
            done.failed += evaluate(bench, each, names)
        if wanted.job == "kept_mass":
            done.failed += measure_mass(bench, each, names)
            continue
        timed = each.method is not None or each.baseline  # dense prefill is timed with the baseline
        if timed and (wanted.latency or wanted.job == "latency"):
            done.failed += time_arm(bench, each, names)
    return done


def model_of(wanted: Settings) -> LoadedModel:
    """The model of the settings; the jobs of a sweep share it."""
    name, path = str(wanted.model["name"]), str(wanted.model["path"])
    return _load(ModelConfig(name=name, path=path, dtype=wanted.dtype, device=wanted.device))


@lru_cache(maxsize=1)
def _load(config: ModelConfig) -> LoadedModel:
    from transformers.utils import logging

    logging.disable_progress_bar()  # of the weights; the only bar is that of the samples
    return load_model(config)
