"""The native knob of an arm for its sparsity, where no formula gives it: as recorded, or found by bisection and recorded.

It is found on what the method will prefill. A method whose last queries choose for all rows keeps another share where those
are the context's instead of the question's, so question=after has knobs of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from harness.arms import calibration
from harness.arms.build import RunnableArm, with_knob
from harness.core.errors import UserError
from harness.core.mistakes import as_user_error
from harness.core.question import QUESTION_LATER
from harness.core.settings import Settings
from harness.measure.context import RunContext
from harness.study.identity import digest
from harness.study.provenance import now
from harness.study.resume import one_line, recorded
from harness.study.schema import CalibrationRecord
from harness.tasks import registry
from harness.tasks.sample import Sample
from methods.parts.base import Knob


def with_calibrated_knob(context: RunContext, settings: Settings, arm: RunnableArm, task_names: Sequence[str]) -> RunnableArm:
    """Return the arm, the knob of its method set where no formula gives it. Raises UserError where it can't be measured."""
    knob = None if arm.method is None else arm.method.calibrates()
    if knob is None:
        return arm
    try:
        return with_knob(settings, arm, knob, knob_value(context, arm, knob, task_names))
    except UserError:
        raise
    except ValueError as error:  # methods/ and kernels/ raise plain ValueErrors, one line each, for what they can't do
        raise as_user_error(error) from error


def knob_value(context: RunContext, arm: RunnableArm, knob: Knob, task_names: Sequence[str]) -> float:
    """Return the value of a knob at which the arm has its sparsity, as recorded, or found now and recorded. Raises UserError
    where it can't be measured."""
    assert arm.method is not None and arm.method.sparsity is not None
    target = 1 - arm.method.sparsity
    # where the question is seen, or read again, whole prompts are prefilled: ids as they were before there was another way
    question = {"question": QUESTION_LATER} if context.question == QUESTION_LATER else {}
    prompts_identity = context.prompts_identity(task_names, context.calibration_prompts)
    identity = {**arm.identity.prefill().as_dict(), **prompts_identity, **question}
    key = digest(identity)
    if (record := recorded(context.store.calibrations, key)) is not None:
        return float(record["value"])
    context.say(f"calibrating {arm.identity.method} on prompts of {context.length} tokens")
    prompts = calibration_prompts(context, task_names, context.calibration_prompts)
    with context.progress() as progress:
        bar = progress.add_task(f"calibrating {arm.identity.method}", total=calibration.MAX_TRIES)
        try:
            calibrated = calibration.calibrate(
                context.loaded,
                arm.method,
                knob,
                prompts,
                target,
                on_try=partial(progress.advance, bar),
                sparse_kernel=context.kernels.sparse,
                dense_kernel=context.kernels.dense,
            )
        except (ValueError, AssertionError):
            raise
        except Exception as error:  # a full memory, a kernel that fails, a mistake in the method: the next job goes on
            raise UserError(f"can't calibrate {arm.identity.method} at {context.length}: {one_line(error)}") from error
    if abs(calibrated.density - target) > calibration.TOLERANCE:
        context.complain(
            f"calibrating {arm.identity.method}: density {target:.3g} is out of reach, "
            f"the nearest is {calibrated.density:.3g} at {knob.name}={calibrated.value:.4g}"
        )
    context.store.calibrations.append(
        CalibrationRecord(
            calibration=key,
            run=context.run.run,
            identity=identity,
            knob=knob.name,
            value=calibrated.value,
            target=target,
            density=calibrated.density,
            layers=calibrated.layers,
            tried=calibrated.tried,
            date=now(),
        )
    )
    return calibrated.value


def calibration_prompts(context: RunContext, task_names: Sequence[str], count: int) -> list[Sequence[int]]:
    """Return `count` prompts (token ids) of this length that no test uses, of the tasks in turn.

    Of fixed data they are the last ones, without their answers, which tests share where `samples` takes all there are. Of each
    prompt, what the method will prefill: the context alone where the question comes later. Raises UserError where no task has
    any.
    """
    data = {**context.data, "chat_template": context.chat}
    prompts: list[Sequence[int]] = []
    first_error: UserError | None = None
    for turn in range(count + len(task_names)):
        place = turn // len(task_names)
        try:
            samples = registry.get(task_names[turn % len(task_names)]).spare(
                context.loaded.tokenizer, context.length, place + 1, calibration.SEED + context.seed, data
            )
            if len(samples) == place + 1:  # fixed data can run out
                prompts.append(_prefilled(context, samples[-1]))
        except UserError as error:  # too short for this task, or its question was cut
            first_error = first_error or error
            continue
        if len(prompts) == count:
            return prompts
    if prompts:
        return prompts
    raise first_error or UserError("no task to take calibration prompts from")


def _prefilled(context: RunContext, sample: Sample) -> Sequence[int]:
    """Return the tokens of a sample's prompt that the method prefills. Raises UserError where its question can't be told from
    them."""
    (ids,) = context.tokens([sample])
    contexts = context.contexts([sample]) if context.question == QUESTION_LATER else None
    return ids if contexts is None else ids[: contexts[0]]
