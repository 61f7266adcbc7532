"""``python -m harness job=distill``: gates for the configured model, with their curve and their recall in a study."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from harness.arms.weights import weights_folder
from harness.core import checks
from harness.core.errors import UserError
from harness.core.output import check_output, check_own_output
from harness.core.settings import Settings, read_settings
from harness.core.terminal import Terminal
from harness.measure.before_loading import describe
from harness.measure.sweep import load_model_of, say
from harness.models.length_check import check_length
from harness.models.loading import LoadedModel, ModelConfig, load_model
from harness.training.gates.checkpoint import Checkpoint, Step
from harness.training.gates.distill import distill
from harness.training.gates.gate_spec import gate_spec
from harness.training.gates.job_settings import TrainingSettings, read_trainings, whole_number
from harness.training.gates.processes import Processes, join, load_sharded
from harness.training.gates.rows import check_text
from harness.training.gates.step_log import StepLog
from harness.training.gates.step_progress import Show, step_progress
from harness.training.gates.training import Plan
from harness.training.gates.training_start import Start, about_training, enter, find_start
from harness.training.gates.training_tables import report_training, table_paths
from harness.training.gates.training_text import open_text, read_text_settings

OWN_BUNDLED = Path("gates/bundled")
"""Where gates trained here for the bundled model go: those that ship lie in the installed package."""


def main(cfg: DictConfig) -> list[Path]:
    """Train and save the gates; return the paths of their files, one a training.

    Writes gate_steps.csv, gate_recall.csv and gates.png into the study's folder, and every step into its records as it is
    done. Killed at any moment, the same command goes on. Raises UserError for settings that are out of range, before anything
    is loaded.
    """
    settings = read_settings(cfg)
    job, spec = cfg.job, gate_spec(settings)
    trainings = read_trainings(job, spec, settings.seed)
    text = read_text_settings(job, spec.block_size)
    every = whole_number(job, "checkpoint_every", 0)
    check_own_output("job.out", checks.text_or_null("job.out", settings.options["out"]))
    check_output(f"results={settings.results} study={settings.study}", settings.folder, "records")
    processes = join(settings.device)
    console = Terminal()
    console.quiet = not processes.main
    settings = replace(settings, device_choice=str(processes.device or settings.device))
    if (described := describe(settings)) is not None:
        check_length(described, max(text.lengths), f"job.lengths={text.lengths}")
        check_text(described, settings.data, text.rows, text.hub)
        _check_out(_out(job.out, settings, described))
    loaded = _model(settings, processes, console, shard=bool(job.shard))
    check_length(loaded, max(text.lengths), f"job.lengths={text.lengths}")
    text = text.of_model(loaded, settings.data)
    out = _out(job.out, settings, loaded)
    steps = max(training.end for training in trainings)
    unfinished = []
    for training in trainings:
        about = about_training(training, text, settings, loaded, steps)
        file_name = training.spec.file_name
        checkpoint = Checkpoint(out / f"{Path(file_name).stem}.checkpoint", every, about)
        start = find_start(checkpoint, out / file_name, table_paths(settings, training.spec), overwrite=bool(job.overwrite))
        if start is Start.NOTHING:
            there = f"{out / file_name} is there, trained with these settings: job.overwrite=true trains it anew"
            console.print(there, highlight=False, soft_wrap=True)
        else:
            unfinished.append((training, checkpoint, start))
    if unfinished:
        _check_out(out)  # not made before the text is read, which may be refused
        say(console, settings, f"reading text: rows={text.rows}")
        batches, held_out = open_text(text, settings, loaded, steps)
        entered = _enter(unfinished, settings, processes, console, overwrite=bool(job.overwrite))
        _train(entered, batches, held_out, out, settings, loaded, processes, console, cuda_graph=bool(job.cuda_graph))
    return [out / training.spec.file_name for training in trainings]


@dataclass(frozen=True)
class _Entered:
    """A training that has begun, or is gone on with, its checkpoint, and how many of its steps are done."""

    settings: TrainingSettings
    checkpoint: Checkpoint
    done: int

    def plan(self, log: StepLog | None, show: Show, say_problem: Callable[[str], None] | None) -> Plan:
        """Return the training for `distill`, whose steps are recorded and shown. say_problem: called where it is given up."""

        def on_step(step: Step) -> None:
            if log:
                log(self.checkpoint.training, self.checkpoint.about, step)
            show(self.settings.spec.suffix, step)

        return Plan(
            self.settings.recipe,
            first_step=self.settings.first_step,
            file=self.settings.spec.file,
            about=self.checkpoint.about,
            on_step=on_step,
            on_problem=say_problem,
            checkpoint=self.checkpoint,
        )


def _enter(
    unfinished: Sequence[tuple[TrainingSettings, Checkpoint, Start]],
    settings: Settings,
    processes: Processes,
    console: Terminal,
    *,
    overwrite: bool,
) -> list[_Entered]:
    """Begin trainings, or enter those that are gone on with, and say so."""
    entered = []
    for training, named, start in unfinished:
        checkpoint, done = enter(named, start, processes, overwrite=overwrite)
        steps = training.recipe.steps
        begins = f"goes on after step {done} of {steps}" if start is Start.GO_ON else f"{steps} steps"
        say(console, settings, f"{begins}, state in {checkpoint.path}")
        entered.append(_Entered(training, checkpoint, done))
    return entered


def _train(
    entered: Sequence[_Entered],
    batches: Iterator[Tensor],
    held_out: Sequence[Tensor],
    out: Path,
    settings: Settings,
    loaded: LoadedModel,
    processes: Processes,
    console: Terminal,
    *,
    cuda_graph: bool,
) -> None:
    """Run the trainings to their ends, and report each as soon as its gates are in folder `out`."""
    log = StepLog(settings.folder, loaded.device) if processes.main else None
    counts = {training.settings.spec.suffix: (training.settings.recipe.steps, training.done) for training in entered}
    by_path = {out / training.settings.spec.file_name: training for training in entered}

    def say_problem(problem: str) -> None:
        console.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)

    with step_progress(counts, console) if log and settings.progress else nullcontext(_no_bar) as show:
        # a lone one's problem ends the command, which says it
        plans = [training.plan(log, show, say_problem if len(entered) > 1 else None) for training in entered]
        kind = entered[0].settings.spec.kind
        stream = distill(
            loaded, batches, plans, out=out, held_out=held_out, kind=kind, processes=processes, cuda_graph=cuda_graph
        )
        # Those that replaced gates keep theirs until all have ended: without it the same command, killed, would take the new
        # gates for the ones that it is to replace.
        replacing: list[Checkpoint] = []
        try:
            for distilled in stream:
                training = by_path[distilled.path]
                if processes.main:
                    report_training(distilled, settings, loaded, training.settings.spec, console)
                    if training.checkpoint.replaces:
                        replacing.append(training.checkpoint)
                    else:
                        training.checkpoint.remove()  # last of all: where it is, the same command goes on
                processes.wait()
        except UserError:  # of another training: it ends the command as well
            _remove(replacing)
            raise
        _remove(replacing)


def _remove(checkpoints: Sequence[Checkpoint]) -> None:
    """Remove the checkpoints of trainings that have ended."""
    for checkpoint in checkpoints:
        checkpoint.remove()


def _no_bar(_: str, __: Step) -> None:
    """Take the steps of a process that shows no bar."""


def _model(settings: Settings, processes: Processes, console: Terminal, *, shard: bool) -> LoadedModel:
    if not shard:
        return load_model_of(settings, console)
    from transformers.utils import logging

    logging.disable_progress_bar()  # of the weights, in every process
    name, path = str(settings.model["name"]), str(settings.model["path"])
    asked_length, chat = settings.model.get("max_length"), settings.chat_options
    config = ModelConfig(name, path, settings.dtype, "cpu", asked_length, chat)
    return load_sharded(lambda: load_model(config), processes)  # not the one that the jobs of a sweep share


def _check_out(folder: Path) -> None:
    """Raise UserError where no gates could be written into a folder, which need not be there."""
    check_output(f"job.out={folder}", folder)


def _out(folder: Any, settings: Settings, loaded: LoadedModel) -> Path:
    """Return the folder for the gates."""
    if folder:
        return Path(str(folder)).expanduser()
    return OWN_BUNDLED if str(settings.model["path"]) == "bundled" else weights_folder(settings.model, loaded)
