"""The formats that a study can be exported in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.report.exports import eval_results, every_eval_ever, lm_eval_results
from harness.report.exports.evaluations import Evaluation, Publication

Writer = Callable[[Path, Evaluation, Publication], list[Path]]
"""Writes the files of one evaluation into a folder and returns their paths."""

FORMATS: dict[str, Writer] = {
    "every_eval_ever": every_eval_ever.write,
    "eval_results": eval_results.write,
    "lm_eval": lm_eval_results.write,
}
"""The formats by the name that `format=` gives them."""
