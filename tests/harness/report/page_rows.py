"""Made-up rows of the page: five thousand, of more methods, models and tasks than any study has."""

from __future__ import annotations

import random
from typing import Any

from harness.report.joined_columns import COLUMNS

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> & <b>bold</b>"
"""A text that would be markup, or code, in a page that does not escape it."""
METHODS = ("full", "sieve", "comb", "net", "grid", "mesh", "riddle", "filter", "funnel", "strainer", "gauze", "limit", HOSTILE)
TASKS = tuple(f"task_{number}" for number in range(12))
DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)


def made_up_rows(count: int) -> list[dict[str, Any]]:
    """Return so many rows: averages, each followed by its single tasks, of two models at four lengths. The method `full` is
    dense, `limit` a bound, and every seventh sparse average is off its density."""
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        for model in ("large", "small"):
            for length in (4096, 8192, 16384, 32768):
                for method in METHODS:
                    for density in (None,) if method == "full" else DENSITIES:
                        rows += _arm(draw, model, length, method, density, f"g{len(rows)}")
    return rows[:count]


def _arm(draw: random.Random, model: str, length: int, method: str, density: float | None, group: str) -> list[dict[str, Any]]:
    """Return the average of an arm and the rows of its tasks."""
    base: dict[str, Any] = dict.fromkeys(COLUMNS)
    off = density is not None and draw.random() < 1 / 7
    base |= {"model": model, "method": method, "line": method, "look": method, "length": length, "group": group}
    base |= {"is_bound": method == "limit", "is_dense": density is None, "native": False, "decode": "full", "question": "seen"}
    base |= {"benchmark": "made_up", "device": "cpu (x)", "dtype": "float32", "seed": 0, "status": "ok", "date": "2026-01-01"}
    base |= {"study": "one", "block_size": None if density is None else 64, "samples": 50, "prompt_set": f"p{length}"}
    base |= {"requested_density": density, "density": (density or 1.0) * (1.3 if off else 1), "dense_ms": 9.0}
    base |= {"match": None if density is None else "off_density" if off else "matched", "reason": HOSTILE, "version": 1}
    base |= {"total_ms": 9 * (density or 1.0) * draw.uniform(0.9, 1.3), "ttft_ms": 100 * draw.uniform(0.5, 1.0)}
    base["total_low"], base["total_high"] = 0.98 * base["total_ms"], 1.02 * base["total_ms"]
    rows = []
    for task in ("avg", *TASKS):
        accuracy = draw.uniform(0.3, 0.9)
        low, high = accuracy - 0.05, accuracy + 0.05
        rows.append(
            base
            | {"kind": "average" if task == "avg" else "cell", "task": task, "accuracy": accuracy, "dense_accuracy": 0.91}
            | {"task_set": "+".join(TASKS) if task == "avg" else None, "accuracy_low": low, "accuracy_high": high}
            | {"difference": accuracy - 0.91, "difference_low": low - 0.91, "difference_high": high - 0.91}
            | {"rankable": not base["is_bound"] and not off}
            | {"settings": f"method={method} sparsity={density} length={length}" if task == "avg" else None}
        )
    return rows
