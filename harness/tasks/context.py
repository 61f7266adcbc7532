"""Where a prompt's context ends and its question begins: in its text, and in its tokens.

A prompt is context, question, what the chat template puts after them, and the beginning of the answer. What comes before the
question can be prefilled before anybody knows it (question=after): the context, what the template says in front of it, and
worked examples. The question begins with the first word that the template has after its context; so an instruction that the
template repeats there belongs to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.core.errors import UserError

CONTEXT, QUERY = "{context}", "{"
"""The place of the context in a template, and how any other place begins."""


def question_opening(template: str) -> str:
    """Return the words that a template's questions begin with: those between its context and the next place to fill."""
    return template.partition(CONTEXT)[2].partition(QUERY)[0].strip()


def last_place(prompt: str, texts: Sequence[str]) -> int | None:
    """Return how many characters of a prompt stand before the last of these texts; None where none of them is in it."""
    place = max((prompt.rfind(text) for text in texts if text), default=-1)
    return place if place >= 0 else None


def context_tokens(tokenizer: Any, prompt: str, ids: Sequence[int], context: int) -> int:
    """Return how many of a prompt's token ids `ids` are of its context, the first `context` characters.

    Those are all before the first token that has any character of the question. The tokens stay what they are, whichever way
    the model is given them. Raises UserError where the tokenizer doesn't say which characters a token is of, or where one part
    has no token.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{type(tokenizer).__name__} does not say which characters a token is of, so a question can't be told from its "
            "context: use a fast tokenizer, or question=seen"
        )
    encoding = tokenizer(prompt, add_special_tokens=True, return_offsets_mapping=True, verbose=False)
    offsets = encoding["offset_mapping"][len(encoding["input_ids"]) - len(ids) :]  # less a second BOS (tokens.encode)
    if list(encoding["input_ids"][-len(ids) :]) != list(ids):
        raise UserError("the prompt's tokens are not those of its text, so the question's can't be told from the context's")
    count = next((i for i, (_, end) in enumerate(offsets) if end > context), len(ids))
    if not 0 < count < len(ids):
        raise UserError(f"{count} of the prompt's {len(ids)} tokens are its context's; question and context need at least one")
    return count
