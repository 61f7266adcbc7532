"""XAttention against its recipe, written out group by group and block by block."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

import methods
from methods.parts.base import LayerInputs
from tests.methods.support import layer

SHAPES = [(203, 203, 2), (160, 160, 1), (64, 224, 1), (61, 210, 1), (77, 205, 1), (1, 100, 1), (5, 5, 1)]
"""(queries, keys, batch): off the block, chunks that start on and off the stride, a single query."""


def literal(x: LayerInputs, block: int, stride: int, threshold: float) -> torch.Tensor:
    (batch, heads, q_len, _), (_, kv_heads, k_len, _) = x.q.shape, x.k.shape
    shift, side = k_len - q_len, block // stride
    q_groups, k_groups = -(-q_len // stride), -(-k_len // stride)
    rows, cols = -(-q_len // block), -(-k_len // block)
    mask = torch.zeros(batch, heads, rows, cols, dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            q, k = x.q[b, h].double(), x.k[b, h // (heads // kv_heads)].double()
            products = torch.zeros(q_groups * stride, k_groups * stride, dtype=torch.float64)  # zeros for tokens that lack
            products[:q_len, :k_len] = q @ k.T
            score = [[0.0] * cols for _ in range(rows)]
            for g in range(q_groups):
                seen = min(k_groups, shift // stride + g + 1)
                line = torch.zeros(seen, dtype=torch.float64)
                for r in range(stride):  # one antidiagonal of every group: keys forwards, queries backwards
                    line += products[g * stride + stride - 1 - r, r : seen * stride : stride]
                for c, prob in enumerate(torch.softmax(line * x.scale / stride, 0).tolist()):
                    score[g // side][c // side] += prob
            for i in range(rows):
                first = (shift + i * block) // block
                last = (shift + min((i + 1) * block, q_len) - 1) // block
                chosen = {0, *range(first, last + 1)}
                total, reached = sum(score[i]), sum(score[i][j] for j in chosen)
                for j in sorted(set(range(last + 1)) - chosen, key=lambda j: -score[i][j]):
                    if reached >= threshold * total:
                        break
                    chosen.add(j)
                    reached += score[i][j]
                mask[b, h, i, list(chosen)] = True
    return mask


def select(x: LayerInputs, **knobs: object) -> torch.Tensor:
    index = methods.build("xattention", **knobs).select(x)
    assert index is not None
    index.validate()
    return index.to_mask()


def sharpened(q_len: int, k_len: int, batch: int, dtype: torch.dtype) -> LayerInputs:
    """A layer whose antidiagonal means differ enough that thresholds cut."""
    x = layer(q_len, k_len, batch=batch)
    return replace(x, q=2 * x.q.to(dtype), k=x.k.to(dtype))


@pytest.mark.parametrize(("q_len", "k_len", "batch"), SHAPES)
@pytest.mark.parametrize(("stride", "threshold"), [(4, 0.7), (8, 0.9), (16, 0.5)])
def test_equals_the_recipe(q_len: int, k_len: int, batch: int, stride: int, threshold: float) -> None:
    x = sharpened(q_len, k_len, batch, torch.float64)
    expected = literal(x, 16, stride, threshold)
    assert torch.equal(select(x, block_size=16, stride=stride, threshold=threshold), expected)


def test_the_recipe_really_leaves_blocks_out() -> None:
    blocks = literal(sharpened(203, 203, 1, torch.float64), 16, 8, 0.9).sum()
    assert 2 * 13 * 4 < blocks < 0.9 * 13 * 14 / 2 * 4


def test_heads_at_a_time_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = sharpened(203, 203, 2, torch.float32)
    expected = select(x, block_size=16)
    monkeypatch.setattr("methods.parts.head_chunks.BLOCK_PAIRS", 1)
    assert torch.equal(select(x, block_size=16), expected)


def test_strided_inputs_do_not_matter() -> None:
    x = sharpened(203, 203, 2, torch.float32)
    q, k = (tokens.transpose(1, 2).contiguous().transpose(1, 2) for tokens in (x.q, x.k))
    assert torch.equal(select(replace(x, q=q, k=k), block_size=16), select(x, block_size=16))


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_an_antidiagonal_crosses_every_vertical_and_every_slash(stride: int) -> None:
    """The paper's claim: wherever a column or a diagonal lies in the tiles, its blocks are found. Of diagonals that holds for
    odd distances of query and key: on an antidiagonal of an even stride there are no others."""
    length, block = 320, 16
    q = torch.zeros(1, 1, length, length + 1)
    q[..., -1] = 1.0
    for place in (37, 41, 46):
        k = torch.zeros_like(q)
        k[0, 0, place, -1] = 300.0  # a column: every query looks at it
        mask = select(LayerInputs(q=q, k=k, layer=0, scale=1.0), block_size=block, stride=stride)[0, 0]
        assert bool(mask[3:, place // block].all())
        assert mask[3:].sum() == 17 * 3  # with the first block and the diagonal
    k = torch.eye(length).expand(1, 1, -1, -1)
    for distance in (37, 41, 47):
        diagonal = LayerInputs(q=300.0 * k.roll(distance, 2), k=k, layer=0, scale=1.0)  # query t looks at key t - distance
        mask = select(diagonal, block_size=block, stride=stride)[0, 0]
        for row in range(4, 20):
            met = [(t - distance) // block for t in range(row * block, (row + 1) * block)]
            assert all(bool(mask[row, j]) for j in met if met.count(j) > block // 2), (distance, row)
        assert mask.sum() < 0.5 * 20 * 21 / 2


def test_a_higher_threshold_keeps_more() -> None:
    x = sharpened(320, 320, 1, torch.float32)
    masks = [select(x, block_size=16, threshold=threshold) for threshold in (0.0, 0.5, 0.9, 1.0)]
    for fewer, more in itertools.pairwise(masks):
        assert bool((more | ~fewer).all())
        assert more.sum() > fewer.sum()
    assert bool((masks[0].sum(-1) == torch.tensor([1, *[2] * 19])).all())  # the first block and the diagonal


def test_defaults() -> None:
    assert methods.build("xattention").knobs() == {"threshold": 0.9, "stride": 8, "last": 0}
    assert methods.build("xattention").calibrates() is None
    assert methods.build("xattention", sparsity=0.9).calibrates() is not None


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"sparsity": 0.5, "threshold": 0.9}, "sparsity=0.5 and threshold=0.9: give one of them"),
        ({"threshold": 1.5}, "threshold=1.5: must be a share of a row's score, from 0 to 1"),
        ({"stride": 6}, "stride=6: must divide block_size=64"),
        ({"stride": 0}, "stride=0: must divide block_size=64"),
    ],
)
def test_bad_knobs_are_one_clear_line(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.build("xattention", **knobs)
