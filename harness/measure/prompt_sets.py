"""The prompts that knobs and heads are searched on: those that an arm will be asked, or others that no test uses."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.errors import UserError
from harness.core.question import QUESTION_LATER
from harness.measure.context import RunContext
from harness.tasks import registry
from harness.tasks.sample import Sample

SPARE_SEED = 7_000_003
"""Added to the seed of spare prompts, so that none is a test's."""


def task_prompts(context: RunContext, task_names: Sequence[str]) -> dict[str, list[Sequence[int]]]:
    """Return the prompts (token ids) of all samples that the tasks will be asked, as the method will prefill them: the context
    alone where the question comes later.

    A task that has none of this length, or whose question can't be told from its context, is passed over: its cell says so.
    Raises UserError where no task has any.
    """
    prompts: dict[str, list[Sequence[int]]] = {}
    first_error: UserError | None = None
    for name in task_names:
        try:
            prompts[name] = _prefilled(context, context.samples(name))
        except UserError as error:
            first_error = first_error or error
    if not prompts:
        raise first_error or UserError("no task to take prompts from")
    return prompts


def spare_prompts(context: RunContext, task_names: Sequence[str], count: int) -> list[Sequence[int]]:
    """Return `count` prompts (token ids) of this length that no test uses, of the tasks in turn.

    Of fixed data they are the last ones, without their answers, which tests share where `samples` takes all there are. Of each
    prompt, what the method will prefill. Raises UserError where no task has any.
    """
    data = {**context.data, "chat_template": context.chat}
    prompts: list[Sequence[int]] = []
    first_error: UserError | None = None
    for turn in range(count + len(task_names)):
        place = turn // len(task_names)
        try:
            samples = registry.get(task_names[turn % len(task_names)]).spare(
                context.loaded.tokenizer, context.length, place + 1, SPARE_SEED + context.seed, data
            )
            if len(samples) == place + 1:  # fixed data can run out
                prompts += _prefilled(context, samples[-1:])
        except UserError as error:  # too short for this task, or its question was cut
            first_error = first_error or error
            continue
        if len(prompts) == count:
            return prompts
    if prompts:
        return prompts
    raise first_error or UserError("no task to take prompts from")


def _prefilled(context: RunContext, samples: list[Sample]) -> list[Sequence[int]]:
    """Return the tokens of the samples' prompts that the method prefills. Raises UserError where a question can't be told from
    them."""
    prompts = context.tokens(samples)
    contexts = context.contexts(samples) if context.question == QUESTION_LATER else None
    return list(prompts) if contexts is None else [ids[:end] for ids, end in zip(prompts, contexts, strict=True)]
