"""The texts that are made of a row's values where it is written: its knobs, and how it decoded."""

from __future__ import annotations

from harness.core.question import QUESTION_TITLES
from harness.report.csv_file import value_text
from harness.report.rows import Decode, Knobs

FULL = "full"
"""How full attention at decode is called."""


def knobs_text(knobs: Knobs) -> str:
    """Return native knobs as the column `knob` has them: "name=value;…"."""
    return ";".join(f"{name}={value_text(value)}" for name, value in knobs.items())


def decode_text(decode: Decode) -> str:
    """Return how tokens after the first were computed, as the column `decode` has it: "full", or "NAME knob=value …" with the
    knobs that have a value; the kernels that ran in brackets."""
    given = (f"{name}={value_text(value)}" for name, value in decode.knobs.items() if value is not None)
    kernels = f" ({'+'.join(decode.kernels)})" if decode.kernels else ""
    return " ".join([decode.method or FULL, *given]) + kernels


def question_title(question: str) -> str:
    """Return ", WHEN" for a question that was not prefilled with its context, as titles end; else nothing."""
    return f", {QUESTION_TITLES[question]}" if question in QUESTION_TITLES else ""
