"""The cells of an arm: their states as they are recorded, and what a failure says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.arms.build import RunnableArm
from harness.core.errors import UserError
from harness.core.mistakes import origin
from harness.core.model_name import name_of_path
from harness.measure.context import RunContext
from harness.models.loading import LoadedModel
from harness.study.full_rows import arm_name
from harness.study.identity import Cell, digest
from harness.study.provenance import now
from harness.study.resume import one_line
from harness.study.schema import CellRecord, Status
from harness.study.store import Store


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
) -> None:
    """Append a state of a cell, whose last one counts. haystack: what rows call its text; summary: its numbers; traceback: of
    the error that it failed with."""
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
        )
    )


def record_failure(
    context: RunContext, arm: RunnableArm, cell: Cell, error: Exception, *, label: str, where: str = "", haystack: str = ""
) -> int:
    """Record a cell as failed and say so by its `label`; the next run of the same command tries it again. Returns 1, the
    count of failed cells. where: what the reason begins with."""
    reason = where + one_line(error)
    told = "" if isinstance(error, UserError) else origin(error).traceback  # a user's mistake is in no line of code
    record_state(context, arm, cell, Status.FAILED, reason, haystack=haystack, traceback=told)
    context.complain(f"failed: {label}: {reason}", error)
    return 1


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
