"""``python -m harness job=finetune``: a model for longer texts, trained under the attention of the configured method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor

from harness.core import checks
from harness.core.errors import UserError
from harness.core.output import check_output
from harness.core.settings import LONGEST, Settings, read_settings
from harness.core.terminal import Terminal
from harness.measure.before_loading import describe
from harness.measure.sweep import model_config, say
from harness.models.length_check import check_length
from harness.models.loading import LoadedModel, ModelConfig, load_model
from harness.models.loss import check_head
from harness.models.source import model_folder
from harness.training.bundled_model.save import WEIGHTS
from harness.training.finetune.arm import TrainingArm, first_gates, training_arm
from harness.training.finetune.extend import check_extends, extend
from harness.training.finetune.finetune import FinetuneStep, Finetuning
from harness.training.finetune.recipe import FinetuneRecipe
from harness.training.finetune.saved_model import is_of, round_weights, save
from harness.training.gates.checkpoint import Checkpoint
from harness.training.gates.job_settings import read_recipe, whole_number
from harness.training.gates.processes import Processes, join, load_sharded
from harness.training.gates.recall_tables import write_table
from harness.training.gates.rows import check_text
from harness.training.gates.step_log import StepLog
from harness.training.gates.step_progress import step_progress
from harness.training.gates.training_start import Start, enter, find_start
from harness.training.gates.training_text import TextSettings, open_text, read_text_settings


@dataclass(frozen=True)
class _Asked:
    """What the command is told, checked as far as that can be without the model."""

    settings: Settings
    arm: TrainingArm
    recipe: FinetuneRecipe
    text: TextSettings
    out: Path
    new_gates: bool
    overwrite: bool
    shard: bool
    every: int

    @property
    def table(self) -> Path:
        """Return where the steps go, beside the records of the study."""
        return self.settings.folder / f"finetune_{self.out.name}.csv"


def main(cfg: DictConfig) -> Path:
    """Fine-tune the model, and return the folder that it lies in.

    Every step goes into the study's records as it is done, all of them into a table at the end. Killed at any moment, the same
    command goes on. Raises UserError for settings that are out of range, before anything is loaded.
    """
    from transformers.utils import logging

    asked = _read(cfg)
    processes, console = join(asked.settings.device), Terminal()
    console.quiet = not processes.main
    settings = replace(asked.settings, device_choice=str(processes.device or asked.settings.device))
    if (described := describe(settings)) is not None:
        config = described.model.config.get_text_config(decoder=True)
        check_extends(config, described.name, asked.recipe.factor)
        _check_lengths(asked, described)
        check_text(described, settings.data, asked.text.rows, asked.text.hub)
    say(console, settings, f"loading {settings.model['name']}")
    logging.disable_progress_bar()  # of reading and writing weights: the only bar is that of the steps
    loaded = _load(asked, settings, processes)
    _check_lengths(asked, loaded)
    text = asked.text.of_model(loaded, settings.data)
    about = _about(asked, text, loaded)
    checkpoint = Checkpoint(asked.out / "finetuning.checkpoint", asked.every, about, trains="fine-tuning")
    weights = asked.out / WEIGHTS
    start = find_start(checkpoint, weights, [asked.table], overwrite=asked.overwrite, is_of=is_of)
    if start is Start.NOTHING:
        there = f"{weights} is there, trained with these settings: job.overwrite=true trains it anew"
        console.print(there, highlight=False, soft_wrap=True)
        return asked.out
    loaded = extend(loaded, asked.recipe.factor, asked.recipe.trained_length)
    gates, recipe = None, asked.recipe.recipe
    if asked.arm.spec is not None:
        gates = first_gates(settings, asked.arm.spec, loaded, new=asked.new_gates, seed=recipe.seed)
    say(console, settings, f"reading text: rows={text.rows}")
    batches, held_out = open_text(text, settings, loaded, recipe.steps)
    checkpoint, done = enter(checkpoint, start, processes, overwrite=asked.overwrite)
    begins = f"goes on after step {done} of {recipe.steps}" if start is Start.GO_ON else f"{recipe.steps} steps"
    say(console, settings, f"{begins}, state in {checkpoint.path}")
    training = Finetuning(loaded, asked.arm, gates, asked.recipe, _autocast(settings), checkpoint, processes)
    _run(training, batches, asked, console)
    round_weights(training)
    kernels = {"kernel": settings.kernel, "dense_kernel": settings.dense_kernel}
    held_out_loss = training.held_out_loss(held_out, **kernels)
    save(training, asked.out, about, held_out_loss)
    if processes.main:
        write_table(asked.table, pd.DataFrame([asdict(step) for step in training.steps]))
        if held_out_loss is not None:
            console.print(f"loss on {len(held_out)} held-out rows: {held_out_loss:.4f}", highlight=False)
        console.print(f"wrote {asked.out}: model=hf model.path={asked.out} loads it", highlight=False, soft_wrap=True)
        checkpoint.remove()  # last of all: where it is, the same command goes on
    processes.wait()
    return asked.out


def _read(cfg: DictConfig) -> _Asked:
    """Return what the command is told. Raises UserError for what can't be."""
    settings, job = read_settings(cfg), cfg.job
    if settings.dtype_choice == "float16":
        raise UserError("dtype=float16: its gradients would need their loss scaled; train in bfloat16 or float32")
    arm = training_arm(settings)
    block_size, options = (settings.block_size, {}) if arm.spec is None else (arm.spec.block_size, arm.spec.options)
    recipe = FinetuneRecipe(
        read_recipe(job, block_size, settings.seed, options),
        factor=checks.number("job.factor", job.factor),
        trained_length=checks.whole_number_or_null("job.trained_length", job.trained_length, 1, LONGEST),
        gate_lr=checks.number("job.gate_lr", job.gate_lr),
        sparsity=0.0 if arm.dense else settings.sparsity,
        anneal_from=checks.number("job.anneal_from", job.anneal_from),
        anneal_steps=whole_number(job, "anneal_steps", 0),
        gates_only=checks.true_or_false("job.gates_only", job.gates_only),
    )
    arm.check(recipe)
    if recipe.gates_only and arm.spec is None:
        raise UserError(f"job.gates_only=true: method {settings.method} has no gates, and the model would stay as it is")
    if job.out is None:
        raise UserError("job.out=null: name the folder that the fine-tuned model goes to, job.out=FOLDER")
    out = Path(checks.text("job.out", job.out)).expanduser()
    path = str(settings.model["path"])
    if (folder := model_folder(path)) is not None and folder.resolve() == out.resolve():
        raise UserError(f"job.out={out} is the folder of the model itself: name another, which the new one goes to")
    check_output(f"job.out={out}", out)
    check_output(f"results={settings.results} study={settings.study}", settings.folder, "records")
    text = read_text_settings(job, block_size, held_out="held_out")
    flags = {name: checks.true_or_false(f"job.{name}", job[name]) for name in ("new_gates", "overwrite", "shard")}
    return _Asked(settings, arm, recipe, text, out, **flags, every=whole_number(job, "checkpoint_every", 0))


