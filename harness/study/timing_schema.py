"""What the records of times hold: of an arm beside dense attention, and of a kernel without a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness.study.fields import Amount, Count, KernelTimes, KnobValues, PositiveAmount, PositiveCount, State, SummedShare
from harness.study.schema import SCHEMA


@dataclass(frozen=True)
class LatencyRecord:
    """Times of one arm at one length on one device. Of several records of one arm and device the last counts.

    Times are milliseconds per attention layer call; those of a whole prefill have `ttft` in their names. `_low` and `_high` are
    10th and 90th percentiles.

    tokens: of the prompt they were taken on. dense: every dense kernel timed in the same run; dense_kernel is the fastest,
    dense_failed why others could not be. density, token_density: kept ÷ causal blocks, and attended ÷ causal (query, key)
    pairs, of the layers whose calls were timed (timed_layers), on what dense attention made of the layers before. kept_mass:
    share of the true attention on their kept blocks (see `MassRecord`), kept_by_layer of each. paired: all times of a layer
    are its total × the median ratio of the rounds that they share; else (older records) each is a median by itself.

    dense_ttft_ms: the prefill with dense attention, no_attention_ttft_ms without that of the `attention_layers` layers in which
    a method chooses, both in turns with the method's. ttft_rounds: of each round, see `harness.measure.latency.prefill`.
    prefill_density, prefill_token_density: the method's in this prefill. peak_mib: of a prefill, weights included.

    decode_steps: of a round of decoding that were timed, null where none were, as in older records. The fields of decoding are
    by batch, the number of sequences. decode_tokens_s: tokens a second of all sequences together as the arm decodes, the median
    round, `_low` and `_high` the 10th and 90th percentile; dense_decode_tokens_s: after the same prefill, with dense attention,
    in turns with the arm's own (`beside` it). decode_rounds: milliseconds of each round's steps. decode_peak_mib: GPU memory
    while the arm decodes, weights included. decode_failed: why a batch was not timed. decode_density: kept ÷ all blocks at
    these steps, null for dense decoding; decode_kernels: of attention that ran at them. decode_timing: "events", step by step
    as Python launches them, or "graph", replayed as a CUDA graph.

    full_row_kernel: the kernel that ran the last rows which keep everything, beside `kernel` or in it; null where there were
    none, and in older records, where `kernel` ran them too. neighbour, notices: as in `CellRecord`.
    """

    latency: str
    arm: str
    run: str
    identity: dict[str, Any]
    knobs: KnobValues
    device: str
    kernel: str
    density: SummedShare
    selection_ms: Amount
    attention_ms: Amount
    total_ms: PositiveAmount
    total_low: Amount
    total_high: Amount
    dense_ms: PositiveAmount
    dense_kernel: str
    dense: dict[str, Amount]
    dense_failed: dict[str, str]
    repeats: Count
    tflops: Amount
    ttft_ms: Amount
    ttft_low: Amount
    ttft_high: Amount
    peak_mib: Amount | None
    tokens: Count
    date: str
    dense_ttft_ms: Amount | None = None
    kept_mass: SummedShare | None = None
    kept_by_layer: list[SummedShare | None] = field(default_factory=list)
    token_density: SummedShare | None = None
    paired: bool = False
    neighbour: bool = False
    notices: list[str] = field(default_factory=list)
    full_row_kernel: str | None = None
    no_attention_ttft_ms: Amount | None = None
    ttft_rounds: dict[str, list[Amount]] = field(default_factory=dict)
    prefill_density: SummedShare | None = None
    prefill_token_density: SummedShare | None = None
    attention_layers: Count | None = None
    timed_layers: list[Count] = field(default_factory=list)
    decode_steps: PositiveCount | None = None
    decode_tokens_s: dict[str, PositiveAmount] = field(default_factory=dict)
    decode_tokens_s_low: dict[str, PositiveAmount] = field(default_factory=dict)
    decode_tokens_s_high: dict[str, PositiveAmount] = field(default_factory=dict)
    dense_decode_tokens_s: dict[str, PositiveAmount] = field(default_factory=dict)
    decode_rounds: dict[str, dict[str, list[Amount]]] = field(default_factory=dict)
    decode_peak_mib: dict[str, Amount] = field(default_factory=dict)
    decode_failed: dict[str, str] = field(default_factory=dict)
    decode_density: SummedShare | None = None
    decode_kernels: list[str] = field(default_factory=list)
    decode_timing: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


@dataclass(frozen=True)
class KernelRecord:
    """The state of one case of a study of kernels, the last line of a case counts. `identity` is what was timed (see
    `harness.measure.kernel_speed.cases`) and on which shape, dtype and seed; `case` is the hash of it, the device, commit,
    versions and limits. `times` holds [median, 10th percentile, 90th percentile, repeats] in milliseconds of "attention",
    "selection" and "total" (both timed as one; of dense attention, a selection alone or a block map: the call). `density`,
    `flop`, `q_block` and `k_block` are of the index that ran, which a kernel that merges blocks makes coarser than the one it
    was given (`identity["block"]`). `error` is relative, against float32 attention over that index. `dense_ms` is the fastest
    dense kernel, of dense and sparse cases in the rounds of the case itself (`paired`); in older records, and of selections and
    block maps, of the same process at this length. `final`: a failure that the next run need not try again. `traceback`: of the
    error that `reason` says in a line."""

    case: str
    run: str
    identity: dict[str, Any]
    device: str
    status: State
    reason: str
    date: str
    times: dict[str, KernelTimes] = field(default_factory=dict)
    density: SummedShare | None = None
    flop: Amount | None = None
    kv_bytes: Amount | None = None
    q_block: PositiveCount | None = None
    k_block: PositiveCount | None = None
    error: Amount | None = None
    dense_ms: PositiveAmount | None = None
    dense_kernel: str | None = None
    peak_mib: Amount | None = None
    timing: str = "events"
    about: dict[str, Any] = field(default_factory=dict)
    final: bool = False
    traceback: str = ""
    paired: bool = False
    schema: int = SCHEMA
