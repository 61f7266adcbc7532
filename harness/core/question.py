"""When the question of a prompt is read: the values of the setting `question`."""

from __future__ import annotations

from typing import Any

from harness.core.errors import UserError

QUESTION_SEEN = "seen"
"""The prompt is prefilled whole, its question with it."""
QUESTION_LATER = "after"
"""The context is prefilled before its question is known; the question then reads it with full attention."""
QUESTION_REREAD = "reread"
"""The prompt is prefilled whole, then the question again with full attention. It differs from QUESTION_LATER in nothing but
what the selection may look at."""
QUESTION_TITLES = {QUESTION_LATER: "question after the context", QUESTION_REREAD: "question read again"}
"""What titles say where the question was not prefilled with its context, or not for good."""


def check_question(value: Any) -> str:
    """Return `value` if it is one of the three. Raises UserError, which says what each means, otherwise."""
    if value not in (QUESTION_SEEN, QUESTION_LATER, QUESTION_REREAD):
        raise UserError(
            f"question={value}: must be {QUESTION_SEEN} (the prompt is prefilled whole), {QUESTION_LATER} (its context, then "
            f"the question with full attention) or {QUESTION_REREAD} (the prompt whole, then the question again with full "
            "attention)"
        )
    return str(value)
