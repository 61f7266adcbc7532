"""``python -m harness job=distill``: gates for the configured model, with their curve and their recall in a study."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig, ListConfig
from rich.console import Console
from torch import Tensor

import methods
from harness.arms.build import build_decode_method, decodes_densely
from harness.arms.weights import weights_folder
from harness.core.errors import UserError
from harness.core.files import check_folder
from harness.core.settings import Settings, read_settings
from harness.measure.run import model_of
from harness.models.loading import LoadedModel, ModelConfig, load_model
from harness.report.figures.gates import gate_curves
from harness.tasks.haystack import source_of
from harness.training.gates import recall_tables
from harness.training.gates.checkpoint import Checkpoint, Step
from harness.training.gates.distill import Distilled, distill, progress_bar
from harness.training.gates.processes import Processes, join, load_sharded
from harness.training.gates.recipe import Recipe
from harness.training.gates.rows import Rows, row_kind, row_sources, text_id
from harness.training.gates.step_log import StepLog
from methods import decode
from methods.gates.attn_gate import Gate, named

OWN_BUNDLED = Path("gates/bundled")
"""Where gates trained here for the bundled model go: those that ship lie in the installed package."""


def main(cfg: DictConfig) -> Path:
    """Train and save the gates; writes gate_steps.csv, gate_recall.csv and gates.png into the study's folder, and the steps
    as they are made into its records."""
    settings = read_settings(cfg)
    job = cfg.job
    lesson = lesson_of(settings)
    recipe = _recipe(job, lesson, settings.seed)
    lengths, tokens = lengths_of(job.lengths, lesson.block_size), whole(job, "tokens", 1)
    sequences, every = whole(job, "recall_sequences", 0), whole(job, "checkpoint_every", 0)
    processes = join(settings.device)
    settings = replace(settings, device=processes.device or settings.device)
    loaded = _model(settings, processes, shard=bool(job.shard))
    if max(lengths) > loaded.max_length:
        raise UserError(f"job.lengths={lengths}: {loaded.name} has a context of {loaded.max_length} tokens")
    out = _out(job.out, lesson, settings, loaded, overwrite=bool(job.overwrite))
    kind = row_kind(loaded, settings.data, str(job.rows))
    about = _about(job, lesson, recipe, settings, loaded, kind, lengths)
    checkpoint = _checkpoint(out, lesson, about, processes, every=every, overwrite=bool(job.overwrite))
    reach = recipe.steps * max(tokens, *lengths)
    train, test = row_sources(loaded, settings.data, settings.seed, kind=kind, wanted=reach, hub=job.hub)
    held_out = [test(length)[None] for length in islice(cycle(lengths), sequences)]
    log = StepLog(settings.folder, loaded.device, checkpoint.training, about) if processes.main else None
    with progress_bar(recipe.steps) if log and settings.progress else nullcontext(_nothing) as bar:

        def on_step(step: Step) -> None:
            if log:
                log(step)
            bar(step)

        done = distill(
            loaded,
            batches(train, lengths, tokens),
            recipe,
            out=out,
            kind=lesson.kind,
            file=lesson.file,
            held_out=held_out,
            on_step=on_step,
            checkpoint=checkpoint,
            processes=processes,
            about=about,
        )
    if processes.main:
        _report(done, settings, loaded, lesson)
    return done.path


def _nothing(_: Step) -> None:
    """The bar of a process that shows none."""


def _recipe(job: DictConfig, lesson: Lesson, seed: int) -> Recipe:
    return Recipe(
        steps=whole(job, "steps"),
        block_size=lesson.block_size,
        lr=_real(job, "lr"),
        warmup=whole(job, "warmup"),
        min_lr=_real(job, "min_lr"),
        weight_decay=_real(job, "weight_decay"),
        clip=None if job.clip is None else _real(job, "clip"),
        pool=str(job.pool),
        skip_rows=_real(job, "skip_rows"),
        row_weight=str(job.row_weight),
        micro_rows=None if job.micro_rows is None else whole(job, "micro_rows"),
        q_linear=lesson.q_linear,
        dtype=str(job.dtype),
        seed=seed,
    )


def whole(job: DictConfig, name: str, least: int | None = None) -> int:
    value = job[name]
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise UserError(f"job.{name}={value}: must be a whole number" + ("" if least is None else f" of at least {least}"))
    return value


def _real(job: DictConfig, name: str) -> float:
    value = job[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"job.{name}={value}: must be a number")
    return float(value)


def lengths_of(given: Any, block_size: int) -> list[int]:
    lengths = list(given) if isinstance(given, ListConfig) else []
    if not lengths or not all(type(length) is int and length >= 2 * block_size for length in lengths):
        raise UserError(
            f"job.lengths={given}: must be a list of whole numbers, each at least {2 * block_size}, two blocks, for example "
            "[4096,8192]"
        )
    return lengths


def _model(settings: Settings, processes: Processes, *, shard: bool) -> LoadedModel:
    if not shard:
        return model_of(settings)
    from transformers.utils import logging

    logging.disable_progress_bar()  # of the weights, in every process
    name, path = str(settings.model["name"]), str(settings.model["path"])
    whole = ModelConfig(name=name, path=path, dtype=settings.dtype, device="cpu")
    return load_sharded(lambda: load_model(whole), processes)  # not the one that the jobs of a sweep share


def _about(
    job: DictConfig, lesson: Lesson, recipe: Recipe, settings: Settings, loaded: LoadedModel, kind: str, lengths: list[int]
) -> dict[str, Any]:
    """All that decides what comes out, by the names of the settings: a checkpoint of anything else is not gone on with."""
    if kind == "hub":
        text: str | None = str(job.hub)
    elif kind == "samples":
        text = source_of(settings.data)
    else:
        text = text_id(str(settings.data["text_dir"]))
    return {
        **asdict(recipe),
        "gates": lesson.kind.__name__,
        "model": loaded.name,
        "model_hash": loaded.revision_hash,
        "model_dtype": str(loaded.dtype).removeprefix("torch."),
        "rows": kind,
        "text": text,
        "tokens_per_step": int(job.tokens),
        "lengths": lengths,
    }


def _checkpoint(
    out: Path, lesson: Lesson, about: dict[str, Any], processes: Processes, *, every: int, overwrite: bool
) -> Checkpoint:
    """Where the state is kept. Raises UserError where there is one of other settings; with `overwrite` it is removed."""
    name = Path(lesson.file.format(block_size=lesson.block_size)).stem
    found = Checkpoint(out / f"{name}.checkpoint", every, about, uuid.uuid4().hex[:12])
    if overwrite and processes.main:
        found.remove()
    processes.wait()
    state = found.read()
    return found if state is None else replace(found, training=state["training"])


def _report(done: Distilled, settings: Settings, loaded: LoadedModel, lesson: Lesson) -> None:
    """Write the tables and the picture of a training, and say what came out."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    suffix = suffix_of(lesson)
    steps = pd.DataFrame([asdict(step) for step in done.steps])
    steps.to_csv(settings.folder / f"gate_steps_{suffix}.csv", index=False)
    title = f"{loaded.name}: best blocks that the gates find at density {recall_tables.SHOWN:g}"
    recall_tables.write(done.recall, settings.folder, suffix, title)
    gate_curves(steps, recall_tables.by_layer(done.recall), settings.folder / f"gates_{suffix}.png")
    console = Console()
    console.print(f"{done.parameters:,} gate parameters, {done.seconds:.0f} s", highlight=False)
    recall_tables.show(done.recall, console)
    console.print(f"wrote {done.path}", highlight=False)
    if done.path.parent != weights_folder(settings.model, loaded):
        console.print(f"to use them: model.gates={done.path.parent}", highlight=False)


