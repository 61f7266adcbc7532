"""The command: `python -m harness [group=choice] [name=value] …`; `--help` lists them, `-m` sweeps over commas.

Exit code 0: done; 1: done, but some cells failed (their reasons are in the records); 2: bad input, one line says what.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from harness.core.conf_files import conf_dir
from harness.core.errors import UserError
from harness.core.settings import check_choices, explain, one_for_all
from harness.jobs.run import Jobs

FAILED_CELLS = 1
BAD_INPUT = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` without the program name (default: the process's own). Returns the exit code."""
    arguments = one_for_all(sys.argv[1:] if argv is None else argv)
    codes: list[int] = []
    kept_argv, kept_full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["harness", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors, and they are shown here, as one line
    jobs = Jobs()

    def job(cfg: DictConfig) -> None:
        codes.append(_guarded(lambda: jobs.run(cfg)))

    def whole() -> int:
        check_choices(arguments)
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)()
        return jobs.finish()

    try:
        codes.append(_guarded(whole))
    except KeyboardInterrupt:
        print("interrupted: what is finished is recorded, the same command carries on", file=sys.stderr)
        codes.append(INTERRUPTED)
    finally:
        sys.argv = kept_argv
        if kept_full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = kept_full
    return max(codes)


def _guarded(action: Callable[[], int]) -> int:
    """Run `action`; a user's error becomes one line on stderr. Anything else is a bug and keeps its traceback."""
    try:
        return action()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
