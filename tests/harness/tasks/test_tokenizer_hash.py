"""The hash of a tokenizer: of its content, and taken once, since every task of every arm asks for it."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from harness.models.source import BUNDLED
from harness.tasks.tokenizer_hash import tokenizer_hash


def test_it_is_taken_once_and_anew_when_the_tokenizer_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (AutoTokenizer.from_pretrained(BUNDLED) for _ in range(2))
    written: list[object] = []
    definition = type(one).backend_tokenizer.fget
    monkeypatch.setattr(type(one), "backend_tokenizer", property(lambda self: written.append(self) or definition(self)))
    first = tokenizer_hash(one)
    assert tokenizer_hash(one) == first and written == [one]
    assert tokenizer_hash(other) == first and written == [one, other], "of each object, by its content"
    other.add_tokens(["<more>"])
    assert tokenizer_hash(other) != first and tokenizer_hash(one) == first


def test_how_the_last_call_cut_and_padded_is_not_in_it() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(max_length=7)
    backend.enable_padding(length=9)
    states = backend.truncation, backend.padding
    assert tokenizer_hash(tokenizer) == tokenizer_hash(AutoTokenizer.from_pretrained(BUNDLED))
    assert (backend.truncation, backend.padding) == states
