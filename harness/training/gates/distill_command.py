"""``python -m harness job=distill``: gates for the configured model, with their curve and their recall in a study."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

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
from harness.report.figures.gates import draw_gate_curves
from harness.tasks.haystack import haystack_source
from harness.training.gates import recall_tables
from harness.training.gates.checkpoint import Checkpoint, Step
from harness.training.gates.distill import distill
from harness.training.gates.gate_spec import GateSpec, gate_spec
from harness.training.gates.job_settings import (
    TrainingSettings,
    check_rows,
    read_lengths,
    read_trainings,
    whole_number,
)
from harness.training.gates.processes import Processes, join, load_sharded
from harness.training.gates.row_workers import batches, drawn_by_workers
from harness.training.gates.rows import BY_NEED, DRAWN, Rows, TextNeeds, check_text, row_kind, row_sources, text_id
from harness.training.gates.step_log import StepLog
from harness.training.gates.step_progress import Show, step_progress
from harness.training.gates.training import Distilled, Plan
from harness.training.gates.training_start import Start, enter, find_start

OWN_BUNDLED = Path("gates/bundled")
"""Where gates trained here for the bundled model go: those that ship lie in the installed package."""


def main(cfg: DictConfig) -> list[Path]:
    """Train and save the gates; return the paths of their files, one a training.

    Writes gate_steps.csv, gate_recall.csv and gates.png into the study's folder, and every step into its records as it is
    done. Killed at any moment, the same command goes on. Raises UserError for settings that are out of range, before anything
    is loaded.
    """
    settings = read_settings(cfg)
    job, overwrite = cfg.job, bool(cfg.job.overwrite)
    spec = gate_spec(settings)
    wanted = read_trainings(job, spec, settings.seed)
    lengths, tokens = read_lengths(job.lengths, spec.block_size), whole_number(job, "tokens", 1)
    sequences, every = whole_number(job, "recall_sequences", 0), whole_number(job, "checkpoint_every", 0)
    workers = whole_number(job, "workers", 0)
    check_rows(job)
    check_own_output("job.out", checks.text_or_null("job.out", settings.options["out"]))
    check_output(f"results={settings.results} study={settings.study}", settings.folder, "records")
    processes = join(settings.device)
    console = Terminal()
    console.quiet = not processes.main
    settings = replace(settings, device_choice=str(processes.device or settings.device))
    if (described := describe(settings)) is not None:
        check_length(described, max(lengths), f"job.lengths={lengths}")
        check_text(described, settings.data, str(job.rows), job.hub)
        _check_out(_out(job.out, settings, described))
    loaded = _model(settings, processes, console, shard=bool(job.shard))
    check_length(loaded, max(lengths), f"job.lengths={lengths}")
    out = _out(job.out, settings, loaded)
    kind = row_kind(loaded, settings.data, str(job.rows))
    if workers and kind not in DRAWN:
        raise UserError(f"job.workers={workers}: rows={kind} are tokenised once, before the first step: leave it 0")
    batch_count = max(training.end for training in wanted)
    started = []
    for training in wanted:
        about = _about(job, training, settings, loaded, kind, lengths, batch_count)
        file_name = training.spec.file_name
        checkpoint = Checkpoint(out / f"{Path(file_name).stem}.checkpoint", every, about)
        start = find_start(checkpoint, out / file_name, _tables(settings, training.spec), overwrite=overwrite)
        if start is Start.NOTHING:
            console.print(
                f"{out / file_name} is there, trained with these settings: job.overwrite=true trains it anew", soft_wrap=True
            )
        else:
            started.append((training, checkpoint, start))
    paths = [out / training.spec.file_name for training in wanted]
    if not started:
        return paths
    _check_out(out)  # not made before the text is read, which may be refused
    say(console, settings, f"reading text: rows={kind}")
    test_lengths = list(islice(cycle(lengths), sequences))
    needs = TextNeeds(batch_count * max(tokens, *lengths), test_lengths)
    train, test = row_sources(loaded, settings.data, settings.seed, kind=kind, needs=needs, hub=job.hub)
    held_out = [test(length)[None] for length in test_lengths]

    def of_seed(seed: int) -> Rows:
        return train if seed == settings.seed else row_sources(loaded, settings.data, seed, kind=kind, needs=needs)[0]

    batch_source = (
        drawn_by_workers(of_seed, lengths, tokens, workers=workers, seed=settings.seed)
        if workers
        else batches(train, lengths, tokens)
    )
    log = StepLog(settings.folder, loaded.device) if processes.main else None
    counts, entered = {}, []
    for training, checkpoint, start in started:
        checkpoint, done = enter(checkpoint, start, processes, overwrite=overwrite)
        steps = training.recipe.steps
        begins = f"goes on after step {done} of {steps}" if start is Start.GO_ON else f"{steps} steps"
        say(console, settings, f"{begins}, state in {checkpoint.path}")
        counts[training.spec.suffix] = (steps, done)
        entered.append((training, checkpoint))
    with step_progress(counts, console) if log and settings.progress else nullcontext(_no_bar) as show:
        plans = [_plan(training, checkpoint, log, show) for training, checkpoint in entered]
        by_file = {out / plan.file_name: (training, plan) for (training, _), plan in zip(entered, plans, strict=True)}
        stream = distill(
            loaded,
            batch_source,
            plans,
            out=out,
            held_out=held_out,
            kind=spec.kind,
            processes=processes,
            cuda_graph=bool(job.cuda_graph),
        )
        with _removed_at_the_end() as replacing:
            for distilled in stream:
                training, plan = by_file[distilled.path]
                if processes.main:
                    _report(distilled, settings, loaded, training.spec, console)
                    assert plan.checkpoint is not None
                    if plan.checkpoint.replaces:
                        replacing.append(plan.checkpoint)
                    else:
                        plan.checkpoint.remove()  # last of all: where it is, the same command goes on
                processes.wait()
    return paths


@contextmanager
def _removed_at_the_end() -> Iterator[list[Checkpoint]]:
    """Yield a list for the checkpoints of trainings that replaced gates and are whole, and remove them when all have ended.

    Without them the same command, killed, would take these gates for those that it is to replace, and train them anew.
    """
    checkpoints: list[Checkpoint] = []
    failure = None
    try:
        yield checkpoints
    except UserError as error:  # another training's: it ends the command as well
        failure = error
    for checkpoint in checkpoints:
        checkpoint.remove()
    if failure is not None:
        raise failure


def _no_bar(_: str, __: Step) -> None:
    """Take the steps of a process that shows no bar."""


def _plan(training: TrainingSettings, checkpoint: Checkpoint, log: StepLog | None, show: Show) -> Plan:
    """Return a training for `distill`, whose steps are recorded and shown."""

    def on_step(step: Step) -> None:
        if log:
            log(checkpoint.training, checkpoint.about, step)
        show(training.spec.suffix, step)

    return Plan(
        training.recipe,
        first_step=training.first_step,
        file=training.spec.file,
        about=checkpoint.about,
        on_step=on_step,
        checkpoint=checkpoint,
    )


def _model(settings: Settings, processes: Processes, console: Terminal, *, shard: bool) -> LoadedModel:
    if not shard:
        return load_model_of(settings, console)
    from transformers.utils import logging

    logging.disable_progress_bar()  # of the weights, in every process
    name, path = str(settings.model["name"]), str(settings.model["path"])
    asked_length, chat = settings.model.get("max_length"), settings.chat_options
    config = ModelConfig(name, path, settings.dtype, "cpu", asked_length, chat)
    return load_sharded(lambda: load_model(config), processes)  # not the one that the jobs of a sweep share


def _about(
    job: DictConfig,
    training: TrainingSettings,
    settings: Settings,
    loaded: LoadedModel,
    kind: str,
    lengths: list[int],
    batch_count: int,
) -> dict[str, Any]:
    """Return all that decides the result, by the names of the settings: a checkpoint of anything else is refused.

    batch_count: how many batches the text is read for; it is named where the rows depend on it, and others need more of them.
    """
    if kind == "hub":
        text: str | None = str(job.hub)
    elif kind == "samples":
        text = haystack_source(settings.data)
    else:
        text = text_id(str(settings.data["text_dir"]))
    spec, recipe = training.spec, training.recipe
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
        **({"workers": int(job.workers)} if job.workers else {}),
        **({"training_name": spec.training} if spec.training else {}),
        **({"first_step": training.first_step} if training.first_step else {}),
        **({"text_seed": settings.seed} if settings.seed != recipe.seed else {}),
        **({"text_batches": batch_count} if kind in BY_NEED and batch_count != training.end else {}),
    }


def _tables(settings: Settings, spec: GateSpec) -> list[Path]:
    """Return what a training writes into the study's folder, whatever it finds: its steps, recall by layer, and curves."""
    names = (f"gate_steps_{spec.suffix}.csv", f"gate_recall_{spec.suffix}.csv", f"gates_{spec.suffix}.png")
    return [settings.folder / name for name in names]


