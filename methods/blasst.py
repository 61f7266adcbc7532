"""BLASST: no block is selected; the kernel skips a tile whose scores lie too far below the best that its queries have seen."""

from __future__ import annotations

from attention_kernels.skip_softmax import SkipRule

from methods import register
from methods.parts.base import Knob, LayerInputs, Method
from methods.parts.release import Release


@register("blasst")
class Blasst(Method):
    """Skips the softmax, the values and the second product of a tile, inside the attention kernel and after its Q·K, where
    exp(best score of the tile - best score so far) is below a threshold for every query of the tile.

    It needs no weights and no search, but a kernel that takes a `SkipRule`.

    factor: the threshold is factor ÷ number of keys, since longer prompts need smaller ones. The default of 1000 is the example
    of TensorRT-LLM, whose calibration gives 587 for 50 % and 18,472 for 90 % with Qwen3-30B-A3B. 0 skips nothing. With a
    sparsity the factor is calibrated.

    Tiles are block_size × block_size tokens (128 in the release). Deviations: tiles over a query block's own tokens are always
    computed; a threshold above 1, which a high sparsity may call for, asks a tile to exceed the best by that factor.
    """

    paper = "BLASST, arXiv 2512.12087"
    knob = "threshold"
    family = "threshold"
    in_kernel = True
    release = Release(
        "NVIDIA/TensorRT-LLM",
        source="docs/source/features/sparse-attention.md",
        settings={"block_size": 128},
        density={"factor": 1000.0},
    )

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
        threshold = 0.0 if self.sparsity == 0 else self.factor / x.prompt_tokens
        return SkipRule(threshold, q_block=self.block_size, k_block=self.block_size)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return {"factor": self.factor}


if __name__ == "__main__":
    from methods.parts.demo import demo

    demo("blasst")
