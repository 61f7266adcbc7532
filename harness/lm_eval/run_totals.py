"""What ran while lm-eval asked, in total for each task: prompts, densities and kernels, for the results file."""

from __future__ import annotations

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
class Lengths:
    """Tokens of prompts: the shortest, the longest and the mean of all; `prompts` is how many there are."""

    prompts: int = 0
    shortest: int = 0
    longest: int = 0
    tokens: int = 0

    def add(self, tokens: int, prompts: int = 1) -> None:
        """Take in prompts of so many tokens each."""
        self.shortest = min(self.shortest, tokens) if self.prompts else tokens
        self.longest = max(self.longest, tokens)
        self.prompts, self.tokens = self.prompts + prompts, self.tokens + tokens * prompts

    @property
    def mean(self) -> float:
        """Return the mean, 0 of no prompts."""
        return self.tokens / self.prompts if self.prompts else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the lengths as the results file has them."""
        return {"prompts": self.prompts, "shortest": self.shortest, "mean": round(self.mean, 1), "longest": self.longest}


@dataclass
class RunTotals:
    """One task's totals.

    lengths: of the prompts that were run; by_length: of those whose task says which length it was asked for, by that. cut:
    prompts cut to fit. density, token_density: means over prompts and layers. decode_density: mean over the sequences that took
    a step. kernels, decode_kernels: all that ran.
    """

    lengths: Lengths = field(default_factory=Lengths)
    by_length: dict[int, Lengths] = field(default_factory=dict)
    cut: int = 0
    density: Mean = field(default_factory=Mean)
    token_density: Mean = field(default_factory=Mean)
    decode_density: Mean = field(default_factory=Mean)
    kernels: set[str] = field(default_factory=set)
    decode_kernels: set[str] = field(default_factory=set)

    def add_prefills(self, bridge: Bridge) -> None:
        """Add the prefills since the bridge's last reset, prompt by prompt, and reset it. Waits for the device."""
        for layer in bridge.stats():
            self.kernels |= set(layer["kernel"].split("+"))
            for mean, values in ((self.density, layer["densities"]), (self.token_density, layer["token_densities"])):
                for value in values:  # a layer of a sliding window has none, or fewer where prompts are shorter than it
                    mean.add(value)
        self.decode_kernels |= bridge.decode_kernels
        bridge.reset()

    def as_dict(self) -> dict[str, Any]:
        """Return the totals as the results file has them; those by length where a task asks for lengths."""
        by_length = {str(asked): lengths.as_dict() for asked, lengths in sorted(self.by_length.items())}
        return {
            **self.lengths.as_dict(),
            **({"by_length": by_length} if by_length else {}),
            "cut": self.cut,
            "density": self.density.value,
            "token_density": self.token_density.value,
            "decode_density": self.decode_density.value,
            "kernels": sorted(self.kernels),
            "decode_kernels": sorted(self.decode_kernels),
        }

    def line(self) -> str:
        """Return the totals as one line for the terminal."""
        parts = [f"{self.lengths.prompts} prompts of up to {self.lengths.longest} tokens"]
        parts += [f"those of {asked} of {v.mean:.0f} on average" for asked, v in sorted(self.by_length.items())]
        if self.density.value is not None:
            parts.append(f"density {self.density.value:.3f} ({'+'.join(sorted(self.kernels))})")
        if self.decode_density.value is not None:
            parts.append(f"at decode {self.decode_density.value:.3f} ({'+'.join(sorted(self.decode_kernels))})")
        if self.cut:
            parts.append(f"{self.cut} cut from the left to fit")
        return ", ".join(parts)
