"""The native knob of an arm for its sparsity, where no formula gives it: as recorded, as shipped with the model, or searched.

It is searched on what the method will prefill: the prompts of all samples of the command's tasks, or the documents of
job=perplexity. A method whose last queries choose for all rows keeps another share where those are the context's instead of the
question's, so question=after has knobs of its own. How many samples there are is no part of a search's identity: more samples
extend the cells of the same arm.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol

from harness.arms.build import RunnableArm, with_given_knob, with_knob
from harness.arms.calibration import PASSES, Calibration, calibrate
from harness.arms.weights import weights_folder
from harness.core.device_memory import release_frames
from harness.core.errors import UserError
from harness.core.mistakes import as_user_error, note_origin
from harness.core.question import QUESTION_LATER
from harness.core.settings import Settings
from harness.measure.context import RunContext
from harness.measure.prompt_sets import task_prompts
from harness.measure.shipped_knobs import shipped_record
from harness.study.identity import digest
from harness.study.matching import is_matched
from harness.study.provenance import now
from harness.study.resume import one_line, recorded
from harness.study.schema import CalibrationRecord
from harness.study.store import Record
from methods.parts.base import Knob

OWN_PROMPTS = "own"
"""The entry `prompts` in the identity of a search; of older records it is a number, of prompts that no test used."""
DRAWN = "drawn"
"""The same entry where the prompt was drawn for a model by shape, and what stands in the place of a task."""
TASKS_SHOWN = 12
"""Tasks whose densities a line of the terminal holds; of more it has the lowest and the highest."""


class SearchError(Exception):
    """A search that ended in an error. knob: the name of what was searched; reason: the error."""

    def __init__(self, knob: str, reason: Exception) -> None:
        super().__init__(f"searching {knob}: {one_line(reason)}")
        self.knob, self.reason = knob, reason


class PromptSource(Protocol):
    """What an arm will prefill in a command."""

    def identity(self, context: RunContext) -> dict[str, Any]:
        """Return what determines the prompts, but for their number."""
        ...

    def prompts(self, context: RunContext) -> Mapping[str, Sequence[Sequence[int]]]:
        """Return the prompts (token ids) by task; tasks weigh the same. Raises UserError where there is none."""
        ...


@dataclass(frozen=True)
class TaskPrompts:
    """The prompts of tasks."""

    tasks: Sequence[str]

    def identity(self, context: RunContext) -> dict[str, Any]:
        """Return the tasks, where their text comes from, and what is prefilled of it."""
        text = context.text_of(self.tasks) | context.files(*self.tasks)
        # where the question is seen, or read again, whole prompts are prefilled
        question = {"question": QUESTION_LATER} if context.question == QUESTION_LATER else {}
        origin = context.prompt_origin(self.tasks)
        return {"tasks": sorted(self.tasks), "prompts": OWN_PROMPTS, "text": text, "chat": context.chat, **origin, **question}

    def prompts(self, context: RunContext) -> Mapping[str, Sequence[Sequence[int]]]:
        """Return the prompts of all samples."""
        return task_prompts(context, self.tasks)


@dataclass(frozen=True)
class DrawnPrompt:
    """The prompt that is drawn for a model by shape: it is the one that is timed too."""

    def identity(self, context: RunContext) -> dict[str, Any]:
        """Return that it was drawn: the seed, the length and the vocabulary stand in the arm's identity."""
        return {"prompts": DRAWN}

    def prompts(self, context: RunContext) -> Mapping[str, Sequence[Sequence[int]]]:
        """Return the prompt."""
        return {DRAWN: [context.drawn_prompt]}


def calibrated_arms(context: RunContext, settings: Settings, arm: RunnableArm, source: PromptSource) -> list[RunnableArm]:
    """Return the arm with the knob of its method set where no formula gives it. Of a knob that is a whole number these are two
    arms where neither number gives the density: the nearer one first. Raises UserError where it can't be measured, SearchError
    where the search ends in another error."""
    knob = None if arm.method is None else arm.method.calibrates()
    if knob is None:
        return [arm]
    if (given := with_given_knob(settings, arm, knob)) is not None:
        return [given]
    try:
        record = _search_record(context, settings, arm, knob, source)
        if record["neighbour"] is None or _matches(arm, record["density"]):
            return [with_knob(settings, arm, knob, record["value"])]
        both = [replace(arm, method=copy.copy(arm.method), neighbour=True) for _ in range(2)]
        values = record["value"], record["neighbour"]
        return [with_knob(settings, one, knob, value) for one, value in zip(both, values, strict=True)]
    except UserError:
        raise
    except ValueError as error:  # methods/ and kernels/ raise plain ValueErrors, one line each, for what they can't do
        raise as_user_error(error) from error


def search_identity(context: RunContext, arm: RunnableArm, source: PromptSource) -> dict[str, Any]:
    """Return what a search is known by: the arm at prefill, its knob not set yet, and its prompts but for their number."""
    return {**arm.identity.prefill().as_dict(), **source.identity(context)}


