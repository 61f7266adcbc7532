"""The rule by which tiles are skipped inside attention, as a method hands it on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SkipRule:
    """Skip a tile of q_block queries by k_block keys where, for every query t, its best score is below t's best so far by more
    than the factor `threshold` allows: exp(tile best - running best) < threshold (BLASST, arXiv 2512.12087).

    Tiles are met from the first key on; the running best is that of the tiles that were computed, so a query's first tile
    always is, as are those over a query block's own tokens. threshold 0 skips nothing. At up to 1 it is the share of the
    running best's weight below which a key counts for nothing; above 1, a tile must exceed the running best by that factor.
    """

    threshold: float
    q_block: int
    k_block: int

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < math.inf:
            raise ValueError(f"threshold={self.threshold}: must be at least 0 (skip nothing) and finite")

    @property
    def log(self) -> float:
        """Return natural logarithm of the threshold, -inf for 0."""
        return math.log(self.threshold) if self.threshold else -math.inf

    def grid(self, q: Tensor, k: Tensor) -> dict[str, int]:
        """Return the tiles of q [B,Hq,Q,D] and k [B,Hkv,K,D], as BlockIndex takes them."""
        return {"q_block": self.q_block, "k_block": self.k_block, "q_len": q.shape[2], "k_len": k.shape[2]}
