"""The names of tasks cost nothing to import: the command's help and its errors list them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("torch", "transformers", "datasets", "pandas", "numpy", "scipy")


def test_names_are_light() -> None:
    code = f"import sys; from harness.tasks import names; print([m for m in {HEAVY} if m in sys.modules], len(names.TASKS))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[] 73"
