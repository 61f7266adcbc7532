"""How many last query blocks were kept in full: as the methods keep them, for each prompt, and in every name."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from attention_kernels.block_index import BlockIndex

import methods
from harness.core.method_facts import method_facts
from harness.report.lines import line_names, rows_by_line
from harness.report.rows import Row
from harness.study.full_rows import FullRows, arm_name, full_rows, joined
from methods.parts.row_budgets import budget_with_full_rows, rows_of_last_queries
from tests.harness.report.support import row
from tests.methods.support import layer, ready

WITH_LAST = [name for name in methods.names() if "last" in methods.registry.knobs(name)]
SEARCHED = {"alpha": 2.0, "threshold": 0.5}
"""Values at which a method keeps next to nothing but what it must."""


def identity(method: str, sparsity: float | None = 0.9, length: int = 4096, block: int = 64, **knobs: Any) -> dict[str, Any]:
    """What is read of an arm's identity."""
    return {"method": method, "knobs": knobs, "sparsity": sparsity, "block_size": block, "length": length}


def test_methods_with_full_rows_say_how_theirs_are_counted() -> None:
    assert [name for name in methods.names() if method_facts(name).full_rows] == WITH_LAST and len(WITH_LAST) >= 7


@pytest.mark.parametrize("own_blocks", [False, True])
def test_the_rule_is_that_of_the_methods(own_blocks: bool) -> None:
    method = "xattention" if own_blocks else "random"
    for sparsity, last, tokens in itertools.product(
        (0.5, 0.9, 0.95), (1, 2, 5), (1, 63, 64, 2500, 4000, 4096, 5055, 5057, 8192)
    ):
        full, _ = budget_with_full_rows(1 - sparsity, last, tokens, tokens, 64, 64, own_blocks)
        counted = full_rows(identity(method, sparsity, last=last), [tokens])
        assert counted == FullRows(full, full, full < min(last, -(-tokens // 64))), (sparsity, last, tokens)


@pytest.mark.parametrize("name", WITH_LAST)
def test_it_is_what_each_method_keeps(name: str) -> None:
    for tokens in (400, 637, 1200):
        method = ready(name, block_size=16, sparsity=0.8, last=40 if name == "tri_shape" else 2)
        if (knob := method.calibrates()) is not None:
            method.set_knob(knob, SEARCHED[knob.name] if name != "xattention" else 0.0)
        index = method.select(layer(tokens))
        assert isinstance(index, BlockIndex)
        whole = index.counts[0] == torch.arange(1, -(-tokens // 16) + 1)
        full = int(whole.all(0).flip(0).cumprod(0).sum())
        assert index.full_rows == full, "as a number, not as lists of all blocks"
        counted = full_rows(identity(name, 0.8, tokens, 16, **method.knobs()), [tokens])
        assert counted is not None and (counted.fewest, counted.most) == (full, full), (tokens, full)


def test_queries_are_counted_in_their_blocks() -> None:
    for tokens in (4096, 4000, 3970):
        counted = full_rows(identity("tri_shape", None), [tokens])
        assert counted is not None and counted.most == rows_of_last_queries(100, tokens, 64) and not counted.cut


def test_prompts_of_several_lengths_have_a_range() -> None:
    both = full_rows(identity("seer", last=2), [4992, 8000])
    assert both == FullRows(1, 2, cut=True) and both.text == "1–2" and both.name == "last 1–2"
    assert joined([None, FullRows(0, 0, True), both]) == FullRows(0, 2, True)
    released = full_rows(identity("seer", last=2, as_released=True), [4992, 8000])
    assert released is not None and (released.text, released.cut) == ("2", False), "as released, whatever they cost"
    assert joined([None]) is None and full_rows(identity("seer", last=2), []) is None
    assert full_rows(identity("seer", 0.0), [4096]) is None and full_rows(identity("moba"), [4096]) is None


@pytest.mark.parametrize(
    ("arm", "name"),
    [
        (identity("seer", selection="threshold", last=2, length=8192), "seer"),
        (identity("seer", selection="threshold", last=2), "seer (last 1)"),
        (identity("seer", 0.95, selection="threshold", last=2), "seer (last 0)"),
        (identity("seer", selection="threshold"), "seer (last 0)"),
        (identity("seer", selection="topk", gates="mass"), "seer (topk, last 0, gates mass)"),
        (identity("seer", selection="nz_ratio", nz_ratio=0.1, last=2), "seer (nz_ratio, last 1)"),
        (identity("seer", selection="threshold", last=2, as_released=True), "seer (as released)"),
        (identity("seer", selection="topk", last=2, as_released=True), "seer (as released, topk)"),
        (identity("seer", selection="threshold", as_released=True), "seer (as released, last 0)"),
        (identity("sparge", rule="topk", as_released=True), "sparge (as released)"),
        (identity("sparge", rule="cdf", as_released=True), "sparge (as released, rule cdf)"),
        (identity("block_topk", pool="mean", shared=False), "block_topk"),
        (identity("block_topk", selection="threshold", threshold=0.01, last=2), "block_topk (threshold, last 1)"),
        (identity("block_topk", 0.95, pool="max", last=2), "block_topk (pool max, last 0)"),
        (identity("random", 0.8, seed=0, last=2), "random (last 2)"),
        (identity("flash_prefill", alpha=0.3, last=2), "flash_prefill (last 0)"),
        (identity("tri_shape", last=100), "tri_shape (last 1 block)"),
        (identity("minference", patterns="searched", factor=0.3), "minference"),
        (identity("minference", patterns="fallback", factor=0.3), "minference (patterns fallback)"),
        (identity("of_another_version", last=3), "of_another_version"),
    ],
)
def test_a_name_says_what_is_not_the_default_and_what_did_not_fit(arm: dict[str, Any], name: str) -> None:
    assert arm_name(arm) == name
    named = row(arm["method"], arm["sparsity"], arm["length"], 0.8, knobs=arm["knobs"])
    named = Row(**vars(named) | {"full_rows": full_rows(arm, [arm["length"]])})
    assert line_names([named]) == {id(named): name} and list(rows_by_line([named])) == [name]


def test_a_name_says_the_chunks_of_its_prompts_and_what_decodes() -> None:
    arm = identity("seer", selection="topk", last=0) | {"prefill_chunk": 128}
    assert arm_name(arm) == "seer (chunk 128, topk, last 0)"
    arm |= {"decode": {"method": "quest", "knobs": {"budget": 64}}}
    assert arm_name(arm) == "seer (chunk 128, topk, last 0) + quest"
    arm["decode"]["knobs"]["as_released"] = True
    assert arm_name(arm) == "seer (chunk 128, topk, last 0) + quest (as released)"


def test_a_line_says_the_range_and_its_rows_their_own() -> None:
    knobs = {"selection": "threshold", "threshold": 0.1, "last": 2}
    rows = [
        Row(**vars(row("seer", s, 4096, 0.8, knobs=knobs)) | {"full_rows": full_rows(identity("seer", s, **knobs), [4000])})
        for s in (0.5, 0.9, 0.95)
    ]
    assert list(rows_by_line(rows)) == ["seer (last 0–2)"]
    assert [line_names(rows)[id(one)] for one in rows] == ["seer", "seer (last 1)", "seer (last 0)"]
    older = row("seer", 0.5, 4096, 0.8, knobs={"selection": "topk", "nz_ratio": None, "threshold": None})
    assert set(rows_by_line([*rows, older])) == {"seer (last 0–2)", "seer (topk, last 0)"}
