"""The native knob of an arm for its sparsity, where no formula gives it: as recorded, or found now and recorded.

It is found on what the method will prefill. A method whose last queries choose for all rows keeps another share where those
are the context's instead of the question's, so question=after has knobs of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness import tasks
from harness.arms import calibration
from harness.arms.build import RunnableArm, with_knob
from harness.core.errors import UserError
from harness.core.question import QUESTION_LATER
from harness.core.settings import Settings
from harness.measure.context import RunContext, one_line
from harness.study.identity import digest
from harness.study.provenance import now
from harness.study.schema import CalibrationRecord
from harness.tasks import Sample
from methods.parts.base import Knob


def with_calibrated_knob(context: RunContext, settings: Settings, arm: RunnableArm, task_names: list[str]) -> RunnableArm:
    """Return the arm, the knob of its method set where no formula gives it. Raises UserError where it can't be measured."""
    knob = None if arm.method is None else arm.method.calibrates()
    if knob is None:
        return arm
    try:
        return with_knob(settings, arm, knob, knob_value(context, arm, knob, task_names))
    except UserError:
        raise
    except ValueError as error:  # methods/ and kernels/ raise plain ValueErrors, one line each, for what they can't do
        raise UserError(str(error)) from error


def knob_value(context: RunContext, arm: RunnableArm, knob: Knob, names: list[str]) -> float:
    """The value of a knob at which the arm has its sparsity. Raises UserError where it can't be measured."""
    assert arm.method is not None and arm.method.sparsity is not None
    count, target = context.settings.calibration_prompts, 1 - arm.method.sparsity
    prompts_of = {
        "tasks": names,
        "prompts": count,
        "text": context.text_of(names) | context.files(*names),
        "chat": context.chat,
    }
    asked = (
        {"question": QUESTION_LATER} if context.settings.question == QUESTION_LATER else {}
    )  # else whole prompts: ids as before
    identity = {**arm.identity.prefill().as_dict(), **prompts_of, **asked}
    key = digest(identity)
    for record in context.store.calibrations.read():
        if record["calibration"] == key:
            return float(record["value"])
    prompts = calibration_prompts(context, names, count)
    with context.progress() as progress:
        bar = progress.add_task(f"calibrating {arm.identity.method}", total=calibration.MAX_TRIES)
        try:
            found = calibration.calibrate(
                context.loaded,
                arm.method,
                knob,
                prompts,
                target,
                on_try=lambda: progress.advance(bar),
                sparse_kernel=context.settings.kernel,
                dense_kernel=context.settings.dense_kernel,
            )
        except RuntimeError as error:  # out of memory, a kernel that fails: the next job of a sweep goes on
            raise UserError(f"can't calibrate {arm.identity.method} at {context.settings.length}: {one_line(error)}") from error
    if abs(found.density - target) > calibration.TOLERANCE:
        context.complain(
            f"calibrating {arm.identity.method}: density {target:.3g} is out of reach, "
            f"the nearest is {found.density:.3g} at {knob.name}={found.value:.4g}"
        )
    context.store.calibrations.append(
        CalibrationRecord(
            calibration=key,
            run=context.run.run,
            identity=identity,
            knob=knob.name,
            value=found.value,
            target=target,
            density=found.density,
            layers=found.layers,
            tried=found.tried,
            date=now(),
        )
    )
    return found.value


def calibration_prompts(context: RunContext, names: list[str], count: int) -> list[Sequence[int]]:
    """Prompts of this length that no test uses, of the tasks in turn; of fixed data the last ones, without their answers,
    which tests share where `samples` takes all there are. Of each, what the method will prefill: the context alone where the
    question comes later."""
    settings, data = context.settings, {**context.settings.data, "chat_template": context.chat}
    prompts: list[Sequence[int]] = []
    error: UserError | None = None
    for number in range(count + len(names)):
        try:
            drawn = tasks.get(names[number % len(names)]).spare(
                context.loaded.tokenizer, settings.length, number // len(names) + 1, calibration.SEED + settings.seed, data
            )
            if len(drawn) == number // len(names) + 1:  # fixed data can run out
                prompts.append(_prefilled(context, drawn[-1]))
        except UserError as found:  # too short for this task, or its question was cut
            error = error or found
            continue
        if len(prompts) == count:
            return prompts
    if prompts:
        return prompts
    raise error or UserError("no task to take calibration prompts from")


def _prefilled(context: RunContext, sample: Sample) -> Sequence[int]:
    """The tokens of a sample's prompt that the method prefills. Raises UserError where its question can't be told from them."""
    (ids,) = context.tokens([sample])
    contexts = context.contexts([sample]) if context.settings.question == QUESTION_LATER else None
    return ids if contexts is None else ids[: contexts[0]]
