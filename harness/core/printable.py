"""Names as text that can be shown: characters that a reader or a terminal would act on, written as their escapes.

A name is data: of a model, a method, a task or a file, it may hold whatever a record holds. This module says how it is shown;
the exits of the program (`harness.core.terminal`, `harness.report.csv_file`, `harness.report.figures.style`) call it.
"""

from __future__ import annotations

import unicodedata

ACTED_ON = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of characters that are no picture: controls (ESC, newline), formats (bidi, zero width), halves of
surrogate pairs, separators of lines and paragraphs."""


def printable(text: str, *, keep: str = "") -> str:
    """Return `text` with each character that is acted on instead of seen as its escape, such as \\x1b; those in `keep` stay."""
    if text.isprintable():
        return text
    return "".join(
        c if c in keep or unicodedata.category(c) not in ACTED_ON else c.encode("unicode_escape").decode() for c in text
    )


def cut(text: str, most: int) -> str:
    """Return `text` in at most `most` characters: of a longer one its beginning and its end, with an ellipsis between."""
    if len(text) <= most:
        return text
    head = (2 * most) // 3
    return f"{text[:head]}…{text[len(text) - (most - head - 1) :]}"
