"""How long RULER's prompts are (`task.sizing=`): as long as fits, or as NVIDIA's code makes them."""

from __future__ import annotations

from typing import Any

from harness.core.errors import UserError, did_you_mean

FULL = "full"
"""The longest that fits."""
RELEASE = "release"
"""A sample that is too long loses a whole step of its haystack, up to half of it at 4k
(`harness.tasks.ruler.release_sizing`)."""
SIZINGS = (FULL, RELEASE)


def check_sizing(value: Any) -> str:
    """Return the setting task.sizing. Raises UserError for any other value."""
    if value not in SIZINGS:
        hint = did_you_mean(str(value), SIZINGS)
        raise UserError(
            f"task.sizing={'null' if value is None else value} is not known{hint}; choose one of: {', '.join(SIZINGS)}"
        )
    return str(value)
