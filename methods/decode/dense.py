"""Dense decoding: the newest token attends to every key. It is the baseline that all others are compared with."""

from __future__ import annotations

from typing import Any

from methods.decode import register
from methods.decode.parts.base import DecodeMethod, StepInputs


@register("dense")
class Dense(DecodeMethod):
    """Keeps every key, in a dense kernel."""

    paper = "Attention Is All You Need, arXiv 1706.03762"
    knob = "none"
    family = "none"

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(sparsity=0.0, seed=seed)

    def select(self, x: StepInputs, state: Any) -> None:
        return None


if __name__ == "__main__":
    from methods.decode.parts.demo import demo

    demo("dense")
