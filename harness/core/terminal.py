"""What leaves the program for a terminal: the one console and the one way in which an error is said.

Names are data: rich's markup ([/x]), its emoji (:fire:) and control characters (ESC) in them are shown, not obeyed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from harness.core.printable import cut, printable

LAYOUT = "\n\t"
"""Control characters that rich needs between what it shows."""
LONGEST_LINE = 8_000
"""Characters of an error's line: a name of ten thousand is no help, and all choices of a setting are fewer."""


class Terminal(Console):
    """A console that shows every text as it is: no markup, no emoji codes, no control characters. A text that is printed is
    one line, whatever is in it; what has several is a table or a rich Text."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(markup=False, emoji=False, stderr=stderr)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does, texts as one line each."""
        super().print(*(printable(text) if isinstance(text, str) else text for text in objects), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield what is to be shown, without control characters but rich's own."""
        for segment in super().render(renderable, options):
            if segment.control is None and not segment.text.isprintable():
                yield Segment(printable(segment.text, keep=LAYOUT), segment.style)
            else:
                yield segment


def error_line(error: BaseException | str) -> str:
    """Return the one line that says an error, whatever names are in it."""
    return f"error: {cut(printable(str(error)), LONGEST_LINE)}"


def print_error(error: BaseException | str) -> None:
    """Say an error in one line on stderr."""
    print(error_line(error), file=sys.stderr)
