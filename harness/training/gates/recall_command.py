"""``python -m harness job=gate_recall``: what trained gates find of the true attention on held-out text, by layer and head."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path

from omegaconf import DictConfig

from harness.arms import gate_files
from harness.arms.build import decodes_densely
from harness.arms.weights import model_overrides, released_id, weights_folder
from harness.core.errors import UserError
from harness.core.output import check_output
from harness.core.settings import Settings, read_settings
from harness.core.terminal import Terminal
from harness.measure.before_loading import describe
from harness.measure.sweep import load_model_of, say
from harness.models.length_check import check_length
from harness.models.loading import LoadedModel
from harness.training.gates import recall_tables
from harness.training.gates.gate_spec import GateSpec, gate_spec
from harness.training.gates.job_settings import check_rows, read_lengths, whole_number
from harness.training.gates.recall import gate_recall
from harness.training.gates.rows import TextNeeds, check_text, row_kind, row_sources
from harness.training.gates.weights import new_gates
from methods.gates.weights import fill_gates


def main(cfg: DictConfig) -> Path:
    """Measure, print, and write tables and picture into the study's folder; return the path of the gates.

    Raises UserError where the gates aren't there or don't fit, or for text that is too short.
    """
    settings, job = read_settings(cfg), cfg.job
    spec, console = gate_spec(settings), Terminal()
    lengths, sequences = read_lengths(job.lengths, spec.block_size), whole_number(job, "sequences", 1)
    check_rows(job)
    check_output(f"results={settings.results} study={settings.study}", settings.folder, "records")
    if (described := describe(settings)) is not None:
        _gates_path(settings, described, spec, lengths)
        check_text(described, settings.data, str(job.rows), job.hub)
    loaded = load_model_of(settings, console)
    path = _gates_path(settings, loaded, spec, lengths)
    state = gate_files.for_all_layers(
        gate_files.read(path, spec.kind, block_size=spec.block_size, options=spec.options), path, loaded, min(lengths)
    )
    for notice in gate_files.assumptions(path, spec.kind):
        console.print(notice, style="red", markup=False, highlight=False, soft_wrap=True)
    gates = new_gates(loaded, spec.kind, block_size=spec.block_size, **spec.options)
    try:
        fill_gates(gates, state, f"the model has {loaded.layers} layers, {loaded.heads} heads of {loaded.head_dim} elements")
    except ValueError as error:
        raise UserError(f"{path} does not fit {loaded.name}: {error}") from error
    kind = row_kind(loaded, settings.data, str(job.rows))
    test_lengths = list(islice(cycle(lengths), sequences))
    say(console, settings, f"reading text: rows={kind}")
    needs = TextNeeds(0, test_lengths)
    _, test = row_sources(loaded, settings.data, settings.seed, kind=kind, needs=needs, hub=job.hub)
    recalls = gate_recall(loaded, gates, [test(length)[None] for length in test_lengths])
    recall_tables.show(recalls, console)
    for written in recall_tables.write(recalls, settings.folder, spec.suffix, recall_tables.title(loaded.name, spec.suffix)):
        console.print(f"wrote {written}", highlight=False, soft_wrap=True)
    return path


def _gates_path(settings: Settings, loaded: LoadedModel, spec: GateSpec, lengths: list[int]) -> Path:
    """Return the file of the gates. Raises UserError where there is none, and for rows longer than the model reaches."""
    check_length(loaded, max(lengths), f"job.lengths={lengths}")
    group = "method" if decodes_densely(settings.decode) else "decode"
    folder, name = weights_folder(settings.model, loaded), spec.file_name
    path = gate_files.find(folder, name, spec.kind, released_id(settings.model, group), training=spec.name)
    if path is None:
        raise UserError(
            f"no gates to measure: {folder / name} is missing; name the folder that has them (model.gates=FOLDER), or train "
            f"them with `python -m harness job=distill {model_overrides(settings.model)}…`"
        )
    return path
