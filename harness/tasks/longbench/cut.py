"""Prompts cut in the middle, as LongBench's pred.py does it: beginning and end hold the instructions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.tasks.tokens import encode


def cut_middle(tokenizer: Any, text: str, room: int, wrap: Callable[[str], str]) -> tuple[str, int, int] | None:
    """Return (prompt, its tokens, tokens cut) with at most `room` tokens; None where not even the ends fit.

    `wrap` turns the text into the prompt: a chat template, or nothing. The tokens of the text are cut to their first and last
    half, and the halves decoded and joined, as the original does; since joining can make other tokens, the halves shrink until
    the prompt fits. The original gives the prompt a length chosen by hand for each model, and wraps it afterwards.
    """
    prompt = wrap(text)
    tokens = len(encode(tokenizer, prompt))
    if tokens <= room:
        return prompt, tokens, 0
    ids = encode(tokenizer, text)
    half = (room - (tokens - len(ids))) // 2
    while half > 0:
        ends = (tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:half], ids[-half:]))
        prompt = wrap("".join(ends))
        tokens = len(encode(tokenizer, prompt))
        if tokens <= room:
            return prompt, tokens, len(ids) - 2 * half
        half -= max(1, (tokens - room) // 2)
    return None
