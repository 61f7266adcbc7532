"""What a record holds: a dataclass for each kind, and its version; `harness.study.timing_schema` has those of times.
`harness.study.record_files` says which file holds which.

Records are JSON lines in `results/STUDY/records/`: `runs.jsonl` (one per process: command, commit, versions, device),
`samples.jsonl` (one per sample), `cells.jsonl` (the state of a cell, the last line of a cell counts), `latency.jsonl` (one per
arm, length and device), `mass.jsonl` (the attention mass an arm keeps), `arm_densities.jsonl` (the density of an arm without
answers), `calibrations.jsonl` (a native knob found for a sparsity), `checks.jsonl` (the self-check of an arm),
`perplexity.jsonl` (one per document) and, in a study of kernels without a model, `kernels.jsonl` (the state of a case); any of
them may lie compressed in `KIND.jsonl.xz` (job=archive). Samples point to their cell and their run by id, so a sweep of 100,000
samples stays small.
`leaderboard.csv` is made from these records alone; `harness.study.columns` says what its columns hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness.study.fields import (
    Amount,
    Count,
    FailureName,
    FinalState,
    KnobValues,
    PositiveAmount,
    PositiveCount,
    Share,
    State,
    SummedShare,
)

SCHEMA = 1
"""The version written into every record; raised when a field changes its meaning."""


class Status:
    """The values of `status` in the records of samples, documents, cells, checks and kernel cases."""

    RUNNING = "running"
    """Begun, and not finished yet (or killed): no row."""
    OK = "ok"
    FAILED = "failed"
    """Could not be computed; `reason` says why, and `harness.study.failures` when it is tried again."""
    GATED = "gated"
    """Computed, but a sanity gate says the number must not be published; `reason` says which."""


@dataclass(frozen=True)
class RunRecord:
    """One process that measured: everything the rows it wrote have in common. `launch` is the id of the command that it worked
    for, which all workers of a sweep share; empty in older records."""

    run: str
    date: str
    command: str
    commit: str
    versions: dict[str, str]
    device: str
    device_type: str
    threads: Count
    launch: str = ""
    schema: int = SCHEMA


@dataclass(frozen=True)
class SampleRecord:
    """One sample of one cell. `density` is the mean over layers (kept ÷ causal blocks, 1.0 where dense attention ran),
    `token_density` the same of (query, key) pairs (None in records older than it), `kernels` the attention kernels that ran at
    prefill, `decode_kernels` those at decode, `decode_density` the mean over the steps after the first token where a method
    decoded (kept ÷ the cache's blocks), `prefill_s` seconds from prompt to first token, without warm-up and perhaps beside
    other work, of prompts prefilled together an equal share: no timing; `cut` tokens were taken from its prompt by the task's
    own rules. `answers` is empty where they come
    from data files (the cell names them, `index` the row): records are published, and such data often may not be. `context` is
    how many of its tokens come before the question, where that was prefilled in a piece of its own; densities are of the first
    piece, `prefill_s` and `kernels` of both."""

    cell: str
    run: str
    index: Count
    prediction: str
    answers: list[str]
    score: Share
    tokens: Count
    prefill_s: Amount
    density: SummedShare | None
    kernels: list[str]
    status: FinalState
    reason: str
    date: str
    decode_kernels: list[str] = field(default_factory=list)
    decode_density: SummedShare | None = None
    token_density: SummedShare | None = None
    cut: Count = 0
    context: Count | None = None
    schema: int = SCHEMA


@dataclass(frozen=True)
class PerplexityRecord:
    """One document of one cell of perplexity: `nll` is the sum of the losses (nats) of `tokens` tokens, `read` how many went
    through the model for it, in `seconds` (without warm-up and perhaps beside other work: no timing); density and kernels as in
    `SampleRecord`."""

    cell: str
    run: str
    index: Count
    document: str
    tokens: PositiveCount
    nll: Amount | None
    read: PositiveCount
    seconds: PositiveAmount
    density: SummedShare | None
    token_density: SummedShare | None
    kernels: list[str]
    status: FinalState
    reason: str
    date: str
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.nll is None and self.status == Status.OK:
            raise ValueError("nll: null, although the status is ok")


@dataclass(frozen=True)
class CellRecord:
    """The state of one cell. `identity` is what its id is the hash of (see `harness.study.identity`); `arm` and `pair` are the
    ids of its arm (all tasks together) and of the comparison with dense it belongs to. `summary` holds what the cell's end
    printed, and `model_share`: of the time that the process spent on the arm's cells, what was spent generating. `notices`
    says in a line each what had to be assumed of the arm's weights. `traceback` is that of the error which `reason` says in a
    line, empty without one, and `kind` the name of its kind (`harness.study.failures`; empty in older records). `neighbour`:
    the arm's knob is one of the two whole numbers beside the density that was asked for, which are both measured."""

    cell: str
    arm: str
    pair: str
    run: str
    identity: dict[str, Any]
    status: State
    reason: str
    date: str
    knobs: KnobValues = field(default_factory=dict)
    haystack: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    traceback: str = ""
    neighbour: bool = False
    kind: FailureName = ""
    schema: int = SCHEMA


@dataclass(frozen=True)
class CalibrationRecord:
    """A native knob found for a sparsity. `identity` is what `calibration` is the hash of: the arm without the knob, and which
    prompts; `density` is what was reached on them, the mean over tasks, `tasks` on those of each task, `layers` in each layer;
    `tried` how many values were measured. `prompts`: those of the whole set; `prefills`: how many were prefilled for the
    search, in `seconds`. Of a knob that is a whole number `neighbour` is the next one, on the other side of the target, with
    `neighbour_density` and `neighbour_tasks`. `shipped`: it came with the model. Records without `tasks` are older: of two
    prompts that no test used."""

    calibration: str
    run: str
    identity: dict[str, Any]
    knob: str
    value: float
    target: Share
    density: SummedShare
    layers: list[SummedShare]
    tried: Count
    date: str
    tasks: dict[str, SummedShare] = field(default_factory=dict)
    prompts: Count = 0
    prefills: Count = 0
    seconds: Amount | None = None
    neighbour: float | None = None
    neighbour_density: SummedShare | None = None
    neighbour_tasks: dict[str, SummedShare] = field(default_factory=dict)
    shipped: bool = False
    schema: int = SCHEMA


@dataclass(frozen=True)
class CheckRecord:
    """The self-check of an arm on a short prompt, before its first sample (see `harness.measure.self_check`). `found` holds
    {name: [measured, at most]}; `density` is the method's on that prompt: 1 means that its selection could not be seen at work.
    `unchecked` are windows and RoPE switches of the model, in tokens, that the prompt's `tokens` don't pass: what the model
    does past them is not checked. Of several records of an arm the last counts; where it is gated, so are the arm's rows."""

    check: str
    arm: str
    run: str
    identity: dict[str, Any]
    status: FinalState
    reason: str
    found: dict[str, list[Amount | None]]
    tokens: Count
    density: SummedShare | None
    seconds: Amount
    date: str
    unchecked: list[Count] = field(default_factory=list)
    schema: int = SCHEMA


@dataclass(frozen=True)
class MassRecord:
    """The attention mass that one arm keeps, measured on activations of dense prefills. `kept` is [layers][heads], the share of
    the true attention on what the method selects in at most 16 query blocks, evenly spaced from the first to the last, mean
    over `prompts`; `density` that of each layer; `layers` their numbers (those of a sliding window are never sparse); `tokens`
    the mean length of the prompts; `identity` what `mass` is the hash of; `notices` and `neighbour` as in `CellRecord`."""

    mass: str
    arm: str
    run: str
    identity: dict[str, Any]
    knobs: KnobValues
    prompts: PositiveCount
    tokens: Amount
    layers: list[Count]
    kept: list[list[SummedShare]]
    density: list[SummedShare]
    date: str
    notices: list[str] = field(default_factory=list)
    neighbour: bool = False
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if not len(self.layers) == len(self.kept) == len(self.density) or not all(self.kept):
            raise ValueError("layers, kept and density: one of each layer, and in kept one number of each head")


@dataclass(frozen=True)
class GateStepRecord:
    """One step of the training of gates (`harness.training.gates.checkpoint.Step`). `training` is its name, new for every
    training and the same after a restart, which `run` is not; `about` of its first step holds the settings."""

    training: str
    run: str
    step: Count
    loss: float | None
    recall: SummedShare | None
    lr: Amount
    tokens: Count
    grad_norm: Amount | None
    seconds: Amount
    about: dict[str, Any] | None
    date: str
    schema: int = SCHEMA


@dataclass(frozen=True)
class FinetuneStepRecord:
    """One step of fine-tuning (`harness.training.finetune.finetune.FinetuneStep`). `loss` is the model's cross-entropy,
    `gate_loss` and `recall` those of its gates, null where it has none. `training`, `run` and `about` are as in
    `GateStepRecord`."""

    training: str
    run: str
    step: Count
    loss: float | None
    gate_loss: float | None
    recall: SummedShare | None
    density: SummedShare
    lr: Amount
    tokens: Count
    grad_norm: Amount | None
    gate_grad_norm: Amount | None
    seconds: Amount
    about: dict[str, Any] | None
    date: str
    schema: int = SCHEMA


@dataclass(frozen=True)
class DensityRecord:
    """The density of one arm on the prompts of some tasks, without an answer: `density` is the mean over tasks, `tasks` that of
    each, the mean over its prompts, `layers` that of each global layer. `identity` is what `arm_densities` is the hash of;
    `prompts` were prefilled in `seconds`; `neighbour` as in `CellRecord`."""

    arm_densities: str
    arm: str
    run: str
    identity: dict[str, Any]
    knobs: KnobValues
    density: SummedShare
    tasks: dict[str, SummedShare]
    layers: list[SummedShare]
    prompts: PositiveCount
    seconds: Amount
    date: str
    neighbour: bool = False
    schema: int = SCHEMA
