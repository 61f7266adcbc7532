"""What a prompt must satisfy before a model sees it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from harness.tasks.chat_template import bos_allowed, template_twice
from harness.tasks.sample import Sample
from harness.tasks.tokens import encode, sets_bos

EDGE = 32
"""Tokens at either end of a prompt that must be those of its text."""


def check_sample(sample: Sample, tokenizer: Any, ids: Sequence[int] | None = None) -> str | None:
    """Return None for a sound sample, else what is wrong with it.

    A sound prompt has one BOS (none where the tokenizer sets none), leaves room for the answer, is not cut, and is in a chat
    template at most once, or once for each of its turns. Where its task puts them there, every answer (of a question about
    documents: every document that answers it) is in the text before the question. `ids` are the token ids that the model will
    see; None: those of the text.
    """
    ids = encode(tokenizer, sample.prompt) if ids is None else ids
    bos = tokenizer.bos_token_id
    allowed = bos_allowed(sample.prompt, tokenizer, sample.turns)
    if bos is not None and (ids.count(bos) > allowed or list(ids[:2]) == [bos, bos]):
        right = "one" if allowed == 1 else f"{allowed}, as in the chat template"
        return f"{ids.count(bos)} BOS tokens in the prompt; there must be {right}"
    if bos is not None and ids[0] != bos and sets_bos(tokenizer):
        return "no BOS token in front of the prompt, where this tokenizer sets one; there must be one"
    if len(ids) + sample.max_new_tokens > sample.length:
        return f"prompt of {len(ids)} tokens and {sample.max_new_tokens} to generate exceed length {sample.length}"
    problem = truncated(sample.prompt, ids, tokenizer) or template_twice(sample.prompt, tokenizer, sample.turns)
    if problem is not None:
        return problem
    for text in sample.evidence or (sample.answers if sample.verbatim else ()):
        if text not in sample.prompt[: sample.context]:
            return f"{'the document' if sample.evidence else 'answer'} {text[:60]!r} is not in the prompt"
    return None


def truncated(prompt: str, ids: Sequence[int], tokenizer: Any) -> str | None:
    """Return None if the token ids begin and end as the text does, else what is wrong.

    White space doesn't count: some tokenizers move it. Unknown tokens at either end can't be compared, and pass.
    """
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in (*ids[:EDGE], *ids[-EDGE:]):
        return None
    special, first = set(tokenizer.all_special_ids), 0
    while first < len(ids) - 1 and ids[first] in special:
        first += 1
    before = _bare(tokenizer.decode(list(ids[:first])))  # BOS, which the text lacks, or a template's, which it has
    head = _bare(tokenizer.decode(list(ids[first : first + EDGE])))
    text = _bare_start(prompt, len(before) + max(len(head), 20))
    if not any(text.startswith(head, start) for start in range(len(before) + 1)):
        return f"the prompt's tokens begin with {head[:20]!r}, its text with {text[:20]!r}: the start was cut"
    tail = _bare(tokenizer.decode(list(ids[max(first, len(ids) - EDGE) :])))
    text = _bare_end(prompt, max(len(tail), 20))
    if not text.endswith(tail):
        return f"the prompt's tokens end in {tail[-20:]!r}, its text in {text[-20:]!r}: it was cut, or something added"
    return None


def _bare_start(text: str, count: int) -> str:
    """Return how `_bare(text)` begins, its first `count` characters at least, or all of it: the rest of a long text is not
    read."""
    window = 4 * count
    while window < len(text):
        start = re.sub(r"\s+", "", text[:window]).lstrip("\ufffd")
        if len(start.rstrip("\ufffd")) >= count:
            return start
        window *= 4
    return _bare(text)


def _bare_end(text: str, count: int) -> str:
    """Return how `_bare(text)` ends, its last `count` characters at least, or all of it."""
    return _bare_start(text[::-1], count)[::-1]


def _bare(text: str) -> str:
    """Drop white space, and what is left of a character that was cut between its bytes."""
    return re.sub(r"\s+", "", text).strip("\ufffd")
