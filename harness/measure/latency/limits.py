"""What of an arm is timed, and how often: the limits of job=latency, and of the times that job=evaluate takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attention_kernels import dense

from harness.core import checks
from harness.core.errors import UserError
from harness.core.settings import MOST

ALL, DEFAULT = "auto", "default"
"""The values of job.dense_kernels that are no lists: every fast kernel that runs, and the one of dense_kernel= alone."""

STEPS = 16
"""Steps of decoding in a round, where job.decode_steps does not say."""


@dataclass(frozen=True)
class TimingLimits:
    """How often a call is timed, and for how many seconds at most; how many layers are timed by themselves (None: all), and
    beside which dense kernels (None: all fast ones that run); of which batches decoding is timed, in rounds of how many
    steps, and whether as CUDA graphs."""

    repeats: int
    seconds: float
    layers: int | None = None
    dense_kernels: tuple[str, ...] | None = None
    decode_batches: tuple[int, ...] = ()
    decode_steps: int = STEPS
    decode_graph: bool = False

    @property
    def identity(self) -> list[Any]:
        """Return what a timing is known by. Where all layers and kernels are timed, and no decoding, it is what it was before
        there was a choice."""
        limits: list[Any] = [self.repeats, self.seconds]
        if self.layers is not None or self.dense_kernels is not None:
            limits += [self.layers, self.dense_kernels]
        decoding = [self.decode_batches, self.decode_steps, self.decode_graph]
        return [*limits, {"decode": decoding}] if self.decode_batches else limits


def timing_limits(
    repeats: int, seconds: float, job: str, options: Mapping[str, Any], *, dense_kernel: str = "auto"
) -> TimingLimits:
    """Return the limits that a job's options ask for; jobs other than job=latency have no choice of these.
    dense_kernel: the setting of that name. Raises UserError for a number of layers, a kernel or a batch that can't be meant."""
    chosen = options if job == "latency" else {}
    return TimingLimits(
        repeats,
        seconds,
        checks.whole_number_or_null("job.layers", chosen.get("layers"), 1, MOST),
        _dense_kernels(chosen.get("dense_kernels", ALL), dense_kernel),
        _batches(chosen.get("decode_batches", [])),
        checks.whole_number("job.decode_steps", chosen.get("decode_steps", STEPS), 1, MOST),
        checks.true_or_false("job.decode_graph", chosen.get("decode_graph", False)),
    )


def _dense_kernels(value: Any, default: str) -> tuple[str, ...] | None:
    """Return the names of dense kernels that job.dense_kernels asks for, None for all that run."""
    if value == ALL:
        return None
    if value == DEFAULT:
        return (default,)
    names = value if isinstance(value, list) else [value]
    if not names or any(name not in dense.KERNELS for name in names):
        text = f"[{','.join(map(str, names))}]" if isinstance(value, list) else str(value)
        raise UserError(
            f"job.dense_kernels={text}: must be {ALL} (all that run), {DEFAULT} (that of dense_kernel=), or a list of: "
            f"{', '.join(dense.KERNELS)}"
        )
    return tuple(sorted(set(names)))


def _batches(value: Any) -> tuple[int, ...]:
    """Return the batches of job.decode_batches in ascending order; none where decoding is not timed."""
    numbers = value if isinstance(value, list) else [value]
    whole = all(isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= MOST for number in numbers)
    if not whole or len(set(numbers)) < len(numbers):
        text = f"[{','.join(map(str, numbers))}]" if isinstance(value, list) else "null" if value is None else str(value)
        raise UserError(
            f"job.decode_batches={text}: must be a list of different whole numbers from 1 to {MOST}, such as [1,4,16], or [] "
            "to time no decoding"
        )
    return tuple(sorted(numbers))
