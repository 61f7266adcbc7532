"""One job of a command, from its composed config to its exit code."""

from __future__ import annotations

from dataclasses import replace

from omegaconf import DictConfig

from harness.core.devices import torch_device
from harness.core.knob_names import RELEASED
from harness.core.output import check_output
from harness.core.partial_files import remove_abandoned
from harness.core.settings import Settings, read_settings
from harness.jobs.announce import begin
from harness.jobs.command_state import CommandState
from harness.jobs.table import Does, check_chunks_fit, check_model_fits, check_question_fits, job_of, unread
from harness.models.source import check_model
from harness.study.joining import join_parts
from harness.study.parts import written_parts
from harness.study.running import FOLDER as RUNNING
from harness.tasks.names import expand_tasks


def has_release(settings: Settings) -> bool:
    """Return whether the method of prefill, or that of decoding, follows a release. Raises UserError for an unknown name."""
    from harness.arms import build  # which imports torch

    return build.has_release(settings)


def run_job(cfg: DictConfig, command: CommandState) -> int:
    """Run the job of one composed config. Returns how many cells failed. Raises UserError for bad input."""
    settings = read_settings(cfg)
    job = job_of(settings)
    check_question_fits(job, settings.question)
    check_model_fits(job, settings)
    check_chunks_fit(job, settings.prefill_chunk)
    unread_names = unread(job, command.given, by_shape=settings.by_shape)
    settings = replace(settings, tasks=tuple(expand_tasks(settings.tasks)))
    if job.does is not Does.TRAINS and job.writes_study:  # those have folders of their own
        check_output(f"results={settings.results} study={settings.study}", settings.folder, "records")
    if job.does is not Does.READS:
        if job.loads_model and not settings.by_shape:
            check_model(settings.model["path"])
        torch_device(settings.device_choice)  # a device that isn't there is an error before any work; torch takes seconds
    remove_abandoned([settings.folder, *(settings.folder / name for name in ("records", "maps", RUNNING))])
    if job.writes_study and not written_parts().always:  # what dead workers have left
        join_parts(settings.folder)
    if settings.as_released and RELEASED not in command.given and not has_release(settings):  # an experiment's sweep over it
        command.say_once(f"as_released=true: {settings.method} has no release to follow, and is passed over")
        return 0
    if job.does is not Does.READS:
        begin(command, settings, measures=job.does is Does.MEASURES)
    function = job.load()
    failed = 0
    if job.does is Does.TRAINS:
        function(cfg)
    else:
        failed = function(settings, command.open_study(settings), command)
    of_shape = " of a model by shape" if settings.by_shape and job.times_alone else ""
    if unread_names:  # at the end: an error before it is one line
        command.say_once(f"job={job.name}{of_shape} does not read {unread_names}: it does the same without")
    return failed
