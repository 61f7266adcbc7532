"""A limit on the time of what is measured, which the measured code itself asks for: no thread is ended, no signal is sent.

    with time_limit(60):
        model(ids)  # every layer's attention calls check_time, which raises TimeIsUp

A kernel that never comes back can't be left that way: Python has its turn again when it does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_END: ContextVar[float | None] = ContextVar("when the time is up, in seconds of time.monotonic", default=None)


class TimeIsUp(Exception):
    """What was begun under a `time_limit` has not ended in time. finished: what of it has, by its place among all that was to
    be done."""

    def __init__(self, finished: Mapping[int, Any] | None = None) -> None:
        super().__init__()
        self.finished = dict(finished or {})


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Have `check_time` raise TimeIsUp after so many seconds while it lasts; None: no limit of its own. Of two limits, one
    within the other, the earlier counts."""
    before = _END.get()
    ends = [end for end in (before, None if seconds is None else time.monotonic() + seconds) if end is not None]
    token = _END.set(min(ends, default=None))
    try:
        yield
    finally:
        _END.reset(token)


def check_time() -> None:
    """Raise TimeIsUp where the time of the innermost `time_limit` is over. It costs less than a microsecond."""
    end = _END.get()
    if end is not None and time.monotonic() > end:
        raise TimeIsUp
