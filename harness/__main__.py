"""The command: `python -m harness [group=choice] [name=value] …`; `--help` lists them, `-m` sweeps over commas.

Exit code 0: done; 1: done, but some cells failed (their reasons are in the records); 2: bad input, one line says what.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from harness.core.conf_files import MAIN, conf_dir
from harness.core.errors import UserError
from harness.core.hydra_text import COMPOSING_ERRORS, explain
from harness.core.mistakes import in_words, origin
from harness.core.printable import printable
from harness.core.terminal import error_line
from harness.jobs.arguments import check_choices, check_hydra_settings, given_names, prepare
from harness.jobs.command_state import CommandState
from harness.jobs.run import run_job

DONE = 0
FAILED_CELLS = 1
BAD_INPUT = 2
INTERRUPTED = 130
HELP = ("--help", "-h")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` without the program name (default: the process's own). Returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        return _guarded(lambda: _run(prepare(arguments)), debug=_debugs(arguments))
    except KeyboardInterrupt:
        print("interrupted: what is finished is recorded, the same command carries on", file=sys.stderr)
        return INTERRUPTED


def _run(arguments: list[str]) -> int:
    """Show the help, or run the jobs and write their reports. Returns the exit code."""
    if any(flag in HELP for flag in arguments):
        from harness.jobs.help import help_text

        print(help_text([argument for argument in arguments if argument not in HELP]))
        return DONE
    command, codes = CommandState(given_names(arguments)), [DONE]
    shown: set[str] = set()  # a sweep says once what is wrong with all of its jobs

    def run_one(cfg: DictConfig) -> None:
        """Run one job of a sweep; its bad input does not stop the others."""
        codes.append(_guarded(lambda: _run_one(cfg, command), shown, debug=_debugs(arguments)))

    with _arguments_of_process(arguments):
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=MAIN)(run_one)()
        command.write_reports()
    return max(codes)


def _run_one(cfg: DictConfig, command: CommandState) -> int:
    overrides = HydraConfig.get().overrides
    check_choices(overrides.task)  # those that an experiment sweeps over too
    check_hydra_settings(overrides.hydra)
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
    """Run `action` and return its exit code. A user's error becomes one line on stderr, unless that is among those `shown`
    before; so does a mistake in a method's code, with its place, and a package that can't be imported. debug shows the
    traceback below. Anything else is a bug of this project and keeps its traceback."""
    try:
        return action()
    except UserError as error:
        line, told = error_line(error), origin(error).traceback
    except COMPOSING_ERRORS as error:
        line, told = error_line(explain(error)), origin(error).traceback
    except Exception as error:
        came_from = origin(error)
        if isinstance(error, AssertionError) or not (came_from.author or came_from.library):
            raise
        hint = "" if debug else "; debug=true shows the traceback"
        line, told = error_line(in_words(error) + hint), came_from.traceback
    if shown is None or line not in shown:
        print(line, file=sys.stderr)
        if debug:
            print(printable(told, keep="\n"), file=sys.stderr, end="")
    if shown is not None:
        shown.add(line)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
