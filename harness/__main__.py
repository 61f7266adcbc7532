"""The command: `python -m harness [group=choice] [name=value] …`; `--help` lists them, `-m` sweeps over commas.

Exit code 0: done; 1: done, but some cells failed (their reasons are in the records), or a fault of this program, whose
traceback is kept; 2: bad input, one line says what; 130: interrupted; 141: nobody reads the output any more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

BAD_INPUT = 2
INTERRUPTED = 130
CLOSED_OUTPUT = 141
"""What a shell shows for a program that wrote into a closed pipe."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` without the program name (default: the process's own). Returns the exit code."""
    try:
        from harness.jobs.command import run_command  # takes a while, and whoever is tired of waiting meets no traceback

        code = run_command(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted: what is finished is recorded, the same command carries on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _close_output()
        return CLOSED_OUTPUT
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich ends so where its console is closed
            return CLOSED_OUTPUT
        raise
    except OSError as error:  # of the output: a full disk, say
        _close_output()
        print(f"error: the output can't be written ({error.strerror or error}); what is recorded is safe", file=sys.stderr)
        return BAD_INPUT


def _close_output() -> None:
    """Have the interpreter, at its end, write nothing more where nothing can be written."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
