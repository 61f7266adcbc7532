"""What a stream writes for letters that its encoding lacks, as where LC_ALL=C or a pipe of Windows takes ASCII alone."""

from __future__ import annotations

import codecs
import io
from typing import TextIO

ALIKE = str.maketrans(
    {"Δ": "d", "–": "-", "−": "-", "—": "-", "…": "~", "×": "x", "÷": "/", "·": "*", "✓": "+", "≥": ">", "≤": "<", "±": "~"}
)
"""Signs of tables, and one that looks or reads like each: columns keep their width."""
HANDLER = "harness_letters"
"""The name of the error handler of codecs."""


def take_all_letters(stream: TextIO) -> None:
    """Have a stream write a sign that looks alike, or a question mark, for a letter that it can't encode; UTF-8 can all."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors=HANDLER)


def _alike(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return what stands for the letters that could not be encoded, and where to go on."""
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end].translate(ALIKE)
    return "".join(letter if letter.isascii() else "?" for letter in letters), error.end


codecs.register_error(HANDLER, _alike)
