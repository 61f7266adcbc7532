"""A row of a leaderboard: what one arm reached on one task, or the mean over its tasks, as values.

Text is made of it where it leaves the program: `harness.report.leaderboard_csv` writes the columns, `harness.report.lines` the
names of lines in pictures and tables. `harness.study.columns.COLUMNS` says what the columns mean; fields of the same name mean
the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from harness.study.full_rows import FullRows
from harness.study.matching import Match
from harness.study.schema import Status
from harness.study.store import Record
from harness.study.verdict import Score

KnobValue = bool | int | float | str | None
Knobs = Mapping[str, KnobValue]
"""Native knobs of a method by name, as a record holds them; None: the method's own default."""


class Answer(NamedTuple):
    """What an arm made of one prompt: its score in [0, 1] and the densities measured on it, None where one isn't known."""

    score: float
    density: float | None = None
    token_density: float | None = None
    decode_density: float | None = None


@dataclass(frozen=True)
class Decode:
    """How tokens after the first were computed: by a method of decoding with its knobs, or (method None) with full attention;
    kernels: those that ran."""

    method: str | None = None
    knobs: Knobs = field(default_factory=dict)
    kernels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Origin:
    """Where a row's numbers come from: device, versions, commit, commands and the last date of the processes that made them;
    of several, each different value, joined by "+" (commands by "; ")."""

    device: str
    torch: str | None
    triton: str | None
    transformers: str | None
    commit: str | None
    command: str | None
    date: str


@dataclass(frozen=True)
class DecodeSpeed:
    """Tokens a second of one batch, all its sequences together: as the arm decodes, the 10th and the 90th percentile of its
    rounds, and after the same prefill with dense attention. peak_mib: GPU memory meanwhile, in MiB. timing: how both were
    timed, "events" or "graph" (`harness.study.timing_schema.LatencyRecord`)."""

    tokens_s: float
    low: float
    high: float
    dense_tokens_s: float
    timing: str
    peak_mib: float | None = None

    @property
    def speedup(self) -> float:
        """Return how many times faster than dense attention the arm decodes."""
        return self.tokens_s / self.dense_tokens_s


@dataclass(frozen=True)
class Times:
    """Times of an arm: milliseconds per attention layer call, `ttft_ms` of a whole prefill, `dense_ttft_ms` and
    `no_attention_ttft_ms` of one with dense attention and with none. `dense_ms` is of the fastest dense kernel, `density` that
    of the prompt that was timed, `peak_mib` in MiB, `tflops` reached, `attention_layers` how many layers a method chooses in.
    `_low` and `_high` are 10th and 90th percentiles. paired: all are of the same rounds
    (`harness.study.timing_schema.LatencyRecord`). decode: of decoding, by the sequences of a batch; decode_failed: why a batch
    was not timed."""

    selection_ms: float
    attention_ms: float
    total_ms: float
    dense_ms: float
    density: float
    tflops: float
    ttft_ms: float
    dense_ttft_ms: float | None
    peak_mib: float | None
    paired: bool = False
    no_attention_ttft_ms: float | None = None
    attention_layers: int | None = None
    decode: Mapping[int, DecodeSpeed] = field(default_factory=dict)
    decode_failed: Mapping[int, str] = field(default_factory=dict)
    total_low: float | None = None
    total_high: float | None = None
    ttft_low: float | None = None
    ttft_high: float | None = None

    @property
    def speedup(self) -> float:
        """Return how many times faster than dense attention the method is, its selection included."""
        return self.dense_ms / self.total_ms

    @property
    def pct_ideal(self) -> float:
        """Return per cent of the speed that time in proportion to the density would give."""
        return 100 * self.dense_ms * self.density / self.total_ms

    @property
    def ttft_speedup(self) -> float | None:
        """Return how many times faster than with dense attention the whole prefill is; None where that was not timed."""
        return _ratio(self.dense_ttft_ms, self.ttft_ms)

    @property
    def ttft_limit(self) -> float | None:
        """Return how many times faster than with dense attention the whole prefill is without any; None where that was not
        timed. No method of attention can be faster."""
        return _ratio(self.dense_ttft_ms, self.no_attention_ttft_ms)

    @property
    def rest_ms(self) -> float | None:
        """Return what is left of the prefill once its attention and selection, by their times per layer call, are subtracted.

        Beside `no_attention_ttft_ms`, which is measured, it shows how far calls of a layer alone are from those of a prefill.
        """
        return None if self.attention_layers is None else self.ttft_ms - self.attention_layers * self.total_ms


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