def _search_record(context: RunContext, settings: Settings, arm: RunnableArm, knob: Knob, source: PromptSource) -> Record:
    """Return the record of the search: the study's, the one that ships with the model if it was found on as many prompts, or
    that of a search made now."""
    assert arm.method is not None and arm.method.sparsity is not None
    identity = search_identity(context, arm, source)
    key, records = digest(identity), context.store.calibrations
    if (record := recorded(records, key)) is not None:
        return record
    shipped = shipped_record(weights_folder(settings.model, context.loaded), key)
    if shipped is not None and shipped.prompts != sum(map(len, source.prompts(context).values())):
        shipped = None  # the mean over other prompts may be off the density
    if shipped is not None:
        records.append(replace(shipped, run=context.run.run, shipped=True))
        for line in (f"{arm.identity.method}: {_numbers(asdict(shipped))} (ships with the model)", *by_task(shipped.tasks)):
            context.say(line)
    else:
        calibrated = _searched(context, arm, knob, source)
        records.append(_record(context, key, identity, knob, 1 - arm.method.sparsity, calibrated))
    record = recorded(records, key)  # another process may have been first: its value counts
    assert record is not None
    if shipped is None:
        _tell(context, arm, record)
    return record


def _searched(context: RunContext, arm: RunnableArm, knob: Knob, source: PromptSource) -> Calibration:
    """Search the knob on the prompts of the source. Raises SearchError where that fails."""
    assert arm.method is not None and arm.method.sparsity is not None
    label = f"searching {knob.name} of {arm.identity.method} for density {1 - arm.method.sparsity:.3g}"
    context.say(f"{label} at {context.length} tokens")
    prompts = source.prompts(context)
    with context.progress() as progress:
        bar = progress.add_task(label, total=PASSES * sum(map(len, prompts.values())))
        try:
            return calibrate(
                context.loaded,
                arm.method,
                knob,
                prompts,
                1 - arm.method.sparsity,
                on_prefill=partial(progress.advance, bar),
                sparse_kernel=context.kernels.sparse,
                dense_kernel=context.kernels.dense,
                chunk=context.chunk,
            )
        except (ValueError, AssertionError):
            raise
        except Exception as error:  # a full memory, a kernel that fails, a mistake in the method: it costs the arm alone
            note_origin(error)
            release_frames(error, context.loaded.device)
            raise SearchError(knob.name, error) from None


def _record(
    context: RunContext, key: str, identity: dict[str, Any], knob: Knob, target: float, calibrated: Calibration
) -> CalibrationRecord:
    reached, beside = calibrated.reached, calibrated.neighbour
    return CalibrationRecord(
        calibration=key,
        run=context.run.run,
        identity=identity,
        knob=knob.name,
        value=reached.value,
        target=target,
        density=reached.density,
        layers=reached.layers,
        tried=calibrated.tried,
        date=now(),
        tasks=reached.tasks,
        prompts=calibrated.prompts,
        prefills=calibrated.prefills,
        seconds=calibrated.seconds,
        neighbour=None if beside is None else beside.value,
        neighbour_density=None if beside is None else beside.density,
        neighbour_tasks={} if beside is None else beside.tasks,
    )


def _tell(context: RunContext, arm: RunnableArm, record: Record) -> None:
    """Say what a search reached and cost, and whether that is what was asked for."""
    prompts = f"{record['prompts']} prompt{'' if record['prompts'] == 1 else 's'}"
    cost = f"{record['prefills']} prefills of {prompts}, {record['seconds']:.1f} s"
    for line in (f"{arm.identity.method}: {_numbers(record)} ({cost})", *by_task(record["tasks"])):
        context.console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)
    if _matches(arm, record["density"]):
        return
    if record["neighbour"] is not None:
        context.say(
            f"{arm.identity.method}: {record['knob']} is a whole number: {record['neighbour']:g} is measured too, which gives "
            f"density {record['neighbour_density']:.4g}"
        )
        return
    context.complain(
        f"searching {record['knob']} of {arm.identity.method}: density {record['target']:.3g} is not reached, the nearest is "
        f"{record['density']:.4g} at {record['knob']}={record['value']:.4g}: its rows are off_density"
    )


def _numbers(record: Mapping[str, Any]) -> str:
    """Return a knob's value with the density that it gave."""
    return f"{record['knob']}={record['value']:.4g} gives density {record['density']:.4g}"


def by_task(tasks: Mapping[str, float]) -> list[str]:
    """Return a further line with the densities of several tasks; none for one."""
    return [f"  by task: {densities_text(tasks)}"] if len(tasks) > 1 else []


def densities_text(tasks: Mapping[str, float]) -> str:
    """Return densities by task in one line."""
    if len(tasks) <= TASKS_SHOWN:
        return ", ".join(f"{task} {density:.3f}" for task, density in tasks.items())
    low, high = min(tasks.values()), max(tasks.values())
    return f"from {low:.3f} to {high:.3f} in {len(tasks)} tasks"


def _matches(arm: RunnableArm, density: float) -> bool:
    assert arm.method is not None and arm.method.sparsity is not None
    return is_matched(arm.method.sparsity, density)
