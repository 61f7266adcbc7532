"""The cells of an arm: their states as they are recorded, and what a failure says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.arms.build import RunnableArm
from harness.core.device_memory import is_device_error, is_usable
from harness.core.errors import UserError
from harness.core.mistakes import origin
from harness.core.model_name import name_of_path
from harness.core.time_limit import TimeIsUp
from harness.measure.context import RunContext
from harness.measure.failures import Failure, kind_of
from harness.models.loading import LoadedModel
from harness.study import failures as policy
from harness.study import verdict
from harness.study.full_rows import arm_name
from harness.study.identity import Cell, digest
from harness.study.provenance import device_name, now
from harness.study.resume import one_line
from harness.study.schema import CellRecord, Status
from harness.study.store import Record, Store


def record_state(
    context: RunContext,
    arm: RunnableArm,
    cell: Cell,
    status: str,
    reason: str = "",
    *,
    haystack: str = "",
    summary: dict[str, Any] | None = None,
    traceback: str = "",
    kind: str = "",
) -> None:
    """Append a state of a cell, whose last one counts. haystack: what rows call its text; summary: its numbers; traceback: of
    the error that it failed with, and kind of which kind that is."""
    context.store.cells.append(
        CellRecord(
            cell=cell.id,
            arm=arm.identity.id,
            pair=cell.pair,
            run=context.run.run,
            identity=cell.as_dict(),
            status=status,
            reason=reason,
            date=now(),
            knobs=arm.identity.knobs,
            haystack=haystack,
            summary=summary or {},
            notices=list(arm.notices),
            traceback=traceback,
            neighbour=arm.neighbour,
            kind=kind,
        )
    )


def record_failure(
    context: RunContext,
    arm: RunnableArm,
    cell: Cell,
    error: Exception,
    *,
    label: str,
    where: str = "",
    haystack: str = "",
    finished: int = 0,
    lacks: str = "",
) -> int:
    """Record a cell as failed and say so by its `label`; `harness.study.failures` says when it is tried again. Returns 1, the
    count of failed cells. where: what the reason begins with; finished: samples that this command finished of it; lacks: the
    part of its identity that is not known, as the arm could not be built (`verdict.LACKS`)."""
    kind, minutes = kind_of(error), context.cell_minutes
    reason = where + in_a_line(context, error)
    told = "" if isinstance(error, UserError | TimeIsUp) else origin(error).traceback  # these are in no line of code
    summary: dict[str, Any] = {policy.MINUTES: minutes, policy.FINISHED: finished} if kind == policy.TIME_OUT else {}
    summary |= {verdict.LACKS: lacks} if lacks else {}
    record_state(context, arm, cell, Status.FAILED, reason, haystack=haystack, traceback=told, kind=kind.name, summary=summary)
    return note_failure(context, cell.id, arm, cell.samples.task, error, label=label, where=where)


def note_failure(
    context: RunContext, key: str, arm: RunnableArm, what: str, error: Exception, *, label: str, where: str = ""
) -> int:
    """Say that something of an arm failed, by its `label`, and note it for the table at the end of the command, by its key.
    Returns 1, the count of it."""
    reason = where + in_a_line(context, error)
    context.complain(f"failed: {label}: {reason}", error)
    if is_device_error(error) and not is_usable(context.loaded.device):
        context.failures.lost = reason
    return context.failures.add(key, Failure(at_length(arm), what, kind_of(error).name, reason))


def in_a_line(context: RunContext, error: Exception) -> str:
    """Return an error in one line, as `resume.one_line` does; of what was not done in time, the setting that says so."""
    if isinstance(error, TimeIsUp):
        return f"cell_minutes={context.cell_minutes:g}: it was not done in that time"
    return one_line(error)


def is_passed_over(context: RunContext, arm: RunnableArm, cell: Cell, failures: Sequence[Record] | None) -> int | None:
    """Return None for a cell that is to be measured; of one that failed and is not tried now (`harness.study.failures`) how
    many failures that are for this process to tell: none where it, or another worker, told of it in this command. failures:
    those recorded of it."""
    if not failures:
        return None
    runs, launch = {record["run"]: record for record in context.store.runs.read()}, context.failures.launch
    if policy.is_of_launch(failures, runs, launch):
        return 0
    attempted = policy.Attempted(launch, device_name(context.loaded.device), context.cell_minutes, context.retry_failed)
    if not policy.is_left(failures, runs, attempted):
        return None
    last = failures[-1]
    kind = policy.kind_of_state(last)
    return context.failures.add(cell.id, Failure(at_length(arm), cell.samples.task, kind.name, last["reason"], tried=False))


def at_length(arm: RunnableArm) -> str:
    """Return what an arm is called where those of several lengths and sparsities stand together."""
    sparsity = None if arm.baseline else arm.identity.sparsity
    return f"{arm_label(arm)} at {arm.identity.setting.length}{'' if sparsity is None else f', sparsity {sparsity:g}'}"


def with_distinct_name(loaded: LoadedModel, store: Store) -> LoadedModel:
    """Return the model under a name that no other weights have in a study. Rows call a folder by its own name, which two
    folders may share: the second one recorded has the first digits of its hash behind it. What a study has recorded of the same
    weights under a path that ends in that name, as earlier versions did, goes on under that path: it is not measured anew."""
    if loaded.shape is not None:
        return _distinct_by_shape(loaded, store)
    if loaded.source is None or loaded.name == loaded.source or loaded.name != name_of_path(loaded.source):
        return loaded  # it was named by whoever asked for it
    files = (store.cells, store.latency, store.mass)
    recorded = [(i["model"], i["model_hash"]) for file in files for i in (record["identity"] for record in file.read())]
    ours = {name for name, weights in recorded if weights == loaded.revision_hash}
    if path := next((name for name in ours if name != loaded.name and name_of_path(name) == loaded.name), None):
        return loaded if loaded.name in ours else replace(loaded, name=path)
    first = next((weights for name, weights in recorded if name == loaded.name), loaded.revision_hash)
    return loaded if first == loaded.revision_hash else replace(loaded, name=f"{loaded.name}@{loaded.revision_hash[:8]}")


def _distinct_by_shape(loaded: LoadedModel, store: Store) -> LoadedModel:
    """Return a model by shape under a name that no other shape has in a study: the second one of a name has the first digits of
    a hash behind it. Other seeds change no name."""
    assert loaded.shape is not None
    identities = (record["identity"] for record in store.latency.read())
    first = next((i.get("shape") for i in identities if i["model"] == loaded.name), loaded.shape.values)
    return loaded if first == loaded.shape.values else replace(loaded, name=f"{loaded.name}@{digest(loaded.shape.values)[:8]}")


def arm_label(arm: RunnableArm) -> str:
    """Return what an arm is called in the terminal (`harness.study.full_rows.arm_name`)."""
    return arm_name(arm.identity.as_dict())
