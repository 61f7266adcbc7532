"""What a user should hear of an arm before it runs: that it goes without a search, or can't be as sparse as was asked for."""

from __future__ import annotations

from harness.arms.build import RunnableArm, weights_folder
from harness.arms.calibration import TOLERANCE
from harness.arms.head_files import model_overrides
from harness.core.settings import Settings
from harness.models.loading import LoadedModel


def notices(arm: RunnableArm, settings: Settings, loaded: LoadedModel) -> list[str]:
    """One line for each; none for the baseline."""
    return [line for line in (_unsearched(arm, settings, loaded), _too_sparse(arm, settings)) if line is not None]


def _unsearched(arm: RunnableArm, settings: Settings, loaded: LoadedModel) -> str | None:
    """Where a method takes what a search of the model's heads found, and runs without for want of the file."""
    name = None if arm.method is None else arm.method.search_file()
    if name is None or arm.identity.weights_hash is not None:
        return None
    return (
        f"{arm.identity.method}: {weights_folder(settings, loaded) / name} is not there, so {loaded.name}'s heads count as not "
        "searched, and the row's knobs say so; name the folder that has it (model.gates=FOLDER), or make it: "
        f"`python -m harness job=search_heads method={arm.identity.method} {model_overrides(settings).strip()}`"
    )


def _too_sparse(arm: RunnableArm, settings: Settings) -> str | None:
    """Where the blocks over a row's own tokens, which are always kept, are more than the sparsity allows. A method whose knob
    is calibrated has been complained of by its calibration."""
    method = arm.method
    if method is None or method.sparsity is None or method.calibrates() is not None:
        return None
    rows = -(-settings.length // method.block_size)
    least = 2 / (rows + 1)  # a diagonal of `rows` blocks among rows · (rows + 1) / 2
    if 1 - method.sparsity >= least - TOLERANCE:
        return None
    return (
        f"{arm.identity.method}: density {1 - method.sparsity:.3g} is out of reach at {settings.length} tokens in blocks of "
        f"{method.block_size}: every row keeps its own block, {least:.3g} of all; take longer prompts or smaller blocks"
    )
