"""The files of a study, as tests read them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any


def lines(study: Path, kind: str) -> list[dict[str, Any]]:
    """Return the records of a kind."""
    return [json.loads(line) for line in (study / "records" / f"{kind}.jsonl").read_text().splitlines()]


def board(study: Path) -> list[dict[str, str]]:
    """Return the rows of the leaderboard."""
    with open(study / "leaderboard.csv", newline="") as file:
        return list(csv.DictReader(file))
