"""What a training of gates leaves in its study's folder: its steps, its recall and their picture."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from harness.arms.weights import option_overrides, weights_folder
from harness.core.settings import Settings
from harness.core.terminal import Terminal
from harness.models.loading import LoadedModel
from harness.report.figures.gates import draw_gate_curves
from harness.training.gates import recall_tables
from harness.training.gates.gate_spec import GateSpec
from harness.training.gates.training import Distilled


def table_paths(settings: Settings, spec: GateSpec) -> list[Path]:
    """Return what a training writes into the study's folder, whatever it finds: its steps, recall by layer, and curves."""
    names = (f"gate_steps_{spec.suffix}.csv", f"gate_recall_{spec.suffix}.csv", f"gates_{spec.suffix}.png")
    return [settings.folder / name for name in names]


def report_training(distilled: Distilled, settings: Settings, loaded: LoadedModel, spec: GateSpec, console: Terminal) -> None:
    """Write the tables and the picture of a training, and print its recall and where its file lies."""
    steps_path, _, picture = table_paths(settings, spec)
    steps = pd.DataFrame([asdict(step) for step in distilled.steps])
    recall_tables.write_table(steps_path, steps)
    recall_tables.write(distilled.recall, settings.folder, spec.suffix, recall_tables.title(loaded.name, spec.suffix))
    draw_gate_curves(steps, recall_tables.by_layer(distilled.recall), f"{loaded.name}: how gates {spec.suffix} learnt", picture)
    console.print(f"{distilled.parameters:,} gate parameters, {distilled.seconds:.0f} s", highlight=False)
    recall_tables.show(distilled.recall, console)
    console.print(f"wrote {distilled.path}", highlight=False, soft_wrap=True)
    elsewhere = distilled.path.parent != weights_folder(settings.model, loaded)
    needed = [f"model.gates={distilled.path.parent}"] if elsewhere else []
    needed += [f"method.gates={spec.training}"] if spec.training else []
    needed += option_overrides(spec.options).split()
    if needed:
        console.print(f"to use them: {' '.join(needed)}", highlight=False, soft_wrap=True)
