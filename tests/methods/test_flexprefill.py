"""FlexPrefill against its six steps written out with loops, and what its paper says of the two patterns."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import methods
from methods.flexprefill import FlexPrefill, js_distance
from methods.parts.base import LayerInputs
from tests.methods.support import layer, select_without_waiting

BLOCK = 16


def build(**knobs: object) -> FlexPrefill:
    method = methods.build("flexprefill", block_size=BLOCK, **knobs)
    assert isinstance(method, FlexPrefill)
    return method


def mask_of(method: FlexPrefill, x: LayerInputs) -> torch.Tensor:
    index = method.select(x)
    assert index is not None
    index.validate()
    return index.to_mask()


def blocks_to_cover(values: list[float], gamma: float) -> int:
    total, taken = 0.0, 0
    for value in sorted(values, reverse=True):
        total, taken = total + value, taken + 1
        if total > gamma:
            break
    return taken // BLOCK + 1


def literal(q: torch.Tensor, k: torch.Tensor, scale: float, gamma: float, tau: float, floor: int) -> tuple[torch.Tensor, bool]:
    """bool [Mq, Nk] of one head, q [Q,D], k [K,D] float64, and whether it is query-aware."""
    q_len, k_len = len(q), len(k)
    offset, rows, cols = k_len - q_len, -(-q_len // BLOCK), -(-k_len // BLOCK)
    # 1. attention of the last queries, by column and by diagonal (named by where it meets the last query)
    last = range(max(0, q_len - BLOCK), q_len)
    vertical, slash = [0.0] * k_len, [0.0] * k_len
    for i in last:
        probs = (k[: offset + i + 1] @ q[i] * scale).softmax(-1).tolist()
        for j, p in enumerate(probs):
            vertical[j] += p / len(last)
            slash[j + q_len - 1 - i] += p / len(last)
    # 2. blocks that cover gamma of it
    n_v, n_s = (max(floor, blocks_to_cover(values, gamma)) for values in (vertical, slash))
    # 3. the pattern
    columns = [math.fsum(vertical[j * BLOCK : (j + 1) * BLOCK]) for j in range(cols)]
    diagonals = [math.fsum(slash[j * BLOCK : (j + 1) * BLOCK]) for j in range(cols)]
    keys = torch.stack([part.mean(0) for part in k.split(BLOCK)])
    estimate = (keys @ q[last.start :].mean(0) * scale).softmax(-1).tolist()
    js = 0.0
    for p, e in zip(columns, estimate, strict=True):
        for share in (p, e):
            js += 0.5 * share * math.log(share / ((p + e) / 2)) if share > 0 else 0.0
    aware = math.sqrt(max(js, 0)) < tau
    if aware:
        n_v = n_s = floor
    # 4. columns and diagonals
    kept_columns = [0, *sorted(range(1, cols), key=lambda j: -columns[j])][:n_v]
    kept_diagonals = [cols - 1, *sorted(range(cols - 1), key=lambda j: -diagonals[j])][:n_s]
    mask = torch.zeros(rows, cols, dtype=torch.bool)
    seen = [(offset + min((i + 1) * BLOCK, q_len) - 1) // BLOCK for i in range(rows)]
    for i in range(rows):
        mask[i, [j for j in kept_columns if j <= seen[i]]] = True
        mask[i, [seen[i] - (cols - 1 - s) for s in kept_diagonals if seen[i] >= cols - 1 - s]] = True
        mask[i, (offset + i * BLOCK) // BLOCK : seen[i] + 1] = True  # every row's own tokens: ours
    # 5. the largest of the pooled map
    if aware:
        entries: list[tuple[float, int, int]] = []
        for i, queries in enumerate(q.split(BLOCK)):
            probs = (keys[: seen[i] + 1] @ queries.mean(0) * scale).softmax(-1).tolist()
            entries += [(p, i, j) for j, p in enumerate(probs)]
        total = 0.0
        for p, i, j in sorted(entries, reverse=True):
            total += p
            if total > gamma * rows:
                break
            mask[i, j] = True
    return mask, aware


def structured(q_len: int, k_len: int, batch: int = 1) -> LayerInputs:
    """Sinks, a few columns that everyone looks at, and a strong diagonal."""
    x = layer(q_len, k_len, batch=batch, seed=5)
    q, k = x.q.clone(), x.k / 2
    k[:, :, :3, 0] += 12
    k[:, 0, k_len // 3, 1] += 14
    q[..., :2] += 2
    angle = torch.arange(k_len) * 0.05
    wave = torch.stack((angle.cos(), angle.sin()), dim=-1) * 4
    k[..., 2:4] += wave
    q[:, ::2, :, 2:4] += wave[k_len - q_len :]
    return replace(x, q=q, k=k)


SHAPES = [(320, 320, 1), (203, 203, 2), (61, 250, 1), (7, 120, 2), (1, 100, 1)]


@pytest.mark.parametrize("gamma", [0.6, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_recipe(shape: tuple[int, int, int], gamma: float) -> None:
    q_len, k_len, batch = shape
    method = build(gamma=gamma, tau=0.3, min_budget=20)
    patterns = []
    for x in (layer(q_len, k_len, batch=batch), structured(q_len, k_len, batch)):
        x = replace(x, q=x.q.double(), k=x.k.double())
        mask = mask_of(method, x)
        for b in range(batch):
            for h in range(4):
                expected, aware = literal(x.q[b, h], x.k[b, h // 2], x.scale, gamma, 0.3, floor=2)
                assert torch.equal(mask[b, h], expected), (b, h, aware)
                patterns.append(aware)
        single = mask_of(method, replace(x, q=x.q.float(), k=x.k.float()))
        assert (single == mask).double().mean() > 0.99
    if q_len > 100:
        assert True in patterns
        assert False in patterns


def test_a_head_is_query_aware_where_pooling_predicts_the_last_queries() -> None:
    """The paper's reason for the divergence: blocks of equal tokens pool without loss, blocks whose needle drowns don't."""
    x = layer(320)
    k = x.k[:, :, ::BLOCK].repeat_interleave(BLOCK, dim=2)
    q = x.q[:, :, -1:].expand_as(x.q) / 2
    k[:, :, -BLOCK:] = -4 * q[:, ::2, -1:]  # nothing to see in the last block, where causality tells the two apart
    alike = replace(x, q=q, k=k)
    k = x.k / 8
    k[:, :, 100] = 8 * q[:, ::2, -1]
    k[:, :, 101:106] = -1.6 * q[:, ::2, -1:]
    hidden = replace(x, q=q, k=k)
    aware, slashed = (build(gamma=0.9, min_budget=32, tau=tau) for tau in (1.0, 0.0))  # one branch for all heads
    method = build(gamma=0.9, min_budget=32)
    for x, same, other in ((alike, aware, slashed), (hidden, slashed, aware)):
        chosen = mask_of(method, x)[0, ::2]
        assert torch.equal(chosen, mask_of(same, x)[0, ::2])
        assert not torch.equal(chosen, mask_of(other, x)[0, ::2])
    # the needle's column is kept in all rows that see it, where the pooled map alone would have missed it
    assert bool(mask_of(method, hidden)[0, ::2, 100 // BLOCK :, 100 // BLOCK].all())


def test_more_gamma_keeps_more() -> None:
    x = structured(320, 320)
    masks = [mask_of(build(gamma=gamma, tau=0.3, min_budget=16), x) for gamma in (0.3, 0.6, 0.9, 0.99)]
    for less, more in pairwise(masks):
        assert bool((more | ~less).all())
        assert more.sum() > less.sum()


def test_short_prompts_are_dense_at_the_defaults() -> None:
    method = build()
    assert (method.gamma, method.tau, method.min_budget) == (0.9, 0.1, 1024)
    assert method.select(layer(1024)) is None
    assert method.select(layer(1025)) is not None
    assert build(min_budget=0).select(layer(2 * BLOCK)) is None
    assert build(min_budget=0).select(layer(2 * BLOCK + 1)) is not None


def test_the_floor_gives_way_to_the_sparsity() -> None:
    grid = build().grid(layer(640))  # 40 rows of 20.5 blocks on average
    assert build()._floor(grid) == 64
    assert [build(sparsity=s)._floor(grid) for s in (0.5, 0.8, 0.95)] == [5, 2, 0]
    assert build(sparsity=0.5, min_budget=32)._floor(grid) == 2
    method = build(sparsity=0.95)
    method.gamma = 0.01
    assert torch.equal(mask_of(method, layer(640))[0, 0], torch.eye(40, dtype=torch.bool))


def test_a_sparsity_calibrates_gamma() -> None:
    assert build().calibrates() is None
    assert build(sparsity=0.0).calibrates() is None
    method = build(sparsity=0.9)
    knob = method.calibrates()
    assert knob is not None
    assert method.gamma == 0.9
    method.set_knob(knob, 0.7)
    assert method.knobs() == {"gamma": 0.7, "tau": 0.1, "min_budget": 1024}


def test_js_distance() -> None:
    p, q = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.5, 0.5])
    assert float(js_distance(p, q)) == pytest.approx(math.sqrt(math.log(2)))
    assert float(js_distance(q, q)) == 0
    halves = torch.tensor([0.5, 0.25, 0.25])
    expected = 0.5 * (math.log(1 / 0.75)) + 0.5 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.25 / 0.125))
    assert float(js_distance(p, halves)) == pytest.approx(math.sqrt(expected))


@pytest.mark.gpu
@pytest.mark.parametrize("knobs", [{}, {"tau": 1.0}, {"sparsity": 0.8}])
def test_selection_never_waits_for_the_device(knobs: dict[str, object]) -> None:
    method, x = build(**knobs), layer(3000, device="cuda")
    index = select_without_waiting(method, x)
    same = index.to_mask().cpu() == mask_of(method, layer(3000))
    assert same.float().mean() > 0.99


@pytest.mark.parametrize(
    ("knobs", "line"),
    [
        ({"sparsity": 0.9, "gamma": 0.9}, "sparsity=0.9 and gamma=0.9: give one of them"),
        ({"gamma": 0.0}, "gamma=0.0: must be a share of the attention, above 0 and at most 1"),
        ({"gamma": 1.5}, "gamma=1.5: must be a share of the attention"),
        ({"tau": -0.1}, "tau=-0.1: must be at least 0"),
        ({"tau": float("nan")}, "tau=nan: must be a finite number"),
        ({"min_budget": -1}, "min_budget=-1: must be at least 0 tokens"),
    ],
)
def test_bad_knobs_are_one_line(knobs: dict[str, object], line: str) -> None:
    with pytest.raises(ValueError, match=line) as error:
        build(**knobs)
    assert "\n" not in str(error.value)
