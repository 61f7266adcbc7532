"""How long a text a model takes: what its config says, scaled RoPE counted in, or what the user says instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.core.errors import UserError

STRETCHED = ("yarn", "longrope", "linear", "dynamic")
"""RoPE types whose factor is the longest text ÷ that of pretraining. Llama 3's own type writes the longest text itself, and its
factor is another number."""


def max_length(config: Any, asked: int | None, name: str) -> int:
    """Return how many tokens a text may have: `asked` where that is given, else what the config says.

    The config says max_position_embeddings, or original_max_position_embeddings × factor where that is more. Without the
    original length, max_position_embeddings may be either of the two, and is taken as it is: see `check_length`.
    name: of the model. Raises UserError where the config says nothing, or positions end at what it says: without RoPE they are
    a table of that size.
    """
    length = int(getattr(config, "max_position_embeddings", None) or 0)
    scaled = list(scaled_ropes(config))
    stretched = [int(original * factor) for _, factor, original in scaled if original]
    length = max(length, min(stretched, default=0)) if length > 0 else 0
    if asked is None and length == 0:
        raise UserError(
            f"{name}: its config has no max_position_embeddings: say how long a text may be, model.max_length=TOKENS"
        )
    if asked is not None and 0 < length < asked and not getattr(config, "rope_parameters", None):
        raise UserError(f"model.max_length={asked}: {name} has {length} positions and no RoPE, which alone goes on past those")
    return length if asked is None else asked


def scaled_ropes(config: Any) -> Iterator[tuple[str, float, int]]:
    """Yield type, factor and length before scaling (0 where it isn't given) of each of a config's ropes that is scaled."""
    ropes = getattr(config, "rope_parameters", None) or {}
    by_type = [rope for rope in ropes.values() if isinstance(rope, dict)]
    for rope in by_type or [ropes]:
        kind, factor = str(rope.get("rope_type")), rope.get("factor")
        if kind in STRETCHED and factor:
            original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
            yield kind, float(factor), int(original or 0)
