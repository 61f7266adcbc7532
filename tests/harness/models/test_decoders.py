"""Decoder types of transformers beside their own eager attention: a dozen always, all of them under the mark `slow`."""

from __future__ import annotations

from collections import Counter

import pytest
import transformers

from harness.core.errors import UserError
from harness.models.loading import wrap_model
from tests.harness.models import decoders

TABLE = decoders.read_table()
SAME_VERSION = transformers.__version__.startswith(decoders.TRANSFORMERS + ".")

EQUAL = {
    "qwen3": "full attention",
    "phimoe": "a window that only the mask knows",
    "gemma4_text": "heads of another size in some layers, two kinds of RoPE",
    "deepseek_v3": "latent attention (MLA)",
    "opt": "learnt positions, no RoPE",
}
REFUSED = {
    "gpt_oss": "attention sinks",
    "gemma2": "soft-capped scores",
    "llama4_text": "attention in chunks",
    "deepseek_v32": "an indexer",
    "bart": "positions that it counts by itself",
    "gptj": "attention of its own",
    "doge": "a mask that it computes with",
}
"""A type of each family, and what is of interest in it."""


@pytest.mark.parametrize("kind", EQUAL)
def test_a_type_of_each_family(kind: str) -> None:
    if kind not in decoders.KINDS:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    assert decoders.try_kind(kind, most_parameters=float("inf")) == TABLE[kind] == decoders.Outcome(kind, "equal")


@pytest.mark.parametrize("kind", REFUSED)
def test_a_type_of_each_family_that_is_refused(kind: str) -> None:
    if kind not in decoders.KINDS:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    with pytest.raises(UserError) as refusal:
        wrap_model(decoders.build(kind), None, name=kind)
    assert TABLE[kind].state == "refused" and "\n" not in str(refusal.value)
    if SAME_VERSION:
        assert str(refusal.value) == TABLE[kind].why


@pytest.mark.slow
@pytest.mark.parametrize("kind", decoders.KINDS)
def test_every_type_is_as_the_table_says(kind: str) -> None:
    outcome = decoders.try_kind(kind)
    assert outcome.state in decoders.STATES, outcome
    if SAME_VERSION:
        assert outcome == TABLE[kind]


def test_the_table_has_every_type_and_nothing_that_must_not_be() -> None:
    if SAME_VERSION:
        assert tuple(TABLE) == decoders.KINDS
    assert set(Counter(outcome.state for outcome in TABLE.values())) <= set(decoders.STATES)
    assert all(bool(outcome.why) == (outcome.state != "equal") for outcome in TABLE.values())


def test_the_document_is_of_the_table() -> None:
    assert decoders.DOCUMENT.read_text(encoding="utf-8") == decoders.document(list(TABLE.values()))
