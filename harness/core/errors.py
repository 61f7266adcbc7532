"""The one error that is shown to a person as one line, without a traceback, and what such lines are made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: says what is wrong and what would be right."""


class NotFiniteError(UserError):
    """What was computed is NaN or infinite: it would be again."""


class WeightsError(UserError):
    """Trained weights, or searched heads, that are there and can't be used: broken, not finite, or of another model."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return " (did you mean CHOICE?)" for the choice that is spelt most like `name`; an empty text where none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that is not blank; the name of its class where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
