"""``python -m harness job=maps``: pictures of the attention of one prompt, layer by layer, beside what a method takes of it."""

from __future__ import annotations

from harness.core.settings import Settings
from harness.jobs.command_state import CommandState
from harness.jobs.studies import OpenStudy
from harness.measure.attention_maps import measure_maps
from harness.report.figures import attention_maps as figures


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Draw the pictures into the folder `maps` of the study. Returns 0. Raises UserError for what can't be drawn."""
    maps = measure_maps(settings, study.store, command.console)
    folder = study.store.folder / "maps"
    paths = [
        figures.draw_layer(layer, maps.title, maps.note, folder / f"{maps.stem}_layer{layer.layer:02d}.png")
        for layer in maps.layers
    ]
    command.print_written(paths)
    return 0
