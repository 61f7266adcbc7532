"""RULER's scoring (NVIDIA/RULER, scripts/eval): what share of the references the prediction contains."""

from __future__ import annotations

import re
from collections.abc import Sequence

UNPRINTABLE = re.compile(r"[\x00-\x1f]")


def cleaned(prediction: str) -> str:
    """The prediction without surrounding space, control characters turned into line ends, as NVIDIA's evaluation does."""
    return UNPRINTABLE.sub("\n", prediction.strip()).strip()


def string_match_all(prediction: str, answers: Sequence[str]) -> float:
    """Share of `answers` that `prediction` contains, case ignored, in [0, 1]."""
    text = cleaned(prediction).lower()
    return sum(answer.lower() in text for answer in answers) / len(answers)
