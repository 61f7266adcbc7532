"""One side of a gate's scores: pooled vectors of queries or keys, and what is done with them before they are multiplied."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Side:
    """Pooled vectors of queries or keys, float32 [B, Hx, M, I], and what is done with them before they are multiplied.

    weight: [H, I, D], a map for each gate head, head h reading x's head h // (H // Hx); None maps nothing. cos, sin: float32
    [M, R/2], RoPE at each block's position; None for none.
    """

    pooled: Tensor
    weight: Tensor | None = None
    cos: Tensor | None = None
    sin: Tensor | None = None

    def is_projected(self) -> bool:
        """Return whether there is nothing left to do with the vectors."""
        return self.weight is None and self.cos is None
