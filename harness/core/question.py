"""When the question of a prompt is read: the values of the setting `question`."""

from __future__ import annotations

QUESTION_SEEN = "seen"
"""The prompt is prefilled whole, its question with it."""
QUESTION_LATER = "after"
"""The context is prefilled before its question is known; the question then reads it with full attention."""
QUESTION_REREAD = "reread"
"""The prompt is prefilled whole, then the question again with full attention. It differs from QUESTION_LATER in nothing but what
the selection may look at."""
QUESTION_TITLES = {QUESTION_LATER: "question after the context", QUESTION_REREAD: "question read again"}
"""What titles say where the question was not prefilled with its context, or not for good."""
