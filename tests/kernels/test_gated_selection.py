"""The launches from pooled vectors to blocks of short prompts against the steps they replace, and against plain float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import attention_kernels.gated_selection as gated
import pytest
import torch
from attention_kernels.gated_selection import Side, select_gated
from attention_kernels.project import project
from attention_kernels.selection import row_budget, select_from_pooled

from tests.kernels.test_pool import tables

GPU = pytest.mark.gpu
CPU_TRITON = pytest.mark.skipif(torch.cuda.is_available(), reason="interpreter")
DEVICES = [pytest.param("cpu", marks=CPU_TRITON), pytest.param("cuda", marks=GPU)]
Shape = tuple[int, int, int, int, int, int, int, int, int]
SHAPES: list[Shape] = [
    # batch, gate heads, KV heads, q_len, k_len, block, dim, rotary elements, elements pooled of a key
    (1, 4, 2, 400, 400, 16, 32, 32, 96),
    (2, 2, 1, 205, 437, 16, 24, 16, 72),  # a chunk of a prompt, off the blocks; some elements don't rotate
    (1, 3, 3, 300, 300, 32, 16, 0, 48),
    (1, 2, 1, 1, 40, 16, 16, 16, 48),
]
RULES: list[dict[str, Any]] = [{"density": 0.3}, {"threshold": 0.04}, {"mass": 0.6}]


def sides(shape: Shape, device: str, *, q_linear: bool) -> tuple[Side, Side, dict[str, int]]:
    """Random pooled vectors and maps of one case, and its blocks."""
    batch, heads, kv_heads, q_len, k_len, block, dim, rotary, inner = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(device)

    rows, cols = -(-q_len // block), -(-k_len // block)
    cos, sin = (table[::block].to(device) for table in tables(k_len, rotary)) if rotary else (None, None)
    of_rows = [None if table is None else table[cols - rows :] for table in (cos, sin)]
    q_weight = draw(heads, dim, dim) / dim**0.5 if q_linear else None
    queries = Side(draw(batch, heads, rows, dim), q_weight, *of_rows)
    keys = Side(draw(batch, kv_heads, cols, inner), 2 * draw(heads, inner, dim) / inner**0.5, cos, sin)
    return queries, keys, {"q_block": block, "k_block": block, "q_len": q_len, "k_len": k_len}


def given(rule: dict[str, Any], grid: dict[str, int]) -> dict[str, Any]:
    return {"budget": row_budget(rule["density"], **grid)} if "density" in rule else rule


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("number", "full_rows"), [(0, 0), (0, 2), (1, 2), (2, 0), (3, 2)])
def test_short_prompts_choose_what_the_steps_choose(
    number: int, full_rows: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = SHAPES[number]
    queries, keys, grid = sides(shape, device, q_linear=number % 2 == 0)
    wide = [replace(side, pooled=side.pooled.double()) for side in (queries, keys)]
    exact = [
        project(side.pooled, None if side.weight is None else side.weight.double(), cos=side.cos, sin=side.sin) for side in wide
    ]
    monkeypatch.setattr(gated, "project", None)  # the steps are not taken
    for rule in RULES:
        options: dict[str, Any] = {**given(rule, grid), "scale": shape[6] ** -0.5, "full_rows": full_rows, **grid}
        index = select_gated(queries, keys, kernel="triton", **options)
        index.validate()
        expected = select_from_pooled(*exact, kernel="reference", **options)
        same = (index.to_mask() == expected.to_mask()).float().mean()
        assert index.full_rows == expected.full_rows and same > (0.999 if device == "cuda" else 0.9999)
        width = index.indices.shape[-1]
        assert not index.indices[torch.arange(width, device=device) >= index.counts[..., None]][..., None].any() or full_rows


@pytest.mark.parametrize("device", DEVICES)
def test_equal_and_odd_scores_rank_as_everywhere(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    grid = {"q_block": 16, "k_block": 16, "q_len": 120, "k_len": 337}
    q = torch.randint(-2, 3, (1, 4, 8, 16), generator=generator).float()  # products are exact, and often equal
    k = torch.randint(-1, 2, (1, 2, 22, 16), generator=generator).float()
    k[0, 0, 3, 0], k[0, 1, 2, 5], q[0, 1, 5, 3] = float("nan"), float("inf"), -float("inf")
    monkeypatch.setattr(gated, "select_from_pooled", None)  # nothing to project: one launch, a head of keys for two of queries
    for rule in RULES:
        options: dict[str, Any] = {**given(rule, grid), "scale": 0.25, "full_rows": 1, **grid}
        index = select_gated(Side(q.to(device)), Side(k.to(device)), kernel="triton", **options)
        expected = select_from_pooled(q, k, kernel="reference", **options)
        assert torch.equal(index.to_mask().cpu(), expected.to_mask())


@pytest.mark.parametrize(
    "change",
    [
        {"share": 2},  # heads that share an index
        {"kernel": "reference"},
    ],
)
def test_others_take_the_steps(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys, grid = sides(SHAPES[0], "cpu", q_linear=False)
    options: dict[str, Any] = {"threshold": 0.04, "scale": 0.2, "kernel": "triton", **grid} | change
    index = select_gated(queries, keys, **options)
    q, k = (project(side.pooled, side.weight, cos=side.cos, sin=side.sin) for side in (queries, keys))
    assert torch.equal(index.to_mask(), select_from_pooled(q, k, **options).to_mask())


@pytest.mark.skipif(torch.cuda.is_available(), reason="interpreter")
def test_long_prompts_take_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated, "MOST_COLUMNS", 10)
    queries, keys, grid = sides(SHAPES[2], "cpu", q_linear=False)
    index = select_gated(queries, keys, threshold=0.04, scale=0.2, kernel="triton", **grid)
    monkeypatch.setattr(gated, "MOST_COLUMNS", 128)
    short = select_gated(queries, keys, threshold=0.04, scale=0.2, kernel="triton", **grid)
    assert torch.equal(index.to_mask(), short.to_mask())


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "give one rule"),
        ({"threshold": 0.1, "mass": 0.5}, "give one rule"),
        ({"mass": 1.5}, "mass=1.5: must be above 0 and at most 1"),
        ({"budget": (1, 2)}, "budget has 2 rows, the queries have 25"),
    ],
)
def test_rules_that_are_wrong(rule: dict[str, Any], message: str) -> None:
    queries, keys, grid = sides(SHAPES[0], "cpu", q_linear=False)
    with pytest.raises(ValueError, match=message):
        select_gated(queries, keys, scale=0.2, **rule, **grid)


def test_vectors_that_do_not_go_together() -> None:
    queries, keys, grid = sides(SHAPES[0], "cpu", q_linear=False)
    for side in (
        replace(keys, weight=keys.weight[:3]),  # type: ignore[index]
        replace(keys, sin=None),
        replace(keys, pooled=keys.pooled[:, :, :-1]),
    ):
        with pytest.raises(ValueError, match=r"expected|together|lengths"):
            select_gated(queries, side, threshold=0.1, scale=0.2, kernel="triton", **grid)
