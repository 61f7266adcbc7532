"""What ran while lm-eval asked, in total for each task: prompts, densities and kernels, for the results file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.models.bridge import Bridge


@dataclass
class Mean:
    """A weighted mean that values are added to."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        """Take in a value."""
        self.total += value * weight
        self.weight += weight

    @property
    def value(self) -> float | None:
        """Return the mean, None before the first value."""
        return self.total / self.weight if self.weight else None


@dataclass
class RunTotals:
    """One task's totals.

    prompts: how many were run. longest: tokens of the longest. cut: prompts cut to fit. density, token_density: means over
    prompts and layers. decode_density: mean over the sequences that took a step. kernels, decode_kernels: all that ran.
    """

    prompts: int = 0
    longest: int = 0
    cut: int = 0
    density: Mean = field(default_factory=Mean)
    token_density: Mean = field(default_factory=Mean)
    decode_density: Mean = field(default_factory=Mean)
    kernels: set[str] = field(default_factory=set)
    decode_kernels: set[str] = field(default_factory=set)

    def add_prefills(self, bridge: Bridge, rows: Sequence[int]) -> None:
        """Add the prefills since the bridge's last reset, `rows` prompts in each, and reset it. Waits for the device."""
        self.prompts += sum(rows)
        for layer in bridge.stats():
            self.kernels |= set(layer["kernel"].split("+"))
            for mean, values in ((self.density, layer["densities"]), (self.token_density, layer["token_densities"])):
                # a layer of a sliding window has none, or fewer where some prompts are shorter than its window
                weights = rows if len(values) == len(rows) else [1] * len(values)
                for value, weight in zip(values, weights, strict=True):
                    mean.add(value, weight)
        self.decode_kernels |= bridge.decode_kernels
        bridge.reset()

    def as_dict(self) -> dict[str, Any]:
        """Return the totals as the results file has them."""
        return {
            "prompts": self.prompts,
            "longest": self.longest,
            "cut": self.cut,
            "density": self.density.value,
            "token_density": self.token_density.value,
            "decode_density": self.decode_density.value,
            "kernels": sorted(self.kernels),
            "decode_kernels": sorted(self.decode_kernels),
        }

    def line(self) -> str:
        """Return the totals as one line for the terminal."""
        parts = [f"{self.prompts} prompts of up to {self.longest} tokens"]
        if self.density.value is not None:
            parts.append(f"density {self.density.value:.3f} ({'+'.join(sorted(self.kernels))})")
        if self.decode_density.value is not None:
            parts.append(f"at decode {self.decode_density.value:.3f} ({'+'.join(sorted(self.decode_kernels))})")
        if self.cut:
            parts.append(f"{self.cut} cut from the left to fit")
        return ", ".join(parts)
