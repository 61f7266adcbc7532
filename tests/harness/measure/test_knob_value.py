"""A knob's value that was found before is taken with its sparsity: nothing is searched."""

from __future__ import annotations

from typing import Any, cast

import pytest

from harness.arms.build import RunnableArm, build_arms
from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.measure.knob_values import calibrated_arms
from harness.measure.request_checks import check_without_model
from tests.harness.settings import merged
from tests.harness.tiny import shared

ARGUMENTS = ("device=cpu", "dtype=float32", "length=128", "block_size=16", "sparsity=0.7")


def arms_of(*arguments: str) -> tuple[Settings, list[RunnableArm]]:
    """The settings of a command, and the arms of its method without a search, which would need what is None here."""
    settings, nothing = merged(*ARGUMENTS, *arguments), cast(Any, None)
    return settings, calibrated_arms(nothing, settings, build_arms(settings, shared("llama"))[-1], nothing)


def test_a_value_is_taken_with_its_sparsity() -> None:
    """The row is that of a search which found it: of its sparsity, with as many full rows as that pays."""
    _, (arm,) = arms_of("method=xattention", "method.last=2", "knob_value=0.0123")
    assert (arm.identity.sparsity, arm.identity.knobs["threshold"], arm.identity.knobs["last"]) == (0.7, 0.0123, 2)
    assert arm.method is not None and arm.method.sparsity == 0.7


def test_a_value_that_the_knob_can_not_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"^knob_value=2: threshold of xattention lies between 0 and 1$"):
        arms_of("method=xattention", "knob_value=2")
    with pytest.raises(UserError, match=r"^knob_value=0\.5: random needs none at sparsity=0.7: leave it out$"):
        check_without_model(merged(*ARGUMENTS, "method=random", "knob_value=0.5"), [])
    with pytest.raises(UserError, match=r"^knob_value=much: must be null or a finite number$"):
        merged("knob_value=much")
