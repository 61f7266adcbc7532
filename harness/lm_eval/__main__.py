"""lm-eval's own command with `--model sparse` in it: `python -m harness.lm_eval --model sparse --model_args … --tasks …`.

Exit code 2: bad input, one line says what. Everything else is lm-eval's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from harness.core.errors import UserError, first_line
from harness.core.hub import find_hub, hub_error
from harness.core.mistakes import in_words
from harness.core.terminal import print_error
from harness.lm_eval import register

BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run lm-eval's command line; `argv` without the program name (default: the process's own). Return the exit code."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except Exception as error:  # half an installation raises whatever it likes
        print_error(in_words(error))
        return BAD_INPUT

    arguments = list(sys.argv[1:] if argv is None else argv)
    own_argv = sys.argv
    sys.argv = ["lm-eval", *(_with_device(arguments) or ["--help"])]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        print_error("--model sparse runs in one process: start it without accelerate or torchrun")
        return BAD_INPUT
    register()
    offline = find_hub()  # else the libraries of its data try again for minutes
    try:
        cli_evaluate()
    except UserError as error:
        print_error(error)
        return BAD_INPUT
    except ConnectionError as error:
        if offline is None:
            raise
        print_error(f"{first_line(error)}: {hub_error(error, offline)}; load the task's data once where there is a network")
        return BAD_INPUT
    finally:
        sys.argv = own_argv
    return 0


def _with_device(arguments: list[str]) -> list[str]:
    """Add --device cpu where there is no GPU: lm-eval asks for cuda:0 where none is given, and HFLM takes that for the CPU."""
    import torch

    names = {argument.partition("=")[0] for argument in arguments}
    if "--model" not in names or names & {"--device", "--config", "-C"} or torch.cuda.is_available():
        return arguments
    return [*arguments, "--device", "cpu"]


if __name__ == "__main__":
    sys.exit(main())