@dataclass(frozen=True)
class PerplexityComparison:
    """A method's perplexity beside dense attention's on the same documents: their ratio with its 95 % interval (None for a
    single document), and the p-value that both are equally good."""

    dense_perplexity: float
    perplexity_ratio: float
    perplexity_ratio_low: float | None
    perplexity_ratio_high: float | None
    p_value: float


@dataclass(frozen=True)
class Perplexity:
    """The mean loss in nats a token, its exponential with the 95 % interval over documents (None for a single one), tokens a
    second through the model, and the comparison with dense attention where there is one."""

    nll: float
    perplexity: float
    perplexity_low: float | None
    perplexity_high: float | None
    tokens_s: float
    comparison: PerplexityComparison | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row. What was not measured is None, or empty.

    arm: the arm's id. generator: the version of the task's prompts. group: equal for an average row and the rows of single
    tasks that it averages. knobs: the native knobs. dense_layer_kernel: the kernel of layers that the arm leaves dense;
    dense_kernel: the fastest dense one, where the arm was timed. kernels: those that ran at prefill. p_holm, margin,
    noninferior: see `harness.report.significance`. match: see `harness.report.density_match`; neighbour: whether the arm's knob
    is one of the two whole numbers beside the request. full_rows: query blocks that were kept in full, of a method that may
    keep some (`harness.study.full_rows`). settings: those that measure it again (`harness.study.command_settings`).

    answers: of a row of a single task, those to its prompts by index. samples_seen: equal for rows whose prompts are equal
    wherever their indices are. documents: of a row of perplexity, their records by index. prompt_set: see
    `harness.report.common_tasks`, of a row of perplexity `harness.report.common_documents`.
    """

    study: str
    arm: str
    group: str | None = None
    cell: str = ""
    model: str
    method: str
    knobs: Knobs = field(default_factory=dict)
    sparsity: float | None
    length: int
    seed: int
    dtype: str
    block_size: int | None
    decode: Decode = Decode()
    dense_layer_kernel: str | None = None
    task: str = ""
    question: str = ""
    prefill_chunk: int | None = None
    haystack: str = ""
    generator: str = ""
    samples: int | None = None
    tasks: int | None = None
    truncated: int | None = None
    kernels: tuple[str, ...] = ()
    dense_kernel: str | None = None
    density: float | None = None
    token_density: float | None = None
    decode_density: float | None = None
    kept_mass: float | None = None
    status: str = Status.OK
    reason: str = ""
    origin: Origin
    times: Times | None = None
    score: Score | None = None
    perplexity: Perplexity | None = None
    p_holm: float | None = None
    margin: float | None = None
    noninferior: bool | None = None
    neighbour: bool = False
    match: Match | None = None
    prompt_set: str = ""
    samples_seen: str = ""
    answers: Mapping[int, Answer] = field(default_factory=dict, repr=False, compare=False)
    documents: Mapping[int, Record] = field(default_factory=dict, repr=False, compare=False)
    full_rows: FullRows | None = None
    settings: tuple[str, ...] = ()

    @property
    def device(self) -> str:
        """Return the device that the row was measured on."""
        return self.origin.device

    @property
    def is_baseline(self) -> bool:
        """Return whether it is a row of dense attention, at prefill and decode."""
        return self.block_size is None and self.decode.method is None

    @property
    def sparse_kernels(self) -> tuple[str, ...]:
        """Return the kernels that ran at prefill, without that of layers which were left dense; all of them where nothing else
        ran."""
        sparse = tuple(name for name in self.kernels if name != self.dense_layer_kernel)
        return sparse or self.kernels

    @property
    def scored(self) -> Score:
        """Return the score of a row that is known to have one. Raises ValueError in any other."""
        if self.score is None:
            raise ValueError(f"row of {self.method} on {self.task or 'no task'}: it has no accuracy")
        return self.score

    @property
    def p_value(self) -> float | None:
        """Return the p-value of the comparison with dense attention, of accuracies or of perplexities."""
        measured = self.score or self.perplexity
        return measured.comparison.p_value if measured is not None and measured.comparison is not None else None

    @property
    def total_ms(self) -> float | None:
        """Return milliseconds of an attention layer call, selection included, where the arm was timed."""
        return None if self.times is None else self.times.total_ms

    @property
    def dense_ms(self) -> float | None:
        """Return milliseconds of a dense attention layer call, where the arm was timed."""
        return None if self.times is None else self.times.dense_ms


def is_number(value: KnobValue) -> bool:
    """Return whether the value of a knob is a number, or not given."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
