"""``python -m harness job=distill``: gates for the configured model, with their curve and their recall in a study."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from harness import tasks
from harness.arms import weights_folder
from harness.config import settings
from harness.errors import UserError
from harness.figures.gates import gate_curves
from harness.models import LoadedModel
from harness.run import model_of
from harness.training.corpus import build_corpus, read_texts
from harness.training.distill import distill, progress_bar
from harness.training.mixture import Mixture

TRAINING_SEED = 1_000_003
"""Added to the seed of generated samples, so that no gate learns from a sample that a method is tested on."""

Rows = Callable[[int], Tensor]


def main(cfg: DictConfig) -> Path:
    """Train and save the gates; writes gate_steps.csv, gate_recall.csv and gates.png into the study's folder."""
    wanted = settings(cfg)
    job = cfg.job
    loaded = model_of(wanted)
    lengths = [int(n) for n in job.lengths]
    if max(lengths) > loaded.max_length:
        raise UserError(f"job.lengths={lengths}: {loaded.name} has a context of {loaded.max_length} tokens")
    train, test = row_sources(loaded, wanted.data, wanted.seed)
    stream = batches(train, lengths, int(job.tokens))
    held_out = [test(length)[None] for length in lengths]
    out = Path(job.out) if job.out else weights_folder(wanted, loaded)
    with progress_bar(int(job.steps)) as on_step:
        done = distill(
            loaded, stream, out=out, steps=int(job.steps), held_out=held_out[: int(job.recall_sequences)],
            block_size=wanted.block_size, lr=float(job.lr), pool=str(job.pool), skip_rows=float(job.skip_rows),
            dtype=str(job.dtype), seed=wanted.seed, on_step=on_step,
        )  # fmt: skip
    wanted.folder.mkdir(parents=True, exist_ok=True)
    suffix = f"{wanted.block_size}"
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
    return done.path


def batches(rows: Rows, lengths: list[int], tokens: int) -> Iterator[Tensor]:
    """Endless [B, N] token batches, N going round `lengths` and B · N about `tokens`."""
    while True:
        for length in lengths:
            yield torch.stack([rows(length) for _ in range(max(1, tokens // length))])


def row_sources(loaded: LoadedModel, data: dict[str, Any], seed: int) -> tuple[Rows, Rows]:
    """Two sources of rows, int64 [length] each: one to train on, and one of other draws to measure recall on."""
    seeds = (TRAINING_SEED + seed, 2 * TRAINING_SEED + seed)
    if data.get("text_dir"):
        corpus = build_corpus(read_texts(str(data["text_dir"])), loaded.tokenizer)
        first, second = (partial(from_mixture, Mixture(loaded.tokenizer, corpus, seed=s)) for s in seeds)
    else:
        first, second = (partial(from_samples, loaded, data, count(s)) for s in seeds)
    return first, second


def from_mixture(mixture: Mixture, length: int) -> Tensor:
    """A row of the bundled model's training mixture: questions about books, of other words and needles than any test's."""
    return torch.from_numpy(mixture.row(length)[0].astype("int64"))


def from_samples(loaded: LoadedModel, data: dict[str, Any], seeds: Iterator[int], length: int) -> Tensor:
    """Generated RULER samples of seeds that no test uses, joined and cut to the length."""
    ids: list[int] = []
    while len(ids) < length:
        seed = next(seeds)
        name = random.Random(seed).choice(tasks.names())
        sample = tasks.get_samples(name, loaded.tokenizer, length, 1, seed=seed, haystack=data.get("haystack"))[0]
        ids += tasks.encode(loaded.tokenizer, f"{sample.prompt} {', '.join(sample.answers)}")
    return torch.tensor(ids[:length])
