"""Attention with skipped tiles: which tiles, decided one by one in float64, and the softmax over the rest."""

from __future__ import annotations

import math
from functools import lru_cache

import pytest
import torch
from attention_kernels.block_index import BlockIndex, diagonal_mask
from attention_kernels.skip_softmax import SkipRule, resolve_skip, skip_softmax_attention
from torch import Tensor

from tests.kernels.oracle import attention, error

GPU = pytest.mark.gpu
CPU_TRITON = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")

SHAPES = [
    # batch, heads, KV heads, queries, keys, head dim, query tile, key tile
    (2, 2, 1, 101, 101, 64, 16, 16),
    (1, 4, 2, 70, 131, 32, 32, 16),  # a chunk of a prompt that starts inside a tile
    (1, 2, 2, 61, 166, 96, 16, 32),
    (2, 2, 1, 200, 200, 16, 64, 32),
    (1, 1, 1, 1, 40, 64, 16, 16),
    (1, 2, 1, 33, 161, 64, 128, 64),  # fewer queries than a tile has
    (1, 7, 1, 50, 90, 32, 32, 32),
    (1, 6, 2, 70, 70, 64, 32, 16),
]
THRESHOLDS = (0.01, 0.3, 3.0)
# The reference takes every threshold at every shape, Triton the shapes with the thresholds in turn, its short types at three.
RUNS = [
    *(("reference", "cpu", dtype, s, t) for dtype in (torch.float64, torch.float32) for s in SHAPES for t in THRESHOLDS),
    *(
        pytest.param("triton", device, dtype, shape, THRESHOLDS[i % 3], marks=marks)
        for device, dtype, shapes, marks in (
            ("cpu", torch.float32, SHAPES, CPU_TRITON),
            ("cpu", torch.float16, SHAPES[:3], CPU_TRITON),
            ("cuda", torch.bfloat16, SHAPES, GPU),
            ("cuda", torch.float16, SHAPES[:3], GPU),
        )
        for i, shape in enumerate(shapes)
    ),
]
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Scores near 0 to -12 by the stretch of text that a key stands in, the same for all queries, so that tiles differ."""
    batch, heads, kv_heads, q_len, k_len, dim = shape[:6]
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, heads, q_len, dim, generator=generator)
    k, v = (torch.randn(batch, kv_heads, k_len, dim, generator=generator) for _ in range(2))
    q[..., 0] = 4.0
    bias = -12 * torch.rand(batch, kv_heads, k_len // 24 + 1, generator=generator)
    k[..., 0] = bias.repeat_interleave(24, 2)[..., :k_len] * dim**0.5 / 4.0
    return [x.to(device, dtype) for x in (q, k, v)]


def literal(q: Tensor, k: Tensor, rule: SkipRule) -> tuple[Tensor, float]:
    """bool [B,Hq,Mq,Nk], the tiles that are computed, and how near to the threshold a decision came, as a logarithm."""
    grid = rule.grid(q, k)
    scores = q.cpu().double() @ k.cpu().double().repeat_interleave(q.shape[1] // k.shape[1], 1).mT * q.shape[-1] ** -0.5
    shift = k.shape[2] - q.shape[2]
    scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + shift), -math.inf)
    diagonal = diagonal_mask(**grid)
    computed = torch.zeros(*q.shape[:2], *diagonal.shape, dtype=torch.bool)
    nearest = math.inf
    for b in range(computed.shape[0]):
        for h in range(computed.shape[1]):
            for i in range(computed.shape[2]):
                rows = scores[b, h, i * rule.q_block : (i + 1) * rule.q_block]
                best = torch.full((len(rows),), -math.inf, dtype=torch.float64)
                for j in range(computed.shape[3]):
                    tile = rows[:, j * rule.k_block : (j + 1) * rule.k_block].amax(1)
                    if bool((tile == -math.inf).all()):
                        continue
                    if not diagonal[i, j]:
                        ahead = float((tile - best).max())
                        nearest = min(nearest, abs(ahead - rule.log)) if rule.threshold else nearest
                        if ahead < rule.log:
                            continue
                    computed[b, h, i, j] = True
                    best = torch.maximum(best, tile)
    return computed, nearest


@pytest.mark.parametrize(("kernel", "device", "dtype", "shape", "threshold"), RUNS, ids=str)
def test_equals_the_rule(kernel: str, device: str, dtype: torch.dtype, shape: tuple[int, ...], threshold: float) -> None:
    q, k, v = inputs(shape, dtype, device)
    rule = SkipRule(threshold, *shape[6:])
    out, index = skip_softmax_attention(q, k, v, rule, kernel=kernel)
    index.validate()
    computed, nearest = literal_of(shape, rule, torch.float32 if dtype == torch.float64 else dtype)
    assert nearest > 1e-5  # else rounding could decide
    assert torch.equal(index.to_mask().cpu(), computed)
    assert error(out, attention(q, k, v, index)) < TOLERANCE[dtype]


@lru_cache
def literal_of(shape: tuple[int, ...], rule: SkipRule, dtype: torch.dtype) -> tuple[Tensor, float]:
    """`literal` of the inputs of a shape. Loops over tiles take longer than the kernels."""
    return literal(*inputs(shape, dtype)[:2], rule)


def test_the_rule_really_skips() -> None:
    computed = [
        literal(*inputs(SHAPES[0], torch.float64)[:2], SkipRule(t, 16, 16))[0].sum() / (4 * 28) for t in (0.01, 0.3, 3.0)
    ]
    assert 0.9 > computed[0] > computed[1] + 0.02 > computed[2] + 0.04 > 0.25 + 0.04


@pytest.mark.parametrize(
    ("kernel", "device", "dtype", "shape"),
    [
        *(("reference", "cpu", dtype, shape) for dtype in (torch.float64, torch.float32) for shape in SHAPES),
        *(pytest.param("triton", "cpu", torch.float32, shape, marks=CPU_TRITON) for shape in SHAPES),
        *(pytest.param("triton", "cuda", torch.bfloat16, shape, marks=GPU) for shape in SHAPES),
    ],
    ids=str,
)
def test_threshold_0_is_dense(kernel: str, device: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    q, k, v = inputs(shape, dtype, device)
    rule = SkipRule(0.0, *shape[6:])
    out, index = skip_softmax_attention(q, k, v, rule, kernel=kernel)
    full = BlockIndex.full(*q.shape[:2], **rule.grid(q, k), device=device)
    assert torch.equal(index.counts, full.counts)
    assert torch.equal(index.indices, full.indices)
    assert error(out, attention(q, k, v, full)) < TOLERANCE[dtype]


@pytest.mark.parametrize("kernel", ["reference", "triton"])
def test_more_is_skipped_and_lost_as_the_threshold_rises(kernel: str) -> None:
    """What the paper claims: skipped tiles rise with the threshold, and each key that is left out weighs less than threshold
    times its query's largest, so that K of them move the output by no more than 2 K · threshold · |v|."""
    if kernel == "triton" and torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    q, k, v = inputs((1, 1, 1, 256, 256, 32), torch.float32)
    full = BlockIndex.full(1, 1, q_block=16, k_block=16, q_len=256, k_len=256)
    dense = attention(q, k, v, full)
    density, lost = [], []
    for threshold in (0.0, 1e-3, 1e-2, 1e-1, 1.0):
        out, index = skip_softmax_attention(q, k, v, SkipRule(threshold, 16, 16), kernel=kernel)
        density.append(float(index.density().mean()))
        lost.append(float((out.double() - dense).abs().max()))
        assert lost[-1] <= 2 * 256 * threshold * float(v.abs().max()) + 1e-5
    assert density == sorted(density, reverse=True)
    assert len(set(density)) == 5
    assert lost[1] < 0.01 < lost[-1]


