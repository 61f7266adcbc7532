"""A process that dies before any of its changes of files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Killed(BaseException):
    """The end of the process."""


STEPS = ((Path, "rename"), (Path, "replace"), (Path, "unlink"), (shutil, "rmtree"), (os, "fsync"), (os, "ftruncate"))
"""What changes a folder, or makes a change last, in the functions that are made to die."""


@contextmanager
def dying(at: int) -> Iterator[list[int]]:
    """Let the process die before the step of this number; nothing changes after that. Yields how many steps there were."""
    done = [0]

    def dies(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            done[0] += 1
            if done[0] >= at:
                raise Killed
            return original(*args, **kwargs)

        return step

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in STEPS:
            patch.setattr(owner, name, dies(getattr(owner, name)))
        yield done
