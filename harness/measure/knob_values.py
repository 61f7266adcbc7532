"""The native knob of an arm for its sparsity, where no formula gives it: as recorded, or found now and recorded.

It is found on what the method will prefill. A method whose last queries choose for all rows keeps another share where those
are the context's instead of the question's, so question=after has knobs of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness import tasks
from harness.arms.build import Ready
from harness.core.errors import UserError
from harness.measure import calibration
from harness.measure.context import Bench, one_line
from harness.study.identity import AFTER, digest
from harness.study.provenance import now
from harness.study.schema import CalibrationRecord
from harness.tasks import Sample
from methods.parts.base import Knob


def knob_value(bench: Bench, each: Ready, knob: Knob, names: list[str]) -> float:
    """The value of a knob at which the arm has its sparsity. Raises UserError where it can't be measured."""
    assert each.method is not None and each.method.sparsity is not None
    count, target = bench.wanted.calibration_prompts, 1 - each.method.sparsity
    prompts_of = {"tasks": names, "prompts": count, "text": bench.text_of(names) | bench.files(*names), "chat": bench.chat}
    asked = {"question": AFTER} if bench.wanted.question == AFTER else {}  # else whole prompts: ids as before
    identity = {**each.arm.prefill().identity(), **prompts_of, **asked}
    key = digest(identity)
    for record in bench.store.calibrations.read():
        if record["calibration"] == key:
            return float(record["value"])
    prompts = calibration_prompts(bench, names, count)
    with bench.progress() as progress:
        bar = progress.add_task(f"calibrating {each.arm.method}", total=calibration.MOST)
        try:
            found = calibration.calibrate(
                bench.loaded,
                each.method,
                knob,
                prompts,
                target,
                on_try=lambda: progress.advance(bar),
                sparse_kernel=bench.wanted.kernel,
                dense_kernel=bench.wanted.dense_kernel,
            )
        except RuntimeError as error:  # out of memory, a kernel that fails: the next job of a sweep goes on
            raise UserError(f"can't calibrate {each.arm.method} at {bench.wanted.length}: {one_line(error)}") from error
    if abs(found.density - target) > calibration.TOLERANCE:
        bench.complain(
            f"calibrating {each.arm.method}: density {target:.3g} is out of reach, "
            f"the nearest is {found.density:.3g} at {knob.name}={found.value:.4g}"
        )
    bench.store.calibrations.append(
        CalibrationRecord(
            calibration=key,
            run=bench.run.run,
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


def calibration_prompts(bench: Bench, names: list[str], count: int) -> list[Sequence[int]]:
    """Prompts of this length that no test uses, of the tasks in turn; of fixed data the last ones, without their answers,
    which tests share where `samples` takes all there are. Of each, what the method will prefill: the context alone where the
    question comes later."""
    wanted, data = bench.wanted, {**bench.wanted.data, "chat_template": bench.chat}
    prompts: list[Sequence[int]] = []
    error: UserError | None = None
    for number in range(count + len(names)):
        try:
            drawn = tasks.get(names[number % len(names)]).spare(
                bench.loaded.tokenizer, wanted.length, number // len(names) + 1, calibration.SEED + wanted.seed, data
            )
            if len(drawn) == number // len(names) + 1:  # fixed data can run out
                prompts.append(_prefilled(bench, drawn[-1]))
        except UserError as found:  # too short for this task, or its question was cut
            error = error or found
            continue
        if len(prompts) == count:
            return prompts
    if prompts:
        return prompts
    raise error or UserError("no task to take calibration prompts from")


def _prefilled(bench: Bench, sample: Sample) -> Sequence[int]:
    """The tokens of a sample's prompt that the method prefills. Raises UserError where its question can't be told from them."""
    (ids,) = bench.tokens([sample])
    contexts = bench.contexts([sample]) if bench.wanted.question == AFTER else None
    return ids if contexts is None else ids[: contexts[0]]
