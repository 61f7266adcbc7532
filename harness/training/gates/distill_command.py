"""``python -m harness job=distill``: gates for the configured model, with their curve and their recall in a study."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor

from harness.arms.weights import weights_folder
from harness.core.errors import UserError
from harness.core.files import writable_folder
from harness.core.settings import Settings, read_settings
from harness.core.terminal import Terminal
from harness.measure.sweep import load_model_of
from harness.models.length_check import check_length
from harness.models.loading import LoadedModel, ModelConfig, load_model
from harness.report.figures.gates import draw_gate_curves
from harness.tasks.haystack import haystack_source
from harness.training.gates import recall_tables
from harness.training.gates.checkpoint import Checkpoint, Step
from harness.training.gates.distill import Distilled, distill
from harness.training.gates.gate_spec import GateSpec, gate_spec
from harness.training.gates.job_settings import read_lengths, read_recipe, whole_number
from harness.training.gates.processes import Processes, join, load_sharded
from harness.training.gates.recipe import Recipe
from harness.training.gates.rows import Rows, row_kind, row_sources, text_id
from harness.training.gates.step_log import StepLog

OWN_BUNDLED = Path("gates/bundled")
"""Where gates trained here for the bundled model go: those that ship lie in the installed package."""


def main(cfg: DictConfig) -> Path:
    """Train and save the gates; return the path of their file.

    Writes gate_steps.csv, gate_recall.csv and gates.png into the study's folder, and every step into its records as it is
    done. Raises UserError for settings that are out of range, before anything is loaded.
    """
    settings = read_settings(cfg)
    job = cfg.job
    spec = gate_spec(settings)
    recipe = read_recipe(job, spec, settings.seed)
    lengths, tokens = read_lengths(job.lengths, spec.block_size), whole_number(job, "tokens", 1)
    sequences, every = whole_number(job, "recall_sequences", 0), whole_number(job, "checkpoint_every", 0)
    processes = join(settings.device)
    settings = replace(settings, device_choice=str(processes.device or settings.device))
    loaded = _model(settings, processes, shard=bool(job.shard))
    check_length(loaded, max(lengths), f"job.lengths={lengths}")
    out = _out(job.out, spec, settings, loaded, overwrite=bool(job.overwrite))
    kind = row_kind(loaded, settings.data, str(job.rows))
    about = _about(job, spec, recipe, settings, loaded, kind, lengths)
    checkpoint = _checkpoint(out, spec, about, processes, every=every, overwrite=bool(job.overwrite))
    most_tokens = recipe.steps * max(tokens, *lengths)
    train, test = row_sources(loaded, settings.data, settings.seed, kind=kind, train_tokens=most_tokens, hub=job.hub)
    held_out = [test(length)[None] for length in islice(cycle(lengths), sequences)]
    log = StepLog(settings.folder, loaded.device, checkpoint.training, about) if processes.main else None
    with progress_bar(recipe.steps) if log and settings.progress else nullcontext(_no_bar) as bar:

        def on_step(step: Step) -> None:
            if log:
                log(step)
            bar(step)

        distilled = distill(
            loaded,
            batches(train, lengths, tokens),
            recipe,
            out=out,
            kind=spec.kind,
            file=spec.file,
            held_out=held_out,
            on_step=on_step,
            checkpoint=checkpoint,
            processes=processes,
            about=about,
        )
    if processes.main:
        _report(distilled, settings, loaded, spec)
    return distilled.path


@contextmanager
def progress_bar(steps: int) -> Iterator[Callable[[Step], None]]:
    """Show a bar in the terminal with loss and recall. What it yields is called with each step."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("KL {task.fields[loss]:.4f}  recall {task.fields[recall]:.1%}")
    with Progress(TextColumn("gates"), BarColumn(), MofNCompleteColumn(), text, TimeRemainingColumn()) as bar:
        task = bar.add_task("gates", total=steps, loss=math.nan, recall=math.nan)
        yield lambda step: bar.update(task, completed=step.step + 1, loss=step.loss, recall=step.recall)