def _load(asked: _Asked, settings: Settings, processes: Processes) -> LoadedModel:
    """Return the model in float32, whole or shared among the processes. Raises UserError for a head that gives no loss."""
    config = replace(model_config(settings), dtype=torch.float32)

    def load(config: ModelConfig) -> LoadedModel:
        loaded = load_model(config)  # not the one that the jobs of a sweep share: its weights change
        check_head(loaded)  # before it is shared: in inference mode FSDP would make weights that can't be trained
        return loaded

    return load_sharded(lambda: load(replace(config, device="cpu")), processes) if asked.shard else load(config)


def _check_lengths(asked: _Asked, loaded: LoadedModel) -> None:
    """Raise UserError where a row is longer than the model's texts will be."""
    factor = asked.recipe.factor
    longest = loaded.max_length
    if factor > 1:
        trained = asked.recipe.trained_length or loaded.model.config.get_text_config(decoder=True).max_position_embeddings
        longest = int(trained * factor)
    what = f"job.lengths={asked.text.lengths} at job.factor={factor:g}"
    check_length(replace(loaded, max_length=longest, asked_length=None), max(asked.text.lengths), what)


def _about(asked: _Asked, text: TextSettings, loaded: LoadedModel) -> dict[str, Any]:
    """Return all that decides the result, by the names of the settings: a checkpoint of anything else is refused."""
    settings, recipe = asked.settings, asked.recipe
    own = {name: value for name, value in asdict(recipe).items() if name != "recipe"}
    if not recipe.gates_only:
        del own["gates_only"]  # newer than recorded trainings
    return {
        **recipe.recipe.facts(),
        **own,
        "method": settings.method,
        "knobs": dict(settings.method_knobs),
        "as_released": settings.as_released,
        "kernel": settings.kernel,
        "dense_kernel": settings.dense_kernel,
        "gates": None if asked.arm.spec is None else asked.arm.spec.kind.__name__,
        "new_gates": asked.new_gates,
        "model": loaded.name,
        "model_hash": loaded.revision_hash,
        "dtype_of_passes": str(_autocast(settings) or torch.float32).removeprefix("torch."),
        "rows": text.rows,
        "text": text.source(settings.data),
        "tokens_per_step": text.tokens,
        "lengths": text.lengths,
        "workers": text.workers,
    }


def _autocast(settings: Settings) -> torch.dtype | None:
    """Return the dtype that passes run in; None where that is the weights' own, float32."""
    return None if settings.dtype == torch.float32 else settings.dtype


def _run(training: Finetuning, batches: Iterator[Tensor], asked: _Asked, console: Terminal) -> None:
    """Do the steps that are left, recorded and shown."""
    settings, main = asked.settings, training.processes.main
    log = StepLog(settings.folder, training.loaded.device, "finetune_steps") if main else None
    checkpoint = training.checkpoint
    assert checkpoint is not None
    before = training.steps[-1].tokens if training.steps else 0

    def numbers(step: FinetuneStep) -> str:
        nonlocal before
        rate, before = (step.tokens - before) / step.seconds, step.tokens
        gates = "" if step.gate_loss is None else f"  gates {step.gate_loss:.4f}"
        return f"loss {step.loss:.4f}{gates}  density {step.density:.3f}  {rate:,.0f} tokens/s"

    counts: dict[str, tuple[int, int]] = {"": (training.recipe.recipe.steps, len(training.steps))}
    bar = step_progress(counts, console, trains="model", numbers_of=numbers)
    with bar if main and settings.progress else nullcontext(_no_bar) as show:

        def on_step(step: FinetuneStep) -> None:
            if log is not None:
                log(checkpoint.training, {**checkpoint.about, "out": asked.out.name}, step)
            show("", step)

        training.run(batches, kernel=settings.kernel, dense_kernel=settings.dense_kernel, on_step=on_step)


def _no_bar(_: str, __: Any) -> None:
    """Take the steps where no bar is shown."""
