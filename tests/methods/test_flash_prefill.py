"""FlashPrefill against its recipe, written out query by query and block by block."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import methods
from methods.parts.base import LayerInputs
from tests.methods.support import layer

SHAPES = [(203, 203, 2), (160, 160, 1), (64, 224, 1), (61, 210, 1), (1, 100, 1), (5, 5, 1)]
FEW = {"sinks": 1, "window": 2, "last": 1}


def literal(x: LayerInputs, block: int, alpha: float, sinks: int, window: int, last: int) -> torch.Tensor:
    (batch, heads, q_len, _), (_, kv_heads, k_len, _) = x.q.shape, x.k.shape
    shift, rows, cols = k_len - q_len, -(-q_len // block), -(-k_len // block)
    mask = torch.zeros(batch, heads, rows, cols, dtype=torch.bool)
    for b in range(batch):
        for h in range(heads):
            q = x.q[b, h].double()
            means = [part.mean(0) for part in x.k[b, h // (heads // kv_heads)].double().split(block)]
            for i in range(rows):
                queries = range(i * block, min((i + 1) * block, q_len))
                own = [(shift + queries[0]) // block, (shift + queries[-1]) // block]
                score = [
                    sum(math.exp(float(q[t] @ means[j]) * x.scale) for t in queries if shift + t >= (j + 1) * block - 1)
                    for j in range(own[1] + 1)
                ]
                for j in range(own[1] + 1):
                    best = score[j] > 0 and score[j] >= alpha * max(score)
                    mask[b, h, i, j] = best or j < sinks or j > own[0] - window or i >= rows - last
    return mask


def select(x: LayerInputs, **knobs: object) -> torch.Tensor:
    index = methods.build("flash_prefill", block_size=16, **knobs).select(x)
    assert index is not None
    index.validate()
    return index.to_mask()


@pytest.mark.parametrize(("q_len", "k_len", "batch"), SHAPES)
@pytest.mark.parametrize("alpha", [0.02, 0.18, 1.0])
def test_equals_the_recipe(q_len: int, k_len: int, batch: int, alpha: float) -> None:
    x = layer(q_len, k_len, batch=batch)
    x = replace(x, q=x.q.double(), k=x.k.double())
    assert torch.equal(select(x, alpha=alpha, **FEW), literal(x, 16, alpha, **FEW))


def test_defaults_are_the_release_s() -> None:
    assert methods.build("flash_prefill").knobs() == {"alpha": 0.18, "sinks": 2, "window": 4, "last": 2}
    x = layer(203)
    x = replace(x, q=x.q.double(), k=x.k.double())
    assert torch.equal(select(x), literal(x, 16, 0.18, 2, 4, 2))


def test_strided_inputs_do_not_matter() -> None:
    x = layer(203, batch=2)
    q, k = (tokens.transpose(1, 2).contiguous().transpose(1, 2) for tokens in (x.q, x.k))
    assert torch.equal(select(replace(x, q=q, k=k), **FEW), select(x, **FEW))


def test_a_long_tail_does_not_count() -> None:
    """The paper's claim: a threshold relative to the maximum drops the tail, however long; a share of the mass would not."""
    counts = {}
    for length in (640, 2560):
        q, k = torch.zeros(1, 1, length, 16), torch.zeros(1, 1, length, 16)
        q[..., 0], k[0, 0, 5 * 16 : 6 * 16, 0] = 1.0, 2.5  # one block scores e^2.5 times what each of the others does
        index = methods.build("flash_prefill", block_size=16, **FEW).select(LayerInputs(q=q, k=k, layer=0, scale=1.0))
        assert index is not None
        counts[length] = index.counts[0, 0, 8:-1].unique().tolist()
        assert bool(index.to_mask()[0, 0, 8:, 5].all())
    assert counts == {640: [4], 2560: [4]}  # the sink, the window of two and the block


def test_the_common_size_of_a_row_s_scores_does_not_matter() -> None:
    """Scores far beyond float32's exponentials: only their ratios count."""
    x = layer(203)
    loud = replace(x, q=torch.cat((x.q, torch.ones(1, 4, 203, 1)), -1), k=torch.cat((x.k, torch.full((1, 2, 203, 1), 4e3)), -1))
    assert (select(loud, **FEW) == select(x, **FEW)).float().mean() > 0.99


def test_what_a_sparsity_leaves_to_decree() -> None:
    x = layer(640)
    method = methods.build("flash_prefill", block_size=16, sparsity=0.95)
    knob = method.calibrates()
    assert knob is not None
    method.set_knob(knob, knob.high)
    index = method.select(x)
    assert index is not None
    assert bool((index.counts == 1).all())  # no room but for the diagonal
    method.set_knob(knob, knob.low)
    index = method.select(x)
    assert index is not None
    assert bool((index.density() > 0.9).all())


def test_a_sparsity_leaves_the_scores_a_say() -> None:
    """Few rows: were the full ones paid before the diagonal, there would be nothing left to choose."""
    x = layer(240)
    method = methods.build("flash_prefill", block_size=16, sparsity=0.7)
    knob = method.calibrates()
    assert knob is not None
    method.set_knob(knob, 1.0)
    index = method.select(x)
    assert index is not None
    assert bool((index.density() <= 0.3).all())
    mask = index.to_mask()
    assert not torch.equal(mask[:, 0], mask[:, 1])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"sparsity": 0.5, "alpha": 0.2}, "sparsity=0.5 and alpha=0.2: give one of them"),
        ({"alpha": 0.0}, "alpha=0.0: must be a share of the row's highest score"),
        ({"alpha": 1.2}, "alpha=1.2: must be a share"),
        ({"sinks": -1}, "sinks=-1: must be at least 0 blocks"),
        ({"window": 0}, "window=0: must be at least 1 blocks"),
        ({"last": -1}, "last=-1: must be at least 0 blocks"),
    ],
)
def test_bad_knobs_are_one_clear_line(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.build("flash_prefill", **knobs)
