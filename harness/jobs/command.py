"""One command: its arguments read, its jobs run, its reports written, and what goes wrong said in one line each."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from harness.core.conf_files import MAIN, conf_dir
from harness.core.letters import take_all_letters
from harness.jobs.announce import announcing
from harness.jobs.arguments import SWEEPS, given_names, prepare
from harness.jobs.command_state import CommandState
from harness.jobs.guard import debugs, guarded
from harness.jobs.launcher import Launch, as_launched, launching
from harness.jobs.one_job import DONE, FAILED_CELLS, as_composed
from harness.jobs.run import run_job
from harness.study.joining import join_parts
from harness.study.parts import own_parts
from harness.study.record_io import RecordError
from harness.study.running import telling

HELP = ("--help", "-h")


def run_command(arguments: Sequence[str]) -> int:
    """Run one command. Returns its exit code (`harness.__main__`)."""
    for stream in (sys.stdout, sys.stderr):
        take_all_letters(stream)
    return guarded(lambda: _run(prepare(arguments)), debug=debugs(arguments))


def _run(arguments: list[str]) -> int:
    """Show the help, or run the jobs and write their reports. Returns the exit code."""
    if any(flag in HELP for flag in arguments):
        from harness.jobs.help import help_text

        print(help_text([argument for argument in arguments if argument not in HELP]))
        return DONE
    launched = as_launched(arguments, sweeps=any(a in SWEEPS or a.startswith("experiment=") for a in arguments))
    command, codes = CommandState(given_names(launched)), [DONE]
    log = command.sweep.failures
    log.sweeps = any(a in SWEEPS or a.startswith("experiment=") for a in launched)
    launch = Launch(arguments, command.given, debugs(arguments), log.launch)
    raised: list[Exception] = []  # kept from Hydra, which would write a line of its own
    shown: set[str] = set()  # a sweep says once what is wrong with all of its jobs

    def run_one(cfg: DictConfig) -> None:
        """Run one job of a sweep; its bad input does not stop the others, a closed output does."""
        if raised:
            return
        if log.lost:
            log.skipped += 1
            return
        try:
            codes.append(guarded(lambda: _run_one(cfg, command), shown, debug=debugs(arguments)))
        except Exception as error:
            raised.append(error)

    with (
        _arguments_of_process(launched),
        launching(launch),
        own_parts(always=False) as written,
        telling(),
        announcing(command),
    ):
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=MAIN)(run_one)()
        if raised:
            raise raised[0]
        codes += _take_outcomes(launch, command)
        written.end()
        try:
            for folder in {*written.studies, *(Path(part) for outcome in launch.outcomes for part in outcome.parts)}:
                join_parts(folder)
        except RecordError:
            if max(codes) == DONE:  # else what stands in the way, such as a full disk, is said already
                raise
        command.write_reports()
    if log.failed:  # a job that reads nothing but records never gets here with any: it need not import what draws a table
        from harness.jobs.failure_table import show_failures

        show_failures(command.console, log)
        codes.append(FAILED_CELLS)
    return max(codes)


def _take_outcomes(launch: Launch, command: CommandState) -> list[int]:
    """Note which reports are due of what workers measured, and say once what is wrong with their jobs. Returns their exit
    codes. Raises what kept them from being started."""
    if launch.error is not None:
        raise launch.error
    for line in dict.fromkeys(line for outcome in launch.outcomes for line in outcome.errors):
        print(line, file=sys.stderr)
    for outcome in launch.outcomes:
        command.sweep.failures.join(outcome.failures)
        for folder, (margin, arms) in outcome.studies.items():
            command.study_at(Path(folder), margin).add_arms(arms)
    return [outcome.code for outcome in launch.outcomes]


def _run_one(cfg: DictConfig, command: CommandState) -> int:
    with as_composed(HydraConfig.get()):
        return FAILED_CELLS if run_job(cfg, command) else DONE


@contextmanager
def _arguments_of_process(arguments: list[str]) -> Iterator[None]:
    """Put `arguments` where Hydra, and a record of the command, look for them, and have Hydra raise its errors, which are then
    shown here, as one line."""
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["harness", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
