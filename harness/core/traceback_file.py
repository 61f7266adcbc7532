"""The traceback of a fault of this program, kept for whoever is to mend it: it may come after hours of work."""

from __future__ import annotations

from pathlib import Path

from harness.core.errors import UserError
from harness.core.files import write_atomically

FILE = Path(".cache/traceback.txt")
"""Where it goes, below the working folder."""


def keep(text: str) -> str:
    """Write a traceback into FILE. Returns how a line ends that says so; where it can't be written, how to see it."""
    try:
        return f"; its traceback is in {write_atomically(FILE, lambda file: file.write(text.encode(errors='replace')))}"
    except UserError:
        return "; debug=true shows its traceback"
