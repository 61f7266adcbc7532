"""Prefilling a prompt in chunks, as servers do: queries attend to the cache of all chunks before theirs, and to their own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import Cache

from harness.models.batch_cache import BatchCache
from harness.models.loading import LoadedModel
from harness.models.rope_lengths import frequencies_of


@dataclass(frozen=True)
class Chunks:
    """Prompts that are prefilled in chunks of `tokens` tokens; the last one has what is left, and a prompt that is no longer
    than a chunk runs whole. of_prompt(n): whoever runs the attention takes all forward passes while it lasts for the chunks of
    one prompt of n tokens (`Bridge.chunked`).
    """

    tokens: int
    of_prompt: Callable[[int], AbstractContextManager[None]]


def forward_prompt(
    loaded: LoadedModel, ids: Tensor, cache: Cache, chunks: Chunks | None, forward: Callable[[Tensor], Any]
) -> Any:
    """Return `forward` of the last chunk of a prompt, ids [1,N], all others having gone into the cache before it; of the whole
    prompt where there are no chunks, or one would do.

    The caller sees to RoPE whose frequencies depend on the length (`frequencies_of`).
    """
    tokens = ids.shape[1]
    if chunks is None or tokens <= chunks.tokens:
        return forward(ids)
    *earlier, last = ids.split(chunks.tokens, dim=1)
    decoder = loaded.model.get_decoder()
    with chunks.of_prompt(tokens):
        for chunk in earlier:  # no logits of these
            decoder(input_ids=chunk, past_key_values=cache, use_cache=True)
        return forward(last)


def prefill(loaded: LoadedModel, ids: Tensor, chunks: Chunks | None, *, use_cache: bool = False) -> None:
    """Prefill one prompt, ids [1,N], with the logits of its last token, which are dropped. Without chunks, use_cache says
    whether keys and values are kept until the end."""
    tokens = ids.shape[1]
    if chunks is None or tokens <= chunks.tokens:
        loaded.model(input_ids=ids, use_cache=use_cache, logits_to_keep=1)
        return
    cache = BatchCache(loaded.layers, rows=1, prompt=tokens, columns=tokens)
    cache.prefill(0, tokens)
    with frequencies_of(loaded.model, tokens):
        forward_prompt(
            loaded,
            ids,
            cache,
            chunks,
            lambda last: loaded.model(input_ids=last, past_key_values=cache, use_cache=True, logits_to_keep=1),
        )
