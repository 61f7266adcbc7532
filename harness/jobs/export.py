"""``python -m harness job=export study=… format=…``: what a study measured, in a format that others read."""

from __future__ import annotations

from pathlib import Path

from harness.core import checks
from harness.core.errors import UserError, did_you_mean
from harness.core.output import check_output
from harness.core.progress import progress_bar
from harness.core.settings import Settings
from harness.jobs.command_state import CommandState
from harness.jobs.studies import OpenStudy
from harness.jobs.table import TASKS_FORMAT
from harness.report.exports import eval_results
from harness.report.exports.evaluations import Publication, evaluations
from harness.report.exports.table import FORMATS, OPTIONS


def run(settings: Settings, study: OpenStudy, command: CommandState) -> int:
    """Write the files of a study. Returns 0. Raises UserError for bad settings, and where nothing may be exported."""
    options = settings.options
    name = checks.text("format", options["format"])
    if name not in FORMATS:
        raise UserError(f"format={name}: must be one of {', '.join((TASKS_FORMAT, *FORMATS))}{did_you_mean(name, FORMATS)}")
    if "job.out" in command.given:
        raise UserError(f"out={options['out']}: the folder of format={TASKS_FORMAT}; that of results is to=")
    to = checks.text_or_null("to", options["to"])
    folder = settings.folder / "exports" / name if to is None else Path(to).expanduser()
    check_output(f"to={folder}", folder)
    publication = _publication(settings)
    study.check_has_records(settings)
    shown, left_out = evaluations(study.store, settings.margin)
    if not shown:
        raise UserError(f"study={settings.study}: no accuracy or perplexity in it that may be shown, so nothing to export")
    models = sorted({evaluation.row.model for evaluation in shown})
    if publication.model is not None and len(models) > 1:
        raise UserError(f"hub_model={publication.model}: the study has {len(models)} models: {', '.join(models)}")
    with progress_bar(command.console, settings.progress) as bar:
        task = bar.add_task("evaluations", total=len(shown))
        files = 0
        for evaluation in shown:
            files += len(FORMATS[name].write(folder, evaluation, publication))
            bar.advance(task)
    say = f"{files} file{'s' if files > 1 else ''} of {len(shown)} evaluation{'s' if len(shown) > 1 else ''}"
    if left_out:
        say += f"; {left_out} failed, held back or infinite, left out"
    command.console.print(say, highlight=False, soft_wrap=True)
    if unread := [f"{option}=" for option in OPTIONS if f"job.{option}" in command.given and option not in FORMATS[name].reads]:
        command.say_once(f"format={name} does not read {', '.join(unread)}: it does the same without")
    if name == "eval_results" and publication.dataset is None:
        command.say_once(f"dataset.id is {eval_results.PLACEHOLDER}/BENCHMARK: give dataset=, its id on the hub")
    command.print_written([folder])
    return 0


def _publication(settings: Settings) -> Publication:
    """Return what the settings say that records don't. Raises UserError for what is no text, or no id of the hub."""
    names = ("hub_model", "organization", "dataset", "url")
    texts = {name: checks.text_or_null(name, settings.options[name]) for name in names}
    for name in ("hub_model", "dataset"):
        value = texts[name]
        if value is not None and (value.count("/") != 1 or not all(value.split("/"))):
            raise UserError(f"{name}={value}: must be an id of the hub, OWNER/NAME")
    developer = checks.text("developer", settings.options["developer"])
    return Publication(texts["hub_model"], developer, texts["organization"], texts["dataset"], texts["url"])
