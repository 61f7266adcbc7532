"""``python -m harness job=choose``: which method to use for a model, a length and one bound, from recorded rows alone."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from harness.core import checks
from harness.core.errors import UserError, did_you_mean
from harness.core.printable import printable
from harness.core.settings import Settings
from harness.jobs.command_state import CommandState
from harness.jobs.every_study import out_file
from harness.jobs.studies import OpenStudy
from harness.report.choose import Bound, Choice, choices
from harness.report.choose_csv import write_choices
from harness.report.choose_text import TIMES, elsewhere
from harness.report.recorded_rows import ModelLength, RecordedArm, measured_in, recorded_arms, studies_in
from harness.report.terminal.choose_table import show_choice
from harness.report.terminal.formats import tokens
from harness.study.store import RecordError, Store

ALL = "all"
"""The value of study= that stands for every study in results=, as no value does."""
BOUNDS: Mapping[str, Literal["loss", "density", "ms"]] = {"max_loss": "loss", "max_density": "density", "max_ms": "ms"}
"""What the settings of bounds are of."""


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Print the answer, and write the CSV where one is asked for. Returns 0. Raises UserError for bad settings, and where
    nothing was measured that they ask for."""
    bound = read_bound(settings)
    out = None if (given := settings.options["out"]) is None else out_file(given, "choose.csv")
    stores = _stores(settings, study)
    studies = f"{len(stores)} studies" if len(stores) > 1 else stores[0].folder.name
    with command.console.status(f"reading the records of {printable(studies)}"):  # seconds; only a terminal shows it
        measured = {store.folder: pairs for store in stores if (pairs := _measured(store, only=len(stores) == 1))}
        place = _place(settings, {pair for pairs in measured.values() for pair in pairs})
        arms = recorded_arms([store for store in stores if place in measured.get(store.folder, ())], place)
    asked = _asked(arms, settings, place)
    main, *others = _on_device(choices(asked, bound), settings.options["measured_on"])
    show_choice(command.console, main, others, elsewhere(asked, [main, *others]))
    if out is not None:
        command.print_written([write_choices(out, [main, *others])])
    return 0


def read_bound(settings: Settings) -> Bound:
    """Return the one bound of the job's settings. Raises UserError for none, several, or one out of range."""
    options = settings.options
    given = {name: options[name] for name in BOUNDS if options[name] is not None}
    if len(given) != 1:
        said = f"{' and '.join(f'{name}={value}' for name, value in given.items())}: give one bound" if given else "no bound"
        raise UserError(
            f"{said}; one of max_loss=2 (points of accuracy lost), max_density=0.2 (share of blocks kept), max_ms=3 "
            "(milliseconds)"
        )
    ((name, value),) = given.items()
    most = checks.number(name, value)
    if most < 0 or (most == 0 and name != "max_loss"):
        raise UserError(f"{name}={value}: must be {'at least' if name == 'max_loss' else 'above'} 0")
    if (name == "max_loss" and most > 100) or (name == "max_density" and most > 1):
        raise UserError(f"{name}={value}: must be at most {'100 points' if name == 'max_loss' else '1, every block'}")
    by = options["by"]
    if by not in TIMES:
        raise UserError(f"by={'null' if by is None else by}: must be one of {', '.join(TIMES)}{did_you_mean(str(by), TIMES)}")
    return Bound(BOUNDS[name], most, by)


def _stores(settings: Settings, study: OpenStudy) -> list[Store]:
    """Return the study of the settings, where one is given, else all that have records. Raises UserError for none."""
    one = "study" in settings.given and (settings.study != ALL or settings.folder.is_dir())
    if one:
        study.check_has_records(settings)
        return [study.store]
    stores = studies_in(settings.results)
    if not stores:
        raise UserError(f"results={settings.results}: no study there has records; measure something first, or name its folder")
    return stores


