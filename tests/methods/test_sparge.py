"""SpargeAttn's first stage against a literal version with loops, Gram matrices and all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import methods
from methods.parts.base import LayerInputs
from methods.sparge import Sparge, self_similarity
from tests.methods.support import layer, select_without_waiting


def build(block_size: int = 16, **knobs: object) -> Sparge:
    method = methods.build("sparge", block_size=block_size, **knobs)
    assert isinstance(method, Sparge)
    return method


def mask_of(method: Sparge, x: LayerInputs) -> torch.Tensor:
    index = method.select(x)
    assert index is not None
    index.validate()
    return index.to_mask()


def alike(tokens: torch.Tensor, threshold: float) -> bool:
    """Whether the mean of the Gram matrix of tokens [n,D] is above the threshold."""
    unit = tokens / tokens.norm(dim=-1, keepdim=True)
    return float((unit @ unit.T).mean()) > threshold


def literal(
    q: torch.Tensor, k: torch.Tensor, scale: float, blocks: tuple[int, int], threshold: float, *, cdf: float, topk: float
) -> torch.Tensor:
    """bool [Mq, Nk] of one head, q [Q,D], k [K,D] float64; topk 0: by cdf."""
    q_block, k_block = blocks
    offset = len(k) - len(q)
    queries, keys = q.split(q_block), (k - k.mean(0)).split(k_block)
    alike_q, alike_k = ([alike(part, threshold) for part in parts] for parts in (queries, keys))
    mask = torch.zeros(len(queries), len(keys), dtype=torch.bool)
    for i, part in enumerate(queries):
        first, last = offset + i * q_block, offset + i * q_block + len(part) - 1
        seen = range(last // k_block + 1)
        ranked = [j for j in seen if alike_k[j]]
        if ranked:
            scores = torch.stack([part.mean(0) @ keys[j].mean(0) * scale for j in ranked])
            probs = dict(zip(ranked, scores.softmax(-1).tolist(), strict=True))
            ranked.sort(key=lambda j: -probs[j])
            total, taken = 0.0, 0
            for j in ranked:
                total += probs[j]
                taken += total <= cdf
            count = int(topk * len(keys)) if topk else taken
            mask[i, ranked[: max(1, count)]] = True
        for j in seen:
            if not alike_k[j] or not alike_q[i] or j >= first // k_block:
                mask[i, j] = True
    return mask


def varied(q_len: int, k_len: int, batch: int = 1) -> LayerInputs:
    """Blocks of very different spread, so that some are alike and some are not."""
    x = layer(q_len, k_len, batch=batch, seed=3)
    draw = torch.Generator().manual_seed(1)
    spread = 3 * torch.rand(batch, 1, k_len // 16 + 1, 1, generator=draw).repeat_interleave(16, dim=2)[:, :, :k_len]
    direction = torch.randn(batch, 4, 1, 16, generator=draw)
    k = x.k + spread * torch.randn(x.k.shape, generator=draw) + 3  # what all keys share must not make them alike
    return replace(x, q=direction + x.q / 2 * spread[:, :, -q_len:], k=k)


SHAPES = [(203, 203, 2), (61, 250, 1), (7, 120, 2), (1, 100, 1)]


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize(
    "knobs", [{}, {"cdf": 0.7, "similar": 0.3}, {"rule": "topk"}, {"rule": "topk", "topk": 0.2, "similar": 0.5}]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_recipe(shape: tuple[int, int, int], knobs: dict[str, object], block_size: int) -> None:
    q_len, k_len, batch = shape
    method = build(block_size, **knobs)
    topk = method.topk if method.rule == "topk" else 0.0
    for x in (layer(q_len, k_len, batch=batch), varied(q_len, k_len, batch)):
        x = replace(x, q=x.q.double(), k=x.k.double())
        mask = mask_of(method, x)
        for b in range(batch):
            for h in range(4):
                expected = literal(
                    x.q[b, h], x.k[b, h // 2], x.scale, (block_size, 16), method.similar, cdf=method.cdf, topk=topk
                )
                assert torch.equal(mask[b, h], expected), (b, h)
        single = mask_of(method, replace(x, q=x.q.float(), k=x.k.float()))
        assert (single == mask).double().mean() > 0.99


def test_the_test_layers_have_alike_and_unlike_blocks() -> None:
    x = varied(203, 203)
    for likeness in (self_similarity(x.q, 16), self_similarity(x.k, 16, x.k.mean(2, keepdim=True))):
        for threshold in (0.3, 0.6):
            assert 0.05 < (likeness > threshold).float().mean() < 0.95


@pytest.mark.parametrize("limit", [1 << 25, 1])
def test_self_similarity_is_the_mean_of_the_gram_matrix(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.sparge.TOKEN_ELEMENTS", limit)
    x = layer(53, batch=2).k.double()
    x[0, 0, 5] = 0  # no direction: similar to nothing, itself included
    got = self_similarity(x, 16)
    for b in range(2):
        for h in range(2):
            for i, part in enumerate(x[b, h].split(16)):
                unit = part / part.norm(dim=-1, keepdim=True).clamp(min=1e-9)
                torch.testing.assert_close(got[b, h, i], (unit @ unit.T).mean())


def test_a_constant_in_all_keys_changes_nothing() -> None:
    """The paper smooths K: what all keys share moves every score of a row alike and says nothing of a block."""
    x = varied(203, 203)
    x = replace(x, q=x.q.double(), k=x.k.double())
    method = build(cdf=0.8, similar=0.5)
    moved = mask_of(method, replace(x, k=x.k + 7 * torch.randn(1, 2, 1, 16, dtype=torch.float64)))
    assert torch.equal(mask_of(method, x), moved)


def test_blocks_that_are_not_alike_are_kept_in_full() -> None:
    x = layer(320)
    q = x.q[:, :, :1].expand_as(x.q).clone()
    k = x.k[:, :, :1] + x.k[:, :, ::16].repeat_interleave(16, dim=2)
    q[:, :, 160:176] = x.q[:, :, 160:176]
    k[:, :, 80:96] += 20 * torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = mask_of(build(cdf=0.01), replace(x, q=q, k=k))
    assert bool(mask[:, :, 10, :11].all())
    assert bool(mask[:, :, 5:, 5].all())
    others = mask.clone()
    others[:, :, 10], others[:, :, :, 5] = False, False
    assert int(others.sum(-1).max()) <= 2  # the best block and the diagonal


def test_the_share_is_of_all_blocks_before_the_causal_cut() -> None:
    """Half of all blocks is every block of the first half of the rows: the density is 3/4, not 1/2."""
    mask = mask_of(build(rule="topk", topk=0.5), layer(640))
    assert bool((mask.sum(-1)[:, :, :20] == torch.arange(1, 21)).all())
    assert bool((mask.sum(-1)[:, :, 20:] <= 21).all())
    assert bool((mask.sum(-1)[:, :, 20:] >= 20).all())


def test_a_sink_keeps_the_first_block_in_every_row() -> None:
    x = varied(320, 320)
    without, sink = (mask_of(build(sparsity=0.9, sink=value), x) for value in (False, True))
    assert bool(sink[..., 0].all())
    assert not bool(without[..., 0].all())


@pytest.mark.parametrize(("block_size", "k_block"), [(8, 8), (16, 16), (32, 16), (48, 48), (64, 32), (96, 48), (128, 64)])
def test_key_blocks_are_half_of_query_blocks_where_kernels_take_them(block_size: int, k_block: int) -> None:
    index = build(block_size).select(layer(200))
    assert index is not None
    index.validate()
    assert (index.q_block, index.k_block) == (block_size, k_block)


def test_defaults() -> None:
    assert build().knobs() == {"rule": "cdf", "cdf": 0.98, "similar": 0.6, "sink": False}
    assert build(rule="topk").knobs() == {"rule": "topk", "topk": 0.5, "similar": -0.1, "sink": False}
    assert build(sparsity=0.9).knobs() == {"rule": "cdf", "cdf": 0.98, "similar": -0.1, "sink": False}
    assert build(sparsity=0.9, similar=0.4).similar == 0.4


@pytest.mark.parametrize("rule", ["cdf", "topk"])
def test_a_sparsity_calibrates_the_knob_of_the_rule(rule: str) -> None:
    assert build(rule=rule).calibrates() is None
    assert build(rule=rule, sparsity=0.0).calibrates() is None
    knob = build(rule=rule, sparsity=0.9).calibrates()
    assert knob is not None
    assert knob.name == rule
    densities = []
    for value in (0.05, 0.3, 0.7):
        method = build(rule=rule, sparsity=0.9)
        method.set_knob(knob, value)
        densities.append(float(mask_of(method, layer(320)).float().mean()))
    assert densities == sorted(set(densities))


@pytest.mark.gpu
@pytest.mark.parametrize("knobs", [{}, {"rule": "topk"}, {"sparsity": 0.8}])
def test_selection_never_waits_for_the_device(knobs: dict[str, object]) -> None:
    method, x = build(128, **knobs), layer(3000, device="cuda")
    index = select_without_waiting(method, x)
    same = index.to_mask().cpu() == mask_of(method, layer(3000))
    assert same.float().mean() > 0.99


@pytest.mark.parametrize(
    ("knobs", "line"),
    [
        ({"sparsity": 0.9, "cdf": 0.9}, "sparsity=0.9 and cdf=0.9: give one of them"),
        ({"sparsity": 0.9, "rule": "topk", "topk": 0.9}, "sparsity=0.9 and topk=0.9: give one of them"),
        ({"topk": 0.5}, "topk=0.5 has no effect with rule=cdf: set rule=topk"),
        ({"rule": "topk", "cdf": 0.5}, "cdf=0.5 has no effect with rule=topk: set rule=cdf"),
        ({"rule": "best"}, "rule=best: must be one of cdf, topk"),
        ({"cdf": 0.0}, "cdf=0.0: must be a share, above 0 and at most 1"),
        ({"rule": "topk", "topk": 2.0}, "topk=2.0: must be a share"),
        ({"similar": 1.1}, "similar=1.1: must be a mean cosine, between -1 and 1"),
    ],
)
def test_bad_knobs_are_one_line(knobs: dict[str, object], line: str) -> None:
    with pytest.raises(ValueError, match=line) as error:
        build(**knobs)
    assert "\n" not in str(error.value)
