"""``python -m harness job=maps``: pictures of the attention of one prompt, layer by layer, beside what a method takes of it.

With ``patterns=true`` it writes the heads whose maps show a kind of pattern best into a file that ``job=paper`` draws.
"""

from __future__ import annotations

from harness.core import checks
from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.jobs.command_state import CommandState
from harness.jobs.studies import OpenStudy
from harness.measure.attention_maps import measure_maps
from harness.measure.attention_patterns import measure_patterns
from harness.measure.head_patterns import write_patterns
from harness.report.figures import attention_maps as figures


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Write pictures, or the file of patterns, into the folder `maps` of the study. Returns 0. Raises UserError for what
    can't be drawn."""
    folder = study.store.folder / "maps"
    if checks.true_or_false("job.patterns", settings.options["patterns"]):
        for name in ("layers", "heads"):
            if settings.options[name] is not None:
                raise UserError(f"job.{name}={settings.options[name]}: patterns=true looks at all of them: leave it out")
        stem, record = measure_patterns(settings, study.store, command.console)
        command.print_written([write_patterns(folder / f"patterns_{stem}.json", record)])
        return 0
    maps = measure_maps(settings, study.store, command.console)
    paths = [
        figures.draw_layer(layer, maps.title, maps.note, folder / f"{maps.stem}_layer{layer.layer:02d}.png")
        for layer in maps.layers
    ]
    command.print_written(paths)
    return 0
