"""From a prompt's text to its token ids: one BOS at its start, and the ids at which an answer ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of `text`, with BOS once where the tokenizer sets one."""
    ids = list(tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"])
    return _without_second_bos(ids, tokenizer.bos_token_id)


def encode_all(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return `encode` of many texts; fast tokenizers work on them in parallel."""
    rows = tokenizer(list(texts), add_special_tokens=True)["input_ids"] if texts else []
    return [_without_second_bos(list(ids), tokenizer.bos_token_id) for ids in rows]


def _without_second_bos(ids: list[int], bos: int | None) -> list[int]:
    """Drop the second of two BOS at the start: the text, a chat template's, brought one of its own."""
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def sets_bos(tokenizer: Any) -> bool:
    """Tell whether the tokenizer puts a BOS token in front of every text."""
    return tokenizer.bos_token_id is not None and encode(tokenizer, "a")[0] == tokenizer.bos_token_id


def stop_ids(tokenizer: Any, model: Any = None) -> set[int]:
    """Return the ids that end an answer: the tokenizer's EOS and those of the model's generation config (end of turn, …)."""
    eos = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return {tokenizer.eos_token_id, *(eos if isinstance(eos, list | tuple) else [eos])} - {None}


def task_stop_ids(tokenizer: Any, stop: str | None) -> frozenset[int]:
    """Return the token id that ends an answer by its task's rule (`Task.stop`), beside the model's own: mostly none."""
    return frozenset() if stop is None else frozenset(tokenizer(stop, add_special_tokens=False)["input_ids"][-1:])
