"""Prefilling a prompt in chunks, as servers do: queries attend to the cache of all chunks before theirs, and to their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

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


@contextmanager
def last_chunk(loaded: LoadedModel, ids: Tensor, cache: Cache, chunks: Chunks | None) -> Iterator[Tensor]:
    """Run all chunks of a prompt but the last, ids [1,N], into the cache, and hand over the last one [1,n], which must run
    while it lasts; the whole prompt where there are no chunks, or one would do.

    The caller sees to RoPE whose frequencies depend on the length (`frequencies_of`).
    """
    tokens = ids.shape[1]
    if chunks is None or tokens <= chunks.tokens:
        yield ids
        return
    *earlier, last = ids.split(chunks.tokens, dim=1)
    decoder = loaded.model.get_decoder()
    with chunks.of_prompt(tokens):
        for chunk in earlier:  # no logits of these
            decoder(input_ids=chunk, past_key_values=cache, use_cache=True)
        yield last


def prefill(loaded: LoadedModel, ids: Tensor, chunks: Chunks | None, *, use_cache: bool = False) -> None:
    """Prefill one prompt, ids [1,N], with the logits of its last token, which are dropped. Without chunks, use_cache says
    whether keys and values are kept until the end."""
    tokens = ids.shape[1]
    if chunks is None or tokens <= chunks.tokens:
        loaded.model(input_ids=ids, use_cache=use_cache, logits_to_keep=1)
        return
    prefill_row(loaded, ids, BatchCache(loaded.layers, rows=1, prompt=tokens, columns=tokens), chunks)


def prefill_row(loaded: LoadedModel, ids: Tensor, cache: BatchCache, chunks: Chunks | None) -> None:
    """Prefill one prompt, ids [1,N], into the first row of a cache, with the logits of its last token, which are dropped."""
    tokens = ids.shape[1]
    cache.prefill(0, tokens)
    with frequencies_of(loaded.model, tokens), last_chunk(loaded, ids, cache, chunks) as last:
        loaded.model(input_ids=last, past_key_values=cache, use_cache=True, logits_to_keep=1)
