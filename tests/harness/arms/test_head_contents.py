"""Files of searches that are not what a search writes: refused by file and fault; written anew, they are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import methods
from harness.arms.head_files import load_head_file
from harness.arms.weights import FileIdentity
from harness.core.errors import UserError
from harness.study.provenance import file_hash
from tests.harness.tiny import shared

PATTERN = ["a_shape", 64, 128]
GOOD: dict[str, dict[str, Any]] = {
    "duo_attention": {"heads": [[0.5, 0.25], [1, 0]]},
    "minference": {"patterns": [[PATTERN] * 4] * 2},
    "moa": {"plans": {"0.5": {"alphas": [[0.0] * 4] * 2, "betas": [[0.5] * 4] * 2}}},
    "kascade": {"layers": 2, "kv_heads": 2, "choices": {"1": {"anchors": [0], "heads": {"1": [0, 1]}}}},
    "xattention": {"layers": 2, "heads": 4, "steps": 2, "path": [0, 7, 7]},
}
"""Results for the tiny llama: 2 layers, 4 query heads, 2 KV heads."""


def load(folder: Path, name: str, content: object) -> FileIdentity | None:
    """Give a method a file of this content: text, or what JSON says."""
    knobs = {"thresholds": "searched"} if name == "xattention" else {}
    method = methods.build(name, sparsity=0.5, block_size=16, **knobs)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / str(method.searched)).write_text(text)
    return load_head_file(method, {"name": "tiny", "path": "tiny", "gates": str(folder)}, shared("llama"))


def plan(anchors: list[Any], heads: dict[str, Any]) -> dict[str, Any]:
    return GOOD["kascade"] | {"choices": {"1": {"anchors": anchors, "heads": heads}}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("duo_attention", '{"heads": [[0.5, NaN], [1, 0]]}', "it holds NaN: numbers must be finite"),
        ("duo_attention", '{"heads": [[0.5, 1e999], [1, 0]]}', "its numbers must be finite"),
        ("duo_attention", {"heads": [[0.5, 10**400], [1, 0]]}, 'it has no "heads": a list of numbers'),
        ("duo_attention", {"heads": [[0.5, "0.2"], [1, 0]]}, 'it has no "heads": a list of numbers'),
        ("duo_attention", {"heads": [[0.5, True], [1, 0]]}, 'it has no "heads": a list of numbers'),
        ("duo_attention", '{"heads": [[1, 1], [1, 0]], "heads": [[0, 0], [1, 0]]}', "it has heads twice"),
        ("minference", {"patterns": [[PATTERN] * 3, PATTERN] * 2}, "patterns must be lists of"),
        ("minference", {"patterns": [[["a_shape", 64, 1.5]] * 4] * 2}, "in whole numbers"),
        ("minference", {"patterns": [[["a_shape", -1, 64]] * 4] * 2}, "with budgets -1 and 64: they must be positive"),
        ("minference", {"patterns": [[[["a_shape"], 1, 64]] * 4] * 2}, "is not known; it must be one of"),
        ("minference", '{"patterns": [[["a_shape", 1, Infinity]]]}', "it holds Infinity"),
        ("kascade", plan([0], {"1": [0, 2]}), "layer 1 takes the blocks of heads [0, 2]: not 2 of 0 to 1"),
        ("kascade", plan([0], {"1": [-1, 0]}), "layer 1 takes the blocks of heads [-1, 0]"),
        ("kascade", plan([0], {"1": [0.5, 0]}), "0.5 is no whole number"),
        ("kascade", plan([0], {"1": [0, 1], "01": [1, 0]}), "a layer comes twice"),
        ("kascade", plan([0], {"2": [0, 1]}), "layer 2 takes the blocks"),
        ("kascade", plan([0], {"0": [0, 1]}), "layer 0 takes blocks, but is an anchor"),
        ("kascade", plan([1], {"0": [0, 1]}), "layer 0 takes blocks, but is an anchor or before the first"),
        ("kascade", plan([0, 2], {}), "must be layers of the model, 0 to 1"),
        ("kascade", plan([-1, 0], {}), "must be layers of the model, 0 to 1"),
        ("kascade", plan([0, 0], {}), "must ascend"),
        ("xattention", GOOD["xattention"] | {"path": [0, 8]}, "not a path of this model"),
        ("xattention", GOOD["xattention"] | {"path": [0, -1]}, "not a path of this model"),
        ("xattention", GOOD["xattention"] | {"path": [0, 1.5]}, "1.5 is no whole number"),
        ("xattention", GOOD["xattention"] | {"steps": 4}, "4 steps along a path of 3"),
        ("xattention", '{"layers": 2, "heads": 4, "steps": 1, "path": [1e999]}', "inf is no whole number"),
        ("moa", {"alphas": [[0] * 4] * 2, "betas": [[0, 0, 0, 1.5]] * 2}, "its betas must be shares of the prompt"),
        ("moa", '{"alphas": [[1e999, 0, 0, 0], []], "betas": []}', 'it has no "alphas": a list of finite numbers'),
        ("moa", {"plans": {"0.5": []}}, 'its "plans" must be rules by budget'),
        ("kascade", "", "no JSON ("),
        ("minference", "{}", "it has no patterns"),
    ],
)
def test_what_no_search_writes(tmp_path: Path, name: str, content: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, name, content)
    line = str(caught.value)
    assert message in line and str(tmp_path / str(methods.get(name).searched)) in line and "\n" not in line


@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_file_that_is_written_anew_is_the_same(tmp_path: Path, name: str) -> None:
    first = load(tmp_path, name, GOOD[name] | {"made": {"date": "today"}})
    assert first is not None and first.former == file_hash(tmp_path / str(methods.get(name).searched))
    again = load(tmp_path, name, json.dumps({"made": {"date": "later"}} | dict(reversed(GOOD[name].items())), indent=3))
    assert again is not None and again.content == first.content and again.former != first.former
    other = load(tmp_path, name, GOOD[name] | {"prompts": 3})
    assert other is not None and other.content != first.content
