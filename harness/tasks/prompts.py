"""What may go wrong with a prompt on its way to the model: it is cut, or put into a chat template twice or not at all."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

EDGE = 32
"""Tokens at either end of a prompt that must be those of its text."""


def truncated(prompt: str, ids: Sequence[int], tokenizer: Any) -> str | None:
    """None if the tokens begin and end as the text does, else what is wrong. Spaces don't count: some tokenizers move them.
    Where a tokenizer doesn't know what stands there, its tokens can't be compared."""
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in (*ids[:EDGE], *ids[-EDGE:]):
        return None
    text, special, first = _bare(prompt), set(tokenizer.all_special_ids), 0
    while first < len(ids) - 1 and ids[first] in special:
        first += 1
    before = _bare(tokenizer.decode(list(ids[:first])))  # BOS, which the text lacks, or a template's, which it has
    head = _bare(tokenizer.decode(list(ids[first : first + EDGE])))
    if not any(text.startswith(head, start) for start in range(len(before) + 1)):
        return f"the prompt's tokens begin with {head[:20]!r}, its text with {text[:20]!r}: the start was cut"
    tail = _bare(tokenizer.decode(list(ids[max(first, len(ids) - EDGE) :])))
    if not text.endswith(tail):
        return f"the prompt's tokens end in {tail[-20:]!r}, its text in {text[-20:]!r}: it was cut, or something added"
    return None


def _bare(text: str) -> str:
    """Without white space, and without what is left of a character that was cut between its bytes."""
    return re.sub(r"\s+", "", text).strip("\ufffd")


def template_twice(prompt: str, tokenizer: Any) -> str | None:
    """None if the model's chat template was applied at most once."""
    turn = answer_turn(tokenizer)
    count = prompt.count(turn) if turn else 0
    return f"the chat template was applied {count} times; once is right" if count > 1 else None


def bos_allowed(prompt: str, tokenizer: Any) -> int:
    """How many BOS tokens a prompt may have: one, or in a chat template as many as the template writes, where a token
    that begins every turn is called BOS (SmolLM2's <|im_start|>)."""
    turn, bos = answer_turn(tokenizer), tokenizer.bos_token
    if not turn or bos is None or turn not in prompt:
        return 1
    return _template_bos(tokenizer, str(tokenizer.chat_template), str(bos))


@lru_cache(maxsize=8)
def _template_bos(tokenizer: Any, _template: str, bos: str) -> int:
    text = tokenizer.apply_chat_template([{"role": "user", "content": "0"}], tokenize=False, add_generation_prompt=True)
    return max(1, str(text).count(bos))


def answer_turn(tokenizer: Any) -> str:
    """What the tokenizer's chat template puts between the user's message and the answer; "" without a template."""
    template = getattr(tokenizer, "chat_template", None)
    return _answer_turn(tokenizer, str(template)) if template else ""


@lru_cache(maxsize=8)
def _answer_turn(tokenizer: Any, _template: str) -> str:
    mark = "0123456789"
    text = tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True)
    return str(text).rpartition(mark)[2].strip()


def chat_problem(tokenizer: Any, stop_ids: Collection[int], chat: bool) -> str | None:
    """None, or why it is wrong to run the model without its chat template: a model whose answers stop at the token that ends
    the user's turn in its template was trained on it. Base models that ship a template stop at another."""
    turn = "" if chat else answer_turn(tokenizer)
    if not turn:
        return None
    ends = next((i for i in tokenizer(turn, add_special_tokens=False)["input_ids"]), None)
    if ends not in stop_ids or ends not in tokenizer.all_special_ids:
        return None
    name = tokenizer.convert_ids_to_tokens(ends)
    return f"a chat model without its chat template (its answers end with {name}): model.chat_template=true, or checks=false"
