"""What a user should hear of an arm before it runs: what was assumed of its weights, that it goes without a search, or that it
can't be as sparse as was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.arms.build import RunnableArm
from harness.arms.head_files import search_command
from harness.arms.weights import weights_folder
from harness.models.loading import LoadedModel
from harness.study.matching import TOLERANCE


def arm_warnings(arm: RunnableArm, model: Mapping[str, Any], loaded: LoadedModel) -> list[str]:
    """Return a line for each thing that a user should know of an arm, none for the baseline. model: as `Settings.model`."""
    lines = *arm.notices, _missing_head_file(arm, model, loaded), _density_out_of_reach(arm)
    return [line for line in lines if line is not None]


def _missing_head_file(arm: RunnableArm, model: Mapping[str, Any], loaded: LoadedModel) -> str | None:
    """Return a line where a method runs without the search of the model's heads that it could use, for want of the file."""
    file = None if arm.method is None else arm.method.search_file()
    if file is None or arm.identity.weights_hash is not None:
        return None
    if loaded.shape is not None:
        return f"{arm.identity.method}: a model by shape has no searched heads, and the row's knobs say how it goes without"
    return (
        f"{arm.identity.method}: {weights_folder(model, loaded) / file} is not there, so {loaded.name}'s heads count as not "
        "searched, and the row's knobs say so; name the folder that has it (model.gates=FOLDER), or make it: "
        f"`{search_command(arm.identity.method, model)}`"
    )


def _density_out_of_reach(arm: RunnableArm) -> str | None:
    """Return a line where the blocks over a row's own tokens, which are always kept, are more than the sparsity allows.

    Of a method whose knob is searched, the search says so.
    """
    method, length = arm.method, arm.identity.setting.length
    if method is None or method.sparsity is None or method.calibrates() is not None:
        return None
    rows = -(-length // method.block_size)
    least = 2 / (rows + 1)  # a diagonal of `rows` blocks among rows · (rows + 1) / 2
    if (1 - method.sparsity) * (1 + TOLERANCE) >= least:
        return None
    return (
        f"{arm.identity.method}: density {1 - method.sparsity:.3g} is out of reach at {length} tokens in blocks of "
        f"{method.block_size}: every row keeps its own block, {least:.3g} of all; take longer prompts or smaller blocks"
    )
