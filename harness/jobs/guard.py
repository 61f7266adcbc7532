"""What goes wrong in a command, said in one line each."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence

from harness.core.errors import UserError
from harness.core.hydra_text import COMPOSING_ERRORS, explain
from harness.core.mistakes import in_words, origin
from harness.core.printable import printable
from harness.core.terminal import error_line
from harness.core.traceback_file import keep

FAULT = 1
BAD_INPUT = 2
NO_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF)
"""Errors of a stream that nobody reads, or that a disk is full behind; those of files have the file's name."""


def debugs(arguments: Sequence[str]) -> bool:
    """Return whether the command asks for tracebacks. Known before its settings are read, which may fail."""
    return any(argument.lower() == "debug=true" for argument in arguments)


def guarded(action: Callable[[], int], shown: set[str] | None = None, *, debug: bool) -> int:
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
