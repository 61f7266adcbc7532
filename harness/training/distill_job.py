"""``python -m harness job=distill``: gates for the configured model, with their curve and their recall in a study."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

import methods
from harness.arms import build_decoding, full_decode, weights_folder
from harness.config import Settings, settings
from harness.errors import UserError
from harness.figures.gates import gate_curves
from harness.models import LoadedModel
from harness.run import model_of
from harness.training.distill import distill, progress_bar
from harness.training.rows import Rows, row_sources
from methods import decode
from methods.gate import Gate

OWN_BUNDLED = Path("gates/bundled")
"""Where gates trained here for the bundled model go: those that ship lie in the installed package."""


def main(cfg: DictConfig) -> Path:
    """Train and save the gates; writes gate_steps.csv, gate_recall.csv and gates.png into the study's folder."""
    wanted = settings(cfg)
    job = cfg.job
    lesson = _lesson(wanted)
    loaded = model_of(wanted)
    lengths = [int(n) for n in job.lengths]
    if max(lengths) > loaded.max_length:
        raise UserError(f"job.lengths={lengths}: {loaded.name} has a context of {loaded.max_length} tokens")
    out = _out(job.out, lesson, wanted, loaded, overwrite=bool(job.overwrite))
    train, test = row_sources(loaded, wanted.data, wanted.seed, kind=str(job.rows))
    stream = batches(train, lengths, int(job.tokens))
    held_out = [test(length)[None] for length in lengths]
    with progress_bar(int(job.steps)) as on_step:
        done = distill(
            loaded, stream, out=out, steps=int(job.steps), held_out=held_out[: int(job.recall_sequences)],
            block_size=lesson.block_size, lr=float(job.lr), pool=str(job.pool), skip_rows=float(job.skip_rows),
            q_linear=lesson.q_linear, dtype=str(job.dtype), seed=wanted.seed, kind=lesson.kind, file=lesson.file,
            on_step=on_step,
        )  # fmt: skip
    wanted.folder.mkdir(parents=True, exist_ok=True)
    suffix = lesson.file.format(block_size=lesson.block_size).partition(".")[0].removeprefix("gates-")
    steps = pd.DataFrame([asdict(step) for step in done.steps])
    recall = pd.DataFrame(list(done.recall))
    steps.to_csv(wanted.folder / f"gate_steps_{suffix}.csv", index=False)
    recall.to_csv(wanted.folder / f"gate_recall_{suffix}.csv", index=False)
    gate_curves(steps, recall, wanted.folder / f"gates_{suffix}.png")
    console = Console()
    console.print(f"{done.parameters:,} gate parameters, {done.seconds:.0f} s", highlight=False)
    shown = recall.groupby("density")[["recall", "chance", "kept_mass", "oracle_mass", "kept_ratio"]].mean()
    console.print(shown.round(3).to_string(), highlight=False)
    console.print(f"wrote {done.path}", highlight=False)
    if done.path.parent != weights_folder(wanted, loaded):
        console.print(f"to use them: model.gates={done.path.parent}", highlight=False)
    return done.path


@dataclass(frozen=True)
class _Lesson:
    """What is trained: gates of a kind, for blocks of a size, into a file named by a pattern."""

    kind: type[Gate]
    file: str
    block_size: int
    q_linear: bool = False


def _lesson(wanted: Settings) -> _Lesson:
    """The gates that are wanted: of the method that decodes, if one is named, else of the method of prefill. Raises UserError
    where it has none."""
    try:
        if not full_decode(wanted):
            decoding = build_decoding(wanted)
            return _Lesson(*_gates("decode method", decoding, decode), decoding.block_size)
        found = _gates("method", methods.get(wanted.method), methods)
    except ValueError as error:
        raise UserError(str(error)) from error
    return _Lesson(*found, wanted.block_size, bool(wanted.method_knobs.get("q_linear", False)))


def _gates(what: str, method: Any, among: ModuleType) -> tuple[type[Gate], str]:
    """The kind of a method's gates and how their file is named."""
    if method.gate is None:
        able = [name for name in among.names() if among.get(name).gate is not None]
        raise UserError(f"{what} {method.name} has no gates to train; choose one of: {', '.join(able)}")
    return method.gate, str(method.weights)


def _out(given: Any, lesson: _Lesson, wanted: Settings, loaded: LoadedModel, *, overwrite: bool) -> Path:
    """The folder for the gates. Raises UserError where the file is there already, before any training."""
    if given:
        out = Path(given).expanduser()
    else:
        out = OWN_BUNDLED if str(wanted.model["path"]) == "bundled" else weights_folder(wanted, loaded)
    path = out / lesson.file.format(block_size=lesson.block_size)
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: add job.overwrite=true to replace it, or name another folder with job.out=FOLDER")
    return out


def batches(rows: Rows, lengths: list[int], tokens: int) -> Iterator[Tensor]:
    """Endless [B, N] token batches, N going round `lengths` and B · N about `tokens`."""
    while True:
        for length in lengths:
            yield torch.stack([rows(length) for _ in range(max(1, tokens // length))])