def _no_bar(_: Step) -> None:
    """Take the steps of a process that shows no bar."""


def batches(rows: Rows, lengths: list[int], tokens: int) -> Iterator[Tensor]:
    """Yield endless [B, N] token batches, N going round `lengths` and B · N about `tokens`."""
    while True:
        for length in lengths:
            yield torch.stack([rows(length) for _ in range(max(1, tokens // length))])


def _model(settings: Settings, processes: Processes, *, shard: bool) -> LoadedModel:
    if not shard:
        return load_model_of(settings)
    from transformers.utils import logging

    logging.disable_progress_bar()  # of the weights, in every process
    name, path = str(settings.model["name"]), str(settings.model["path"])
    config = ModelConfig(name, path, settings.dtype, "cpu", settings.model["max_length"])
    return load_sharded(lambda: load_model(config), processes)  # not the one that the jobs of a sweep share


def _about(
    job: DictConfig, spec: GateSpec, recipe: Recipe, settings: Settings, loaded: LoadedModel, kind: str, lengths: list[int]
) -> dict[str, Any]:
    """Return all that decides the result, by the names of the settings: a checkpoint of anything else is refused."""
    if kind == "hub":
        text: str | None = str(job.hub)
    elif kind == "samples":
        text = haystack_source(settings.data)
    else:
        text = text_id(str(settings.data["text_dir"]))
    return {
        **asdict(recipe),
        "gates": spec.kind.__name__,
        "model": loaded.name,
        "model_hash": loaded.revision_hash,
        "model_dtype": str(loaded.dtype).removeprefix("torch."),
        "rows": kind,
        "text": text,
        "tokens_per_step": int(job.tokens),
        "lengths": lengths,
    }


def _checkpoint(
    out: Path, spec: GateSpec, about: dict[str, Any], processes: Processes, *, every: int, overwrite: bool
) -> Checkpoint:
    """Return where the state of the training is written, every `every` steps.

    Raises UserError where there is one of other settings; with `overwrite` it is removed.
    """
    path = out / f"{Path(spec.file_name).stem}.checkpoint"
    checkpoint = Checkpoint(path, every, about, uuid.uuid4().hex[:12])
    if overwrite and processes.main:
        checkpoint.remove()
    processes.wait()
    state = checkpoint.read()
    return checkpoint if state is None else replace(checkpoint, training=state["training"])


def _report(distilled: Distilled, settings: Settings, loaded: LoadedModel, spec: GateSpec) -> None:
    """Write the tables and the picture of a training, and print its recall and where its file lies."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    steps = pd.DataFrame([asdict(step) for step in distilled.steps])
    steps.to_csv(settings.folder / f"gate_steps_{spec.suffix}.csv", index=False)
    recall_tables.write(distilled.recall, settings.folder, spec.suffix, recall_tables.title(loaded.name))
    draw_gate_curves(steps, recall_tables.by_layer(distilled.recall), settings.folder / f"gates_{spec.suffix}.png")
    console = Terminal()
    console.print(f"{distilled.parameters:,} gate parameters, {distilled.seconds:.0f} s", highlight=False)
    recall_tables.show(distilled.recall, console)
    console.print(f"wrote {distilled.path}", highlight=False)
    if distilled.path.parent != weights_folder(settings.model, loaded):
        console.print(f"to use them: model.gates={distilled.path.parent}", highlight=False)


def _out(folder: Any, spec: GateSpec, settings: Settings, loaded: LoadedModel, *, overwrite: bool) -> Path:
    """Return the folder for the gates.

    Raises UserError where the file is there already, or none can be, before any training.
    """
    if folder:
        out = Path(folder).expanduser()
    else:
        out = OWN_BUNDLED if str(settings.model["path"]) == "bundled" else weights_folder(settings.model, loaded)
    path = out / spec.file_name
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: add job.overwrite=true to replace it, or name another folder with job.out=FOLDER")
    return writable_folder(out)
