"""The types of a record's fields, with the ranges that every line is held to as it is read and before it is written.

What an identity holds beyond the fields named here is not read by reports, and may be anything.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

Share = Annotated[float, Meta(ge=0, le=1)]
"""A fraction."""
SummedShare = Annotated[float, Meta(ge=0, le=1.001)]
"""A fraction that was added up in float32, where the whole may come out as a little more than 1."""
Count = Annotated[int, Meta(ge=0)]
PositiveCount = Annotated[int, Meta(ge=1)]
Amount = Annotated[float, Meta(ge=0, le=1e18)]
"""A time, a loss or anything else that is never below 0; what is larger was not measured, and can't be drawn."""
PositiveAmount = Annotated[float, Meta(gt=0, le=1e18)]
"""An amount that others are divided by."""
State = Annotated[str, Meta(pattern="^(running|ok|failed|gated)$")]
"""The status of a cell or of a kernel case (`schema.Status`)."""
FailureName = Annotated[str, Meta(pattern="^(|memory|device|time_out|not_finite|weights|input|error)$")]
"""The kind of a failure (`harness.study.failures`), empty where there is none."""
FinalState = Annotated[str, Meta(pattern="^(ok|gated)$")]
"""The status of what is recorded only once it was computed."""
KernelTimes = Annotated[list[Amount], Meta(min_length=4, max_length=4)]
"""Median, 10th and 90th percentile in milliseconds, and how many calls there were."""
KnobValues = dict[str, bool | int | float | str | None]
"""Native knobs by name; None: the method's own default."""


class DecodeFields(TypedDict):
    """How an arm decodes, in its identity."""

    method: str
    knobs: KnobValues


class ArmFields(TypedDict):
    """What reports read of an arm's identity (`harness.study.identity.ArmIdentity.as_dict`)."""

    model: str
    model_hash: str
    length: PositiveCount
    seed: Count
    dtype: str
    device_type: str
    dense_kernel: str
    method: str
    sparsity: Share | None
    knobs: KnobValues
    block_size: PositiveCount | None
    kernel: str | None
    weights_hash: str | None
    decode: NotRequired[DecodeFields]


class CheckFields(ArmFields):
    """What reports read of the identity of an arm that was checked, as its prompts were given to the model."""

    chat_template: bool
    question: NotRequired[str]


class CellFields(CheckFields):
    """What reports read of a cell's identity (`harness.study.identity.Cell.as_dict`)."""

    task: str
    generator: str
    data: dict[str, Any]
    files: NotRequired[dict[str, str]]
    sizing: NotRequired[str]


class CaseFields(TypedDict):
    """What reports read of the identity of a kernel case (`harness.measure.kernel_speed.recorder.Recorder.as_dict`)."""

    op: Annotated[str, Meta(pattern="^(full|sparse|selection|block_map)$")]
    length: PositiveCount
    batch: PositiveCount
    kernel: str
    method: str
    block: PositiveCount | None
    sparsity: Share | None
    index: str
    selection: str
    phase: str
    shape: str
    dtype: str
    seed: Count


class CellSummary(TypedDict, total=False):
    """What is read of a cell's summary. `check`: the id of the self-check that its verdict is from, where there was one."""

    samples: PositiveCount
    check: str
