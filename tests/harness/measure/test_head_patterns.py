"""The kinds of pattern in maps, the heads that show them, and the file that holds them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.core.errors import UserError
from harness.measure.head_patterns import KINDS, Map, as_map, best_heads, read_patterns

N = 64


def causal(weights: Map) -> Map:
    """A map of these weights, causal, rows summing to 1."""
    values = np.tril(weights) + 1e-6 * np.tri(len(weights))
    return values / values.sum(1, keepdims=True)


def made_up() -> dict[str, Map]:
    """A map of each kind, and a flat one."""
    row, column = np.indices((N, N))
    distance, random = row - column, np.random.default_rng(0)
    lines = {20: 3.0, 21: 3.0, 40: 3.0}
    return {
        "A-shape": causal(8.0 * (column == 0) + 8.0 * (distance <= 1) + 0.1),
        "vertical": causal(0.1 + 5.0 * np.isin(column, (9, 17, 30)) + 1.0 * (column == 0)),
        "slash": causal(0.1 + sum(weight * (distance == offset) for offset, weight in lines.items())),
        "diagonal blocks": causal(0.05 + 3.0 * (row // 8 == column // 8)),
        "scattered": causal(0.05 + 20.0 * (random.random((N, N)) > 0.95)),
        "flat": causal(np.ones((N, N))),
    }


def test_each_kind_finds_its_own_map() -> None:
    maps = {(0, head): values for head, values in enumerate(made_up().values())}
    names = list(made_up())
    best = best_heads(maps)
    assert [pattern.kind for pattern in best] == list(KINDS)
    assert {pattern.kind: names[pattern.head] for pattern in best} == {kind: kind for kind in KINDS}
    assert all(0 < pattern.score <= 1 and pattern.deviations > 0 for pattern in best)
    assert np.abs(as_map(best[0]) - maps[0, 0]).max() < 1e-3


def test_a_flat_map_has_hardly_any_of_a_pattern() -> None:
    flat = made_up()["flat"]
    assert all(measure(flat) < 0.13 for measure in KINDS.values())


def test_too_few_heads_or_blocks_are_said() -> None:
    values = causal(np.ones((N, N)))
    with pytest.raises(ValueError, match="2 maps of 64 rows: 5 maps of 16 rows are needed"):
        best_heads({(0, head): values for head in range(2)})
    with pytest.raises(ValueError, match="5 maps of 8 rows"):
        best_heads({(0, head): causal(np.ones((8, 8))) for head in range(5)})


def test_the_job_writes_a_file_that_is_read_back(toy: list[str], command: Callable[..., int]) -> None:
    assert command(*toy, "job=maps", "job.patterns=true", "block_size=16", "sparsity=0.5") == 0
    (path,) = Path("results/toy/maps").iterdir()
    record = read_patterns(path)
    assert record.model == "toy" and record.maps == 8 and record.block == 16 and record.method == "block_topk"
    heads = [(pattern.layer, pattern.head) for pattern in record.patterns]
    assert len(set(heads)) == len(KINDS) and all(layer < 2 and head < 4 for layer, head in heads)
    for pattern in record.patterns:
        assert as_map(pattern).sum(1) == pytest.approx(1.0, abs=0.02)
    content = json.loads(path.read_text())
    damaged = [content["patterns"][0] | part for part in ({"score": None}, {"layer": "1"}, {"deviations": math.inf})]
    damages = ({"schema": 2}, {"patterns": [{"kind": "slash"}]}, {"model": None, "extra": 1}, {"length": "4k"}, {"maps": True})
    for damage in (*damages, *({"patterns": [pattern]} for pattern in damaged)):
        path.write_text(json.dumps(content | damage))
        with pytest.raises(UserError, match="no record of head patterns"):
            read_patterns(path)
    content["patterns"][0]["rows"][3][0] = float("nan")
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="no record of head patterns"):
        read_patterns(path)


def test_patterns_look_at_all_heads(toy: list[str], command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*toy, "job=maps", "job.patterns=true", "job.heads=[0]") == 2
    assert "job.heads=[0]: patterns=true looks at all of them: leave it out" in capsys.readouterr().err
    assert command(*toy, "job=maps", "job.patterns=maybe") == 2
    assert "job.patterns=maybe" in capsys.readouterr().err