@pytest.mark.parametrize("kernel", ["reference", "triton"])
def test_strided_inputs_and_unwritten_memory(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = "cuda" if torch.cuda.is_available() and kernel == "triton" else "cpu"
    q, k, v = inputs(SHAPES[1], torch.float16, device)
    rule = SkipRule(0.1, 32, 16)
    expected, index = skip_softmax_attention(q, k, v, rule, kernel=kernel)
    real, real_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *a, **kw: poisoned(real(*a, **kw)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **kw: poisoned(real_like(*a, **kw)))
    q, k, v = q.transpose(1, 2).contiguous().transpose(1, 2), k.mT.contiguous().mT, v.mT.contiguous().mT
    out, again = skip_softmax_attention(q, k, v, rule, kernel=kernel)
    torch.testing.assert_close(out, expected)
    assert torch.equal(again.to_mask(), index.to_mask())


def poisoned(x: Tensor) -> Tensor:
    return x.fill_(float("nan") if x.is_floating_point() else 7_000_000)


def test_a_tile_that_one_query_needs_is_computed_for_all() -> None:
    """Key tile 2 holds the best key of one query of sixteen; tile 1 that of none."""
    q, k = torch.zeros(1, 1, 64, 4), torch.zeros(1, 1, 64, 4)
    q[..., 0] = 1.0
    q[0, 0, 50] = torch.tensor([1.0, 5.0, 0.0, 0.0])
    k[:, :, :16, 0], k[:, :, 16:48, 0], k[0, 0, 40, 1] = 10.0, -10.0, 10.0
    index = skip_softmax_attention(q, k, k, SkipRule(0.01, 16, 16), scale=1.0)[1]
    assert index.to_mask()[0, 0].tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, False, True, False],
        [True, False, True, True],
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kernel": "hopper"}, "kernel=hopper has no skipping of tiles inside it; choose one of: auto, reference, triton"),
        ({"scale": -1.0}, "scale=-1.0: must be above 0"),
    ],
)
def test_what_cannot_run_is_one_clear_line(given: dict[str, object], message: str) -> None:
    q, k, v = inputs(SHAPES[0], torch.float32)
    with pytest.raises(ValueError, match=message):
        skip_softmax_attention(q, k, v, SkipRule(0.1, 16, 16), **given)  # type: ignore[arg-type]


