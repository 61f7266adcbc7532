"""One command: its arguments read, its jobs run, its reports written, and what goes wrong said in one line each."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from harness.core.conf_files import MAIN, conf_dir, groups, setting_names
from harness.core.errors import UserError
from harness.core.given import giving
from harness.core.hydra_text import COMPOSING_ERRORS, explain
from harness.core.letters import take_all_letters
from harness.core.mistakes import in_words, origin
from harness.core.printable import printable
from harness.core.terminal import error_line
from harness.core.traceback_file import keep
from harness.jobs.arguments import check_choices, check_hydra_settings, given_names, prepare
from harness.jobs.command_state import CommandState
from harness.jobs.run import run_job

DONE = 0
FAILED_CELLS = 1
FAULT = 1
BAD_INPUT = 2
HELP = ("--help", "-h")
NO_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF)
"""Errors of a stream that nobody reads, or that a disk is full behind; those of files have the file's name."""


def run_command(arguments: Sequence[str]) -> int:
    """Run one command. Returns its exit code (`harness.__main__`)."""
    for stream in (sys.stdout, sys.stderr):
        take_all_letters(stream)
    return _guarded(lambda: _run(prepare(arguments)), debug=_debugs(arguments))


def _run(arguments: list[str]) -> int:
    """Show the help, or run the jobs and write their reports. Returns the exit code."""
    if any(flag in HELP for flag in arguments):
        from harness.jobs.help import help_text

        print(help_text([argument for argument in arguments if argument not in HELP]))
        return DONE
    command, codes = CommandState(given_names(arguments)), [DONE]
    raised: list[Exception] = []  # kept from Hydra, which would write a line of its own
    shown: set[str] = set()  # a sweep says once what is wrong with all of its jobs

    def run_one(cfg: DictConfig) -> None:
        """Run one job of a sweep; its bad input does not stop the others, a closed output does."""
        if raised:
            return
        try:
            codes.append(_guarded(lambda: _run_one(cfg, command), shown, debug=_debugs(arguments)))
        except Exception as error:
            raised.append(error)

    with _arguments_of_process(arguments):
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=MAIN)(run_one)()
        if raised:
            raise raised[0]
        command.write_reports()
    return max(codes)


def _run_one(cfg: DictConfig, command: CommandState) -> int:
    hydra_config = HydraConfig.get()
    overrides, experiment = hydra_config.overrides, hydra_config.runtime.choices.get("experiment")
    check_choices(overrides.task)  # those that an experiment sweeps over too
    check_hydra_settings(overrides.hydra)
    own = setting_names("experiment", experiment) if experiment in groups().get("experiment", []) else []
    with giving({*given_names(overrides.task), *own}):
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


def _debugs(arguments: Sequence[str]) -> bool:
    """Return whether the command asks for tracebacks. Known before its settings are read, which may fail."""
    return any(argument.lower() == "debug=true" for argument in arguments)


def _guarded(action: Callable[[], int], shown: set[str] | None = None, *, debug: bool) -> int:
    """Run `action` and return its exit code. What goes wrong becomes one line on stderr, unless that is among those `shown`
    before: a user's error, a file that can't be read or written, a mistake in a method's code, with its place, a package that
    can't be imported, and a fault of this program, whose traceback goes to a file. debug shows the traceback below. Raises
    OSError where the output is closed."""
    code = BAD_INPUT
    try:
        return action()
    except UserError as error:
        line, told = error_line(error), origin(error).traceback
    except COMPOSING_ERRORS as error:
        line, told = error_line(explain(error)), origin(error).traceback
    except AssertionError:  # which whoever wrote it wants to see whole
        raise
    except Exception as error:
        told = origin(error).traceback
        if isinstance(error, OSError) and error.filename is None and error.errno in NO_OUTPUT:
            raise
        if isinstance(error, OSError) and error.filename is not None:
            line = error_line(f"{error.filename}: {error.strerror or type(error).__name__}")
        elif origin(error).author or origin(error).failing_package:
            line = error_line(in_words(error) + ("" if debug else "; debug=true shows the traceback"))
        else:
            code, line = FAULT, error_line(f"{in_words(error)}: a fault of this program, not of your input{keep(told)}")
    if shown is None or line not in shown:
        print(line, file=sys.stderr)
        if debug:
            print(printable(told, keep="\n"), file=sys.stderr, end="")
    if shown is not None:
        shown.add(line)
    return code
