"""BLASST: no block is selected; the kernel skips a tile whose scores are too far below what its queries have seen."""

from __future__ import annotations

from attention_kernels.skip_softmax import SkipRule

from methods import register
from methods.parts.base import Knob, LayerInputs, Method


@register("blasst")
class Blasst(Method):
    """Inside the attention kernel, after Q·K of a tile: its softmax, values and second product are skipped where
    exp(best score of the tile - best score so far) is below a threshold for every query of the tile.

    factor: the threshold is factor ÷ keys, for longer prompts need smaller ones; 1000, the example of TensorRT-LLM, whose
    calibration gives 50 % at 587 and 90 % at 18,472 for Qwen3-30B-A3B. With a sparsity it is calibrated. 0 skips nothing.
    Tiles are block_size × block_size (128 there). Deviations: tiles over a query block's own tokens are always computed; a
    threshold above 1, which a high sparsity may call for, asks a tile to exceed the best by that factor.
    """

    paper = "BLASST, arXiv 2512.12087"
    knob = "threshold"
    family = "threshold"
    in_kernel = True

    def __init__(
        self, *, block_size: int = 64, sparsity: float | None = None, seed: int = 0, factor: float | None = None
    ) -> None:
        super().__init__(block_size=block_size, sparsity=sparsity, seed=seed)
        self.one_of(factor=factor)
        if factor is not None and factor < 0:
            raise ValueError(f"factor={factor}: must be at least 0 (skip nothing)")
        self.factor = 1000.0 if factor is None else factor

    def calibrates(self) -> Knob | None:
        return Knob("factor", low=1e-6, high=1e12, rising=False, log=True) if self.sparsity else None

    def select(self, x: LayerInputs) -> SkipRule:
        threshold = 0.0 if self.sparsity == 0 else self.factor / x.k.shape[2]
        return SkipRule(threshold, q_block=self.block_size, k_block=self.block_size)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return {"factor": self.factor}


if __name__ == "__main__":
    from methods.parts.demo import demo

    demo("blasst")