def test_a_threshold_out_of_range_is_one_clear_line() -> None:
    for threshold in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="must be at least 0"):
            SkipRule(threshold, 16, 16)


def test_kernels_by_name() -> None:
    where = {"device": torch.device("cpu"), "dtype": torch.float32, "head_dim": 64, "q_block": 16, "k_block": 16}
    assert resolve_skip("auto", **where) == "reference"  # type: ignore[arg-type]
    gpu = where | {"device": torch.device("cuda"), "dtype": torch.bfloat16}
    assert resolve_skip("auto", **gpu) == "triton"  # type: ignore[arg-type]
    assert resolve_skip("auto", **gpu | {"dtype": torch.float32}) == "reference"  # type: ignore[arg-type]
    for change, reason in (
        ({"dtype": torch.float32}, "it takes float16 and bfloat16, not torch.float32"),
        ({"q_block": 48}, "it takes tiles of 16, 32, 64, 128, not 48 and 16"),
        ({"head_dim": 40}, "it takes head dims 16, 32, 64, 96, 128, 256, not 40"),
    ):
        with pytest.raises(ValueError, match=reason):
            resolve_skip("triton", **gpu | change)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_never_waits_for_the_device() -> None:
    q, k, v = inputs((1, 4, 2, 512, 512, 128), torch.bfloat16, "cuda")
    rule = SkipRule(0.1, 128, 128)
    skip_softmax_attention(q, k, v, rule)
    torch.cuda.set_sync_debug_mode("error")
    try:
        skip_softmax_attention(q, k, v, rule)
    finally:
        torch.cuda.set_sync_debug_mode("default")
