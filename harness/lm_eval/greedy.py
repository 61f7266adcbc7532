"""What a task of lm-eval asks of generation (its generation_kwargs), as far as greedy decoding can honour it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from harness.core.errors import UserError

WITHOUT_EFFECT = ("top_k", "top_p", "min_p", "typical_p")
"""Settings of sampling, which greedy decoding never reads."""


@dataclass(frozen=True)
class GreedySettings:
    """Up to `max_new` tokens, cut before the first of the stop words `until`."""

    max_new: int
    until: tuple[str, ...]


def read_generation(generation_kwargs: Mapping[str, Any], most: int, eos: str | None) -> GreedySettings:
    """Return what a task's generation_kwargs ask for; `most` tokens where it names no number, and a stop at `eos` too.

    Raises UserError for anything but greedy decoding.
    """
    given = dict(generation_kwargs)
    kwargs: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), most))
    until = handle_stop_sequences(kwargs.pop("until"), eos=eos)
    max_new = kwargs.pop("max_gen_toks")
    if kwargs.pop("do_sample", False) or kwargs.pop("temperature", 0.0):
        advice = "only greedy decoding is supported; --gen_kwargs do_sample=False,temperature=0"
        raise UserError(f"generation_kwargs {given}: {advice}")
    if kwargs.pop("num_beams", 1) != 1:
        raise UserError(f"generation_kwargs {given}: no beam search; --gen_kwargs num_beams=1")
    unknown = [name for name in kwargs if name not in WITHOUT_EFFECT]
    if unknown:
        raise UserError(f"generation_kwargs {given}: {', '.join(unknown)} can't be honoured")
    return GreedySettings(max_new, tuple(word for word in until if word))
