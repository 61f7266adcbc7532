"""The table in the terminal: models apart, tasks of other data apart, and as much as fits."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from harness.report.rows import Row
from harness.report.terminal.accuracy_table import show_rows, verdict_note
from harness.study.columns import AVERAGE
from tests.harness.report.support import make_row


def row(model: str, length: int, task: str, accuracy: float, group: str, **more: Any) -> Row:
    """A row of dense attention that was not timed."""
    fields = {"model": model, "device": "a card", "block_size": None, "density": None, "tasks": None, "arm": group}
    return make_row("dense", None, length, accuracy, task=task, group=group, total_ms=None, **fields | more)


def study(lengths: range | list[int], model: str = "one") -> list[Row]:
    rows = []
    for length in lengths:
        group = f"{model}{length}"
        rows += [row(model, length, "vt", 0.75, group), row(model, length, AVERAGE, 0.75, group, tasks=1)]
    return rows


def shown(rows: list[Row], width: int = 80) -> str:
    text = io.StringIO()
    show_rows(Console(file=text, width=width), rows, set())
    return text.getvalue()


def test_every_model_has_a_table_of_its_own() -> None:
    text = shown([*study([1024], "one"), *study([1024], "two")])
    assert text.count("one on a card") == text.count("two on a card") == 1
    assert text.count("one: accuracy") == text.count("two: accuracy") == 1


def test_intervals_go_where_they_do_not_fit() -> None:
    few, many = shown(study([1024, 2048])), shown(study(range(1024, 9 * 1024, 1024)))
    assert "75.0  65–85" in few and "2k tokens" in few
    lines = [line for line in many.splitlines() if line.startswith("vt")]
    assert lines and lines[0].split() == ["vt"] + 8 * ["75.0"], "all lengths, all tasks' names"
    assert "…" not in many


def test_long_names_take_lines_of_their_own() -> None:
    """Neither headings nor numbers are cut at 80 columns, and a caption stands in one line."""
    method = "a_method_with_a_long_name (as released)"
    rows = [
        make_row(method, 0.9, 4096, 0.75, task=task, group="g", arm="a", tasks=1 if task == AVERAGE else None)
        for task in ("vt", AVERAGE)
    ]
    text = shown([*study([4096], "bundled"), *rows])
    assert "…" not in text and all(len(line) <= 80 for line in text.splitlines())
    assert any("by task" in line and "prompts a task" in line for line in text.splitlines())
    assert "density 0.1" in text, "a number above a column says what it is"


def test_one_prompt_is_no_prompts() -> None:
    """The caption of the table by task counts in the singular and in the plural."""
    rows = {count: [replace(row, samples=count) for row in study([4096], "bundled")] for count in (1, 2)}
    assert "1 prompt a task" in shown(rows[1])
    assert "2 prompts a task" in shown(rows[2])


def test_the_mark_is_explained_where_it_stands() -> None:
    """A legend of ✓ below rows that have none reads as their verdict."""
    row = make_row("m", 0.9, 4096, 0.75, task=AVERAGE, tasks=1)
    lost, equal = (replace(row, noninferior=noninferior) for noninferior in (False, True))
    assert verdict_note([lost, equal], 0.02).startswith("✓ shown at 95 % to lose less than 2 points")
    assert verdict_note([lost], 0.02).startswith("no row is shown at 95 %")


def test_the_same_task_of_other_data_stands_apart() -> None:
    """A subset and the whole of a benchmark, say: one arm, two groups."""
    rows = [
        row("one", 1024, "vt", 0.25, "whole", arm="arm"),
        row("one", 1024, AVERAGE, 0.25, "whole", arm="arm", tasks=1),
        row("one", 1024, "vt", 0.5, "part", arm="arm"),
        row("one", 1024, "cwe", 1.0, "part", arm="arm"),
        row("one", 1024, AVERAGE, 0.75, "part", arm="arm", tasks=2),
    ]
    text = shown(rows)
    (line,) = (line for line in text.splitlines() if line.startswith("vt"))
    assert "25.0" in line and "50.0" in line
    assert "tasks" in text.split("one on a card")[1].splitlines()[1], "how many tasks each mean is over"


def test_what_went_wrong_says_how_it_was_asked() -> None:
    rows = [row("one", 1024, "vt", 0.5, q, question=q, status="gated", reason="why") for q in ("seen", "after")]
    rows += [row("one", 1024, AVERAGE, 0.5, q, question=q, tasks=1) for q in ("seen", "after")]
    gated = [line for line in shown(rows).splitlines() if line.startswith("gated")]
    assert gated == ["gated: one, dense at 1024, vt: why", "gated: one, dense at 1024, vt, question after the context: why"]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_table_wider_than_the_terminal_goes_on_below(width: int) -> None:
    """Nothing of it is cut, no line runs over, and each part says whose row it is."""
    rows = [
        make_row(method, 0.9, length, 0.75, group=f"{method}{length}", p_holm=0.123, tasks=1)
        for method in ("sieve", "a_method_with_a_long_name")
        for length in (4096, 131072)
    ]
    text = shown(rows, width)
    lines = text.split("tiny on cpu")[1].splitlines()
    table = lines[1 : next(i for i, line in enumerate(lines) if not line.strip())]
    assert "…" not in text and all(len(line) <= width for line in table)
    for heading in ("method", "len", "dens", "accuracy %", "p", "select", "total", "speed", "ideal", "TTFT"):
        assert any(heading in line.split() or heading in line for line in table), heading
    parts = [line for line in table if line.startswith("sieve") and " 128k " in line]
    assert len(parts) == {40: 4, 60: 2, 80: 1}[width]
    assert all("0.100" in line for line in parts) and " ".join(parts).count("75.0") == 1
    numbers = " ".join(parts).split()
    assert {"75.0", "0.123", "1.00", "10.0", "1.10", "55", "100"} <= set(numbers)
