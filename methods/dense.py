"""Dense attention: the baseline every method is compared with."""

from __future__ import annotations

from methods import register
from methods.parts.base import LayerInputs, Method


@register("dense")
class Dense(Method):
    """Keeps every key, in a dense kernel. It ignores the sparsity that is asked for: its own is always 0."""

    paper = "Attention Is All You Need, arXiv 1706.03762"
    knob = "none"
    family = "none"

    def __init__(self, *, block_size: int = 64, sparsity: float | None = None, seed: int = 0) -> None:
        super().__init__(block_size=block_size, sparsity=sparsity, seed=seed)
        self.sparsity = 0.0

    def select(self, x: LayerInputs) -> None:
        return None


if __name__ == "__main__":
    from methods.parts.demo import demo

    demo("dense")
