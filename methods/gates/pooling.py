"""How a gate pools queries and keys, by the names that SeerAttention's paper and release give: Qavg_Kmaxminavg, say."""

from __future__ import annotations

import re
from typing import Any

from attention_kernels.pool import Pool

USUAL_POOLING = "Qavg_Kmaxminavg"
"""What the released gates pool by."""
WAYS: dict[str, Pool] = {"max": "max", "min": "min", "avg": "mean"}
"""Ways to pool by their names, in the order in which a name has them and pooled vectors are concatenated."""
_NAME = re.compile(r"Q((?:max)?(?:min)?(?:avg)?)_K((?:max)?(?:min)?(?:avg)?)")


def ways_of(pooling: Any) -> tuple[tuple[Pool, ...], tuple[Pool, ...]]:
    """Return the ways in which queries and keys are pooled. Raises ValueError for a name that is none."""
    parts = _NAME.fullmatch(pooling) if isinstance(pooling, str) else None
    if parts is None or not all(parts.groups()):
        raise ValueError(
            f"pooling={pooling}: must be Q and K with the ways that each is pooled in, of max, min and avg in this order, "
            f"for example {USUAL_POOLING}"
        )
    queries, keys = (tuple(way for name, way in WAYS.items() if name in part) for part in parts.groups())
    return queries, keys
