"""What is shown of work that takes long: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from harness.core import progress
from harness.core.activity import CURRENT, OVERALL, duration, every, pace
from harness.core.progress import Bar, progress_bar, progress_lines


def console(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    """A console and what it prints."""
    shown = io.StringIO()
    return Console(file=shown, force_terminal=terminal, width=80), shown


def due(bar: Bar, monkeypatch: pytest.MonkeyPatch, seconds: float = 60.0) -> None:
    """Let so many seconds pass since the last line, and the bar look at the clock."""
    monkeypatch.setattr(progress, "_last_line", time.monotonic() - seconds)
    bar._print_when_due()


def test_times_in_words() -> None:
    assert [duration(s) for s in (0, 59, 60, 3599, 7200, 2 * 86400)] == ["0 s", "59 s", "1 min", "1.0 h", "2.0 h", "2.0 days"]
    assert pace(10, 40, 0, 20) == "2.0 s each, 1 min left" and pace(10, 40, 5, 2.5) == "2.0 a second, 15 s left"
    assert pace(40, 40, 0, 20) == "2.0 a second" and pace(5, 40, 5, 90) == "none in 2 min"


def test_a_line_a_minute_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    where, shown = console()
    with progress_bar(where, True) as bar:
        task = bar.add_task("arm 8192", total=40, completed=10)
        CURRENT.since -= 20
        bar.advance(task, 10)
        due(bar, monkeypatch, seconds=59)
        assert shown.getvalue() == ""
        due(bar, monkeypatch)
        assert shown.getvalue() == "arm 8192: 20 of 40, 2.0 s each, 40 s left\n"
        bar._print_when_due()
        assert shown.getvalue().count("\n") == 1, "the next one is due in a minute"
        monkeypatch.setattr(CURRENT, "job", (3, 60))
        OVERALL.append(lambda: "350 of 1,500 samples")
        bar.update(task, description="arm 16384")
        due(bar, monkeypatch)
        OVERALL.clear()
        assert shown.getvalue().endswith("arm 16384: 20 of 40, 2.0 s each, 40 s left; job 3 of 60; 350 of 1,500 samples\n")
    assert CURRENT.text == "" and CURRENT.done == 0


@pytest.mark.parametrize("show", [True, False])
def test_lines_are_for_those_who_look_and_have_no_terminal(show: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    monkeypatch.setattr(progress, "every", lambda seconds, act: looks.append(seconds) or every(9.0, act))
    quiet, _ = console()
    quiet.quiet = True
    for where in (console(terminal=True)[0], quiet, console()[0]):
        with progress_lines(where, show) as bar:
            bar.add_task("timing", total=2)
    assert len(looks) == int(show)


def test_what_is_timed_has_no_bar_on_a_terminal() -> None:
    where, shown = console(terminal=True)
    with progress_lines(where, True) as bar:
        bar.advance(bar.add_task("timing", total=2))
        assert CURRENT.text == "timing" and CURRENT.done == 1
    assert shown.getvalue() == ""


def test_what_only_tells_of_the_work_does_not_end_it() -> None:
    called: list[int] = []

    def fail() -> None:
        called.append(1)
        raise OSError

    with every(0.001, fail):
        while len(called) < 2:
            time.sleep(0.001)
