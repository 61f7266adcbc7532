"""``python -m harness job=gate_recall``: what trained gates find of the true attention on held-out text, by layer and head."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from harness.arms import gate_files
from harness.arms.build import decodes_densely
from harness.arms.weights import model_overrides, released_id, weights_folder
from harness.core.errors import UserError
from harness.core.settings import read_settings
from harness.measure.run import model_of
from harness.training.gates import recall_tables
from harness.training.gates.distill import new_gates
from harness.training.gates.distill_job import lengths_of, lesson_of, suffix_of, whole
from harness.training.gates.report import gate_recall
from harness.training.gates.rows import row_kind, row_sources
from methods.gates.attn_gate import fill_gates


def main(cfg: DictConfig) -> Path:
    """Measure, print, and write tables and picture into the study's folder. Raises UserError where the gates aren't there or
    don't fit, or for text that is too short."""
    settings, job = read_settings(cfg), cfg.job
    lesson, console = lesson_of(settings), Console()
    lengths, sequences = lengths_of(job.lengths, lesson.block_size), whole(job, "sequences", 1)
    loaded = model_of(settings)
    if max(lengths) > loaded.max_length:
        raise UserError(f"job.lengths={lengths}: {loaded.name} has a context of {loaded.max_length} tokens")
    group = "method" if decodes_densely(settings.decode) else "decode"
    folder, name = weights_folder(settings.model, loaded), lesson.file.format(block_size=lesson.block_size)
    training = settings.method_knobs.get("gates") if group == "method" else None
    path = gate_files.find(folder, name, lesson.kind, released_id(settings.model, group), training=training)
    if path is None:
        raise UserError(
            f"no gates to measure: {folder / name} is missing; name the folder that has them (model.gates=FOLDER), or train "
            f"them with `python -m harness job=distill {model_overrides(settings.model)}…`"
        )
    state = gate_files.for_all_layers(
        gate_files.read(path, lesson.kind, block_size=lesson.block_size), path, loaded, min(lengths)
    )
    options = {"q_linear": True} if lesson.q_linear else {}
    gates = new_gates(loaded, lesson.kind, block_size=lesson.block_size, **options)
    try:
        fill_gates(gates, state, f"the model has {loaded.layers} layers, {loaded.heads} heads of {loaded.head_dim} elements")
    except ValueError as error:
        raise UserError(f"{path} does not fit {loaded.name}: {error}") from error
    kind = row_kind(loaded, settings.data, str(job.rows))
    _, test = row_sources(loaded, settings.data, settings.seed, kind=kind, wanted=max(lengths) * sequences, hub=job.hub)
    found = gate_recall(loaded, gates, [test(length)[None] for length in islice(cycle(lengths), sequences)])
    recall_tables.show(found, console)
    title = f"{loaded.name}: best blocks that the gates find at density {recall_tables.SHOWN:g}"
    for written in recall_tables.write(found, settings.folder, suffix_of(lesson), title):
        console.print(f"wrote {written}", highlight=False, soft_wrap=True)
    return path
