"""What a chat template is given beside the message: the date that it may print, and whether the model may think first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import Any

from harness.core.errors import UserError

DEFAULT_DATE = "2024-07-26"
"""The day that every prompt is of, unless model.date says another; Llama 3's templates print it where they are told none."""


@dataclass(frozen=True)
class ChatOptions:
    """The settings model.date (YYYY-MM-DD) and model.enable_thinking; None leaves what a template does by itself."""

    date: str = DEFAULT_DATE
    enable_thinking: bool | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """Return the names of those that are not as they are by default."""
        standing = ChatOptions()
        return tuple(name for name in self.__dataclass_fields__ if getattr(self, name) != getattr(standing, name))


def check_date(name: str, value: Any) -> str:
    """Return `value` if it is a day, YYYY-MM-DD. Raises UserError otherwise."""
    text = str(value)
    try:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            raise ValueError
        date.fromisoformat(text)
    except ValueError:
        raise UserError(f"{name}={value}: must be a day, YYYY-MM-DD, for example {DEFAULT_DATE}") from None
    return text
