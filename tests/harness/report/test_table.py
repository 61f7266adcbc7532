"""The table in the terminal: models apart, tasks of other data apart, and as much as fits."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from harness.report.terminal import accuracy_table
from harness.study.schema import AVERAGE, COLUMNS


def row(model: str, length: int, task: str, accuracy: float, group: str, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(COLUMNS)
    found |= {
        "model": model,
        "device": "a card",
        "method": "dense",
        "knob": "",
        "decode": "full",
        "length": length,
        "task": task,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.1,
        "accuracy_high": accuracy + 0.1,
        "status": "ok",
        "reason": "",
        "seed": 0,
        "haystack": "",
        "samples": 10,
        "_arm": group,
        "_group": group,
    }
    return found | more


def study(lengths: range | list[int], model: str = "one") -> list[dict[str, Any]]:
    rows = []
    for length in lengths:
        group = f"{model}{length}"
        rows += [row(model, length, "vt", 0.75, group), row(model, length, AVERAGE, 0.75, group, tasks=1)]
    return rows


def shown(rows: list[dict[str, Any]], width: int = 80) -> str:
    text = io.StringIO()
    accuracy_table.show(Console(file=text, width=width), rows, set())
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


def test_the_same_task_of_other_data_stands_apart() -> None:
    """A subset and the whole of a benchmark, say: one arm, two groups."""
    rows = [
        row("one", 1024, "vt", 0.25, "whole", _arm="arm"),
        row("one", 1024, AVERAGE, 0.25, "whole", _arm="arm", tasks=1),
        row("one", 1024, "vt", 0.5, "part", _arm="arm"),
        row("one", 1024, "cwe", 1.0, "part", _arm="arm"),
        row("one", 1024, AVERAGE, 0.75, "part", _arm="arm", tasks=2),
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
