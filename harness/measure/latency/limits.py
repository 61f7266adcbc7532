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


@dataclass(frozen=True)
class TimingLimits:
    """How often a call is timed, and for how many seconds at most; how many layers are timed by themselves (None: all), and
    beside which dense kernels (None: all fast ones that run)."""

    repeats: int
    seconds: float
    layers: int | None = None
    dense_kernels: tuple[str, ...] | None = None

    @property
    def identity(self) -> list[Any]:
        """Return what a timing is known by. Where all layers and kernels are timed it is what it was before there was a
        choice."""
        limits: list[Any] = [self.repeats, self.seconds]
        return limits if self.layers is None and self.dense_kernels is None else [*limits, self.layers, self.dense_kernels]


def timing_limits(
    repeats: int, seconds: float, job: str, options: Mapping[str, Any], *, dense_kernel: str = "auto"
) -> TimingLimits:
    """Return the limits that a job's options ask for; jobs other than job=latency have no choice of layers and kernels.
    dense_kernel: the setting of that name. Raises UserError for a number of layers, or a kernel, that can't be meant."""
    chosen = options if job == "latency" else {}
    layers = checks.whole_number_or_null("job.layers", chosen.get("layers"), 1, MOST)
    return TimingLimits(repeats, seconds, layers, _dense_kernels(chosen.get("dense_kernels", ALL), dense_kernel))


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
