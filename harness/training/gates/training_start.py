"""Whether a command begins a training of gates, goes on with a killed one, or finds everything done."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.models.loading import LoadedModel
from harness.training.gates.checkpoint import Checkpoint
from harness.training.gates.job_settings import TrainingSettings
from harness.training.gates.processes import Processes
from harness.training.gates.rows import BY_NEED
from harness.training.gates.training_text import TextSettings

NAMED_IF_SET = ("workers", "training_name", "first_step", "text_seed", "text_batches", "pooling", "block_rope")
"""Settings that stand in what a training is of only where they are not as usual."""


def about_training(
    training: TrainingSettings, text: TextSettings, settings: Settings, loaded: LoadedModel, steps: int
) -> dict[str, Any]:
    """Return all that decides the result, by the names of the settings: a checkpoint of anything else is refused.

    steps: for which the text is read; they are named where the rows depend on them, and another training needs more of them.
    """
    spec, recipe = training.spec, training.recipe
    return {
        **recipe.facts(),
        "gates": spec.kind.__name__,
        "model": loaded.name,
        "model_hash": loaded.revision_hash,
        "model_dtype": str(loaded.dtype).removeprefix("torch."),
        "rows": text.rows,
        "text": text.source(settings.data),
        "tokens_per_step": text.tokens,
        "lengths": text.lengths,
        **({"workers": text.workers} if text.workers else {}),
        **({"training_name": spec.training} if spec.training else {}),
        **({"first_step": training.first_step} if training.first_step else {}),
        **({"text_seed": settings.seed} if settings.seed != recipe.seed else {}),
        **({"text_batches": steps} if text.rows in BY_NEED and steps != training.end else {}),
    }


class Start(Enum):
    """What a command has to do. BEGIN: all of it. GO_ON: what a killed one left. NOTHING: all is there."""

    BEGIN = "begin"
    GO_ON = "go on"
    NOTHING = "nothing"


def find_start(
    checkpoint: Checkpoint,
    gates: Path,
    tables: Sequence[Path],
    *,
    overwrite: bool,
    is_of: Callable[[Path, dict[str, Any]], bool] | None = None,
) -> Start:
    """Return what is left to do, and change nothing. gates: where their file goes. tables: all else that a training writes.
    is_of: whether such a file says that it was trained with these settings; None: as files of gates do.

    A checkpoint of the same settings is gone on with. Where the command overwrites, it must be of a command that overwrote,
    too: any other is of the training that is to be replaced. Raises UserError for gates, or a checkpoint, of something else.
    """
    if overwrite:
        state = None
        with suppress(UserError):  # damaged, or of other settings: to be replaced as well
            state = checkpoint.read()
        return Start.GO_ON if state is not None and state["replaces"] else Start.BEGIN
    state = checkpoint.read()
    if state is not None and not (gates.exists() and state["replaces"]):  # its own gates may be there, its tables not
        return Start.GO_ON
    if not gates.exists():
        return Start.BEGIN
    if state is None and (is_of or _is_of)(gates, checkpoint.about) and all(table.exists() for table in tables):
        return Start.NOTHING
    raise UserError(f"{gates} exists: add job.overwrite=true to replace it, or name another folder with job.out=FOLDER")


def enter(checkpoint: Checkpoint, start: Start, processes: Processes, *, overwrite: bool) -> tuple[Checkpoint, int]:
    """Begin a training, or enter the one that is to be gone on with. Returns its checkpoint, the same in all processes, and
    how many steps are done."""
    processes.wait()  # until all have looked at the files
    if processes.main and start is Start.BEGIN:
        replace(checkpoint, training=uuid.uuid4().hex[:12], replaces=overwrite).begin()
    processes.wait()
    state = checkpoint.read()
    if state is None:
        raise UserError(f"{checkpoint.path} is gone: job.out must be a folder that all processes see")
    return replace(checkpoint, training=state["training"], replaces=state["replaces"]), len(state["steps"])


def _is_of(gates: Path, about: dict[str, Any]) -> bool:
    """Return whether a file of gates says that it was trained with these settings."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(gates), framework="pt") as file:
            recorded = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    except (SafetensorError, OSError, ValueError):
        return False
    usual = [name for name in NAMED_IF_SET if name not in about]
    same = all(name in recorded and recorded[name] == value for name, value in about.items())
    return same and not any(name in recorded for name in usual)
