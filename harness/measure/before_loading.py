"""What a command can be told before the weights of its model are read, which takes minutes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from harness.arms.build import RunnableArm, build_arms
from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.measure.latency.limits import timing_limits
from harness.measure.sweep import SweepCache, describe_quietly, model_config
from harness.models.bridge import Bridge
from harness.models.kernel_choice import dense_kernel_of
from harness.models.length_check import check_length
from harness.models.loading import LoadedModel, load_tokenizer
from harness.tasks import documents, registry
from harness.tasks.chat_template import check_template
from harness.tasks.haystack import haystack_source, load_haystack

EVALUATE = "evaluate"
"""The job that records what a task lacks as its cell's failure, and goes on with the others."""
LATENCY = "latency"
"""The job of times alone."""


def check_before_loading(settings: Settings, sweep: SweepCache, task_names: Sequence[str]) -> None:
    """Raise UserError for what can't be done with a model that is not loaded yet: a length, a kernel, files of a method, text
    or prompts that it does not have."""
    if sweep.holds(settings):
        return
    described = describe(settings)
    if settings.job == "perplexity":
        documents.load_text(str(settings.options["text"]), settings.data.get("text_dir"))
    if described is None:
        if settings.job != "perplexity" and not settings.by_shape:
            check_prompts(settings, load_tokenizer(str(settings.model["path"]), settings.chat_options), task_names)
        return
    check_request(settings, described)
    arms = build_arms(settings, described)
    check_choice(settings, described, arms)
    with Bridge(described, None, dense_kernel=settings.dense_kernel):
        pass  # a model whose attention can't be changed
    if settings.job != "perplexity" and described.shape is None:
        check_prompts(settings, described.tokenizer, task_names)


def describe(settings: Settings) -> LoadedModel | None:
    """Return the model of the settings without its weights, None where that can't be had. Raises UserError as
    `models.description` does."""
    return describe_quietly(model_config(settings))


def check_request(settings: Settings, loaded: LoadedModel) -> None:
    """Raise UserError for what this model can't be asked."""
    advice = f"choose length={loaded.max_length} or less"
    check_length(loaded, settings.length, f"length={settings.length}", advice=advice)
    if settings.job == LATENCY:
        _check_timing(settings, loaded)


def _check_timing(settings: Settings, loaded: LoadedModel) -> None:
    """Raise UserError for a drawn prompt of a single token, and for a dense kernel of job.dense_kernels that can't run here."""
    if loaded.shape is not None and settings.length < 2:
        raise UserError(f"length={settings.length}: one token has no other to attend to; choose length=2 or more")
    limits = timing_limits(settings.latency_repeats, settings.latency_seconds, settings.job, settings.options)
    for name in limits.dense_kernels or ():
        try:
            dense_kernel_of(loaded, name)
        except ValueError as error:
            raise UserError(f"job.dense_kernels: {error}") from error


def check_choice(settings: Settings, loaded: LoadedModel, arms: Sequence[RunnableArm]) -> None:
    """Raise UserError where a method would choose in no layer at this length, as all of them are past their windows: there is
    nothing to time either, of dense attention alone."""
    windows = [math.inf if shape.window is None else shape.window for shape in loaded.layer_shapes]
    asked = settings.job == LATENCY or any(arm.method is not None for arm in arms)
    if max(windows) < settings.length and asked:
        raise UserError(
            f"length={settings.length}: no layer of {loaded.name} looks back more than {max(windows)} tokens, and no method "
            f"chooses past a window; choose length={max(windows)} or less"
        )


def check_prompts(settings: Settings, tokenizer: Any, task_names: Sequence[str]) -> None:
    """Raise UserError where none of the tasks has a prompt: no chat template, no data, too short a length."""
    chat = bool(settings.model.get("chat_template"))
    data, errors = {**settings.data, "chat_template": chat}, []
    sources = [(registry.get(name).source(settings.data), registry.get(name).files(settings.data)) for name in task_names]
    if any(source is None for source, _ in sources):  # generated, of prose
        load_haystack(haystack_source(settings.data))
    for name in task_names:
        try:
            registry.get(name).samples(tokenizer, settings.length, 1, settings.seed, data)
        except UserError as error:  # it costs its cell alone, where another task has prompts
            errors.append(error)
        else:
            return
    if chat:  # rather than what the first task says of it
        check_template(tokenizer)
    if errors and settings.job != EVALUATE:  # whose cells say what they lack, each of its own
        raise errors[0]