@dataclass(frozen=True)
class Lesson:
    """What is trained: gates of a kind, for blocks of a size, into a file named by a pattern."""

    kind: type[Gate]
    file: str
    block_size: int
    q_linear: bool = False


def suffix_of(lesson: Lesson) -> str:
    """What tells the files of one training from another's in a study: block size and name."""
    return lesson.file.format(block_size=lesson.block_size).partition(".")[0].removeprefix("gates-")


def lesson_of(settings: Settings) -> Lesson:
    """The gates that are wanted: of the method that decodes, if one is named, else of the method of prefill. Raises UserError
    where it has none."""
    try:
        if not decodes_densely(settings.decode):
            decoding = build_decode_method(settings)
            return Lesson(*_gates("decode method", decoding, decode), decoding.block_size)
        kind, file = _gates("method", methods.get(settings.method), methods)
        file = named(file, settings.method_knobs.get("gates"))
    except ValueError as error:
        raise UserError(str(error)) from error
    return Lesson(kind, file, settings.block_size, bool(settings.method_knobs.get("q_linear", False)))


def _gates(what: str, method: Any, among: ModuleType) -> tuple[type[Gate], str]:
    """The kind of a method's gates and how their file is named."""
    if method.gate is None:
        able = [name for name in among.names() if among.get(name).gate is not None]
        raise UserError(f"{what} {method.name} has no gates to train; choose one of: {', '.join(able)}")
    return method.gate, str(method.weights)


def _out(given: Any, lesson: Lesson, settings: Settings, loaded: LoadedModel, *, overwrite: bool) -> Path:
    """The folder for the gates. Raises UserError where the file is there already, or none can be, before any training."""
    if given:
        out = Path(given).expanduser()
    else:
        out = OWN_BUNDLED if str(settings.model["path"]) == "bundled" else weights_folder(settings.model, loaded)
    path = out / lesson.file.format(block_size=lesson.block_size)
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: add job.overwrite=true to replace it, or name another folder with job.out=FOLDER")
    return check_folder(out)


def batches(rows: Rows, lengths: list[int], tokens: int) -> Iterator[Tensor]:
    """Endless [B, N] token batches, N going round `lengths` and B · N about `tokens`."""
    while True:
        for length in lengths:
            yield torch.stack([rows(length) for _ in range(max(1, tokens // length))])
