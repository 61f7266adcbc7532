"""RULER's scoring (NVIDIA/RULER, scripts/eval): which of the references the prediction contains.

lm-eval's string_match_part is another one: the share of the references, where NVIDIA's is 1 as soon as one is contained.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

UNPRINTABLE = re.compile(r"[\x00-\x1f]")


def cleaned(prediction: str) -> str:
    """Return the prediction stripped, control characters turned into line ends, as NVIDIA's evaluation does."""
    return UNPRINTABLE.sub("\n", prediction.strip()).strip()


def string_match_all(prediction: str, answers: Sequence[str]) -> float:
    """Return the share of `answers` that `prediction` contains, case ignored, in [0, 1]."""
    text = cleaned(prediction).lower()
    return sum(answer.lower() in text for answer in answers) / len(answers)


def string_match_part(prediction: str, answers: Sequence[str]) -> float:
    """Return 1.0 if `prediction` contains any of `answers`, case ignored, else 0.0."""
    text = cleaned(prediction).lower()
    return float(any(answer.lower() in text for answer in answers))