def _report(distilled: Distilled, settings: Settings, loaded: LoadedModel, spec: GateSpec, console: Terminal) -> None:
    """Write the tables and the picture of a training, and print its recall and where its file lies."""
    steps_path, _, picture = _tables(settings, spec)
    steps = pd.DataFrame([asdict(step) for step in distilled.steps])
    recall_tables.write_table(steps_path, steps)
    recall_tables.write(distilled.recall, settings.folder, spec.suffix, recall_tables.title(loaded.name))
    draw_gate_curves(steps, recall_tables.by_layer(distilled.recall), picture)
    console.print(f"{distilled.parameters:,} gate parameters, {distilled.seconds:.0f} s", highlight=False)
    recall_tables.show(distilled.recall, console)
    console.print(f"wrote {distilled.path}", highlight=False, soft_wrap=True)
    if distilled.path.parent != weights_folder(settings.model, loaded):
        console.print(f"to use them: model.gates={distilled.path.parent}", highlight=False, soft_wrap=True)


def _check_out(folder: Path) -> None:
    """Raise UserError where no gates could be written into a folder, which need not be there."""
    check_output(f"job.out={folder}", folder)


def _out(folder: Any, settings: Settings, loaded: LoadedModel) -> Path:
    """Return the folder for the gates."""
    if folder:
        return Path(str(folder)).expanduser()
    return OWN_BUNDLED if str(settings.model["path"]) == "bundled" else weights_folder(settings.model, loaded)
