"""``python -m harness job=maps``: pictures of the attention of one prompt, layer by layer, beside what a method takes of it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from harness.core.settings import Settings
from harness.measure.attention_maps import measure_maps
from harness.report.figures import attention_maps as figures
from harness.study.store import Store


def draw_maps(settings: Settings, store: Store, console: Console) -> list[Path]:
    """Make the pictures of a command in the folder `maps` of its study. Raises UserError for what can't be drawn."""
    maps = measure_maps(settings, store, console)
    folder = settings.folder / "maps"
    return [
        figures.draw_layer(layer, maps.title, maps.note, folder / f"{maps.stem}_layer{layer.layer:02d}.png")
        for layer in maps.layers
    ]