def _measured(store: Store, *, only: bool) -> set[ModelLength]:
    """Return what a study has rows of. One among several that can't be read is said, and left out; the only one is an error."""
    try:
        return measured_in(store)
    except RecordError as error:
        if only:
            raise
        print(f"warning: {printable(f'study={store.folder.name} is left out: {error}')}", file=sys.stderr)
        return set()


def _place(settings: Settings, measured: set[ModelLength]) -> ModelLength:
    """Return the model and the length that are asked for, which may be left out where there is but one. Raises UserError, which
    lists those there are, where they are not among those measured."""
    models = sorted({model for model, _ in measured})
    if not models:
        raise UserError("no study has accuracies or times of a model: measure some, for example python -m harness sparsity=0.9")
    model = _model(settings, models)
    lengths = sorted(length for name, length in measured if name == model)
    if "length" not in settings.given and len(lengths) == 1:
        return model, lengths[0]
    if "length" not in settings.given or settings.length not in lengths:
        asked = f"length={settings.length}: nothing is recorded of {model} there" if "length" in settings.given else "no length"
        raise UserError(f"{asked}; it was measured at {', '.join(f'{n}' for n in lengths)}: name one with length=")
    return model, settings.length


def _model(settings: Settings, models: Sequence[str]) -> str:
    """Return the recorded model that is asked for, by its name or, in job.model, a part that no other has."""
    part, name = settings.options["model"], str(settings.model["name"])
    if part is not None:
        part = checks.text("model", part)
        fit = [m for m in models if m == part] or [m for m in models if part.casefold() in m.casefold()]
        if len(fit) == 1:
            return fit[0]
        problem = f"{len(fit)} models have that in their names" if fit else "no model of that name is recorded"
        raise UserError(f"model={part}: {problem}; name one of: {', '.join(fit or models)}")
    given = any(one == "model" or one.startswith("model.") for one in settings.given)
    if given and name in models:
        return name
    if not given and len(models) == 1:
        return models[0]
    problem = f"model={name}: nothing is recorded of it" if given else "no model"
    raise UserError(f"{problem}; name one of those measured, or a part of its name, with model=: {', '.join(models)}")


def _asked(arms: Sequence[RecordedArm], settings: Settings, place: ModelLength) -> list[RecordedArm]:
    """Return the arms whose questions and chunks are those asked for. Raises UserError where there is none with an accuracy."""
    question, chunk = settings.question, settings.prefill_chunk
    fit = [arm for arm in arms if arm.row.prefill_chunk == chunk and arm.row.question in ("", question)]
    where = f"{place[0]} at {tokens(place[1])}"
    if any(arm.tasks and not arm.row.is_baseline for arm in fit):
        return fit
    if any(arm.tasks for arm in fit):
        raise UserError(f"{where}: only dense attention was measured there: measure a method, see job=evaluate")
    scored = [arm for arm in arms if arm.tasks]
    if not scored:
        raise UserError(
            f"{where}: no accuracy of a finished cell is recorded, so nothing can be chosen: measure with job=evaluate"
        )
    others = {f"question={arm.row.question}{_chunk_text(arm.row.prefill_chunk)}" for arm in scored}
    asked = f"question={question}{_chunk_text(chunk)}"
    raise UserError(f"{where}: nothing is recorded with {asked}; there is {', '.join(sorted(others))}")


def _chunk_text(chunk: int | None) -> str:
    return "" if chunk is None else f" prefill.chunk={chunk}"


def _on_device(answers: Sequence[Choice], part: object) -> Iterable[Choice]:
    """Return the answers, those of a device first whose name has a part. Raises UserError where none has, or several."""
    if part is None:
        return answers
    text = checks.text("measured_on", part)
    fit = {answer.device for answer in answers if text.casefold() in answer.device.casefold()}
    if len(fit) != 1:
        problem = f"{len(fit)} devices have that in their names" if fit else "nothing was measured on such a device"
        devices = sorted(fit or {answer.device for answer in answers})
        raise UserError(f"measured_on={part}: {problem}; name one of: {', '.join(devices)}")
    return sorted(answers, key=lambda answer: answer.device not in fit)
