"""The lengths of text past which a model computes in another way: windows of its layers, switches of its RoPE."""

from __future__ import annotations

from harness.models.loading import LoadedModel
from harness.models.rope_lengths import switch_lengths


def edges(loaded: LoadedModel) -> tuple[int, ...]:
    """Return the lengths in tokens, ascending, past which a model does what it doesn't up to them: a window of a layer leaves
    keys out, RoPE takes other frequencies."""
    windows = {shape.window for shape in loaded.layer_shapes if shape.window is not None}
    return tuple(sorted(windows | set(switch_lengths(loaded.model))))
