"""The formats that a study can be exported in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.report.exports import eval_results, every_eval_ever, lm_eval_results
from harness.report.exports.evaluations import Evaluation, Publication

Writer = Callable[[Path, Evaluation, Publication], list[Path]]
"""Writes the files of one evaluation into a folder and returns their paths."""


@dataclass(frozen=True)
class Format:
    """A format: what writes it, and which of OPTIONS it has a place for."""

    write: Writer
    reads: tuple[str, ...]


FORMATS: dict[str, Format] = {
    "every_eval_ever": Format(every_eval_ever.write, ("hub_model", "developer", "organization", "url")),
    "eval_results": Format(eval_results.write, ("hub_model", "dataset", "url")),
    "lm_eval": Format(lm_eval_results.write, ("hub_model",)),
}
"""The formats by the name that `format=` gives them."""
OPTIONS = ("hub_model", "developer", "organization", "dataset", "url")
"""What a user may say of results that records don't (`harness.report.exports.evaluations.Publication`)."""
