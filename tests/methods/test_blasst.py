"""BLASST hands on a rule: what it says, and what the harness makes of it."""

from __future__ import annotations

import itertools

import pytest
import torch
from attention_kernels import sparse_attention
from attention_kernels.dense import dense_attention
from attention_kernels.skip_softmax import SkipRule, skip_softmax_attention

import methods
from harness.arms.calibration import calibrate
from harness.core.errors import UserError
from harness.measure.latency import time_attention
from harness.models.bridge import Bridge
from tests.harness.tiny import load, tokens
from tests.methods import bundled
from tests.methods.support import layer

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_threshold_falls_with_the_length() -> None:
    method = methods.build("blasst", block_size=128)
    assert method.knobs() == {"factor": 1000.0}
    assert method.calibrates() is None
    for length in (500, 4000):
        assert method.select(layer(length)) == SkipRule(1000 / length, 128, 128)
    assert method.select(layer(100, 2000)) == SkipRule(0.5, 128, 128)  # a chunk: all keys so far
    assert methods.build("blasst", factor=0.0).select(layer(64)) == SkipRule(0.0, 64, 64)
    assert methods.build("blasst", sparsity=0.0).select(layer(64)) == SkipRule(0.0, 64, 64)


def test_no_skipping_is_dense_in_a_model() -> None:
    loaded, ids = load("llama"), tokens(2, 90)
    with torch.no_grad():
        dense = loaded.model(ids, use_cache=False).logits
    with Bridge(loaded, methods.build("blasst", sparsity=0.0, block_size=16)) as bridge:
        torch.testing.assert_close(loaded.model(ids, use_cache=False).logits, dense, atol=1e-4, rtol=1e-4)
    assert bridge.prefill_densities() == [1.0, 1.0]
    assert {stats["kernel"] for stats in bridge.stats()} == {"reference"}


def test_density_is_of_the_tiles_that_ran_and_a_sparsity_is_calibrated() -> None:
    loaded, method = load("llama"), methods.build("blasst", sparsity=0.6, block_size=16)
    knob = method.calibrates()
    assert knob is not None
    calibrated = calibrate(loaded, method, knob, {"t": [tokens(1, 300)[0].tolist()]}, 0.4).reached
    assert calibrated.density == pytest.approx(0.4, abs=0.02)
    assert method.knobs() == {"factor": calibrated.value}
    timing = time_attention(loaded, method, tokens(1, 300)[0].tolist(), repeats=1, max_seconds=1)
    assert timing.density == pytest.approx(calibrated.density, abs=0.03)  # there all layers before are dense
    assert timing.kernel == "reference"
    assert timing.density < timing.kept_mass < 1


def test_flop_counts_the_first_product_of_every_tile() -> None:
    q, k, v = (torch.randn(2, heads, 100, 16, generator=torch.Generator().manual_seed(0)) for heads in (4, 2, 2))
    rule = SkipRule(2.0, 16, 16)
    ran = skip_softmax_attention(q, k, v, rule)[1]
    causal, tiles = 2 * 4 * 7 * 8 // 2, int(ran.counts.sum())
    assert tiles < causal
    assert sparse_attention.flop(q, rule, ran) == 2 * 16 * 16 * 16 * (causal + tiles)
    assert sparse_attention.flop(q, ran, ran) == 2 * 16 * 16 * 16 * 2 * tiles


def test_a_kernel_that_cannot_skip_is_one_clear_line() -> None:
    loaded, ids = load("llama"), tokens(1, 40)
    with (
        Bridge(loaded, methods.build("blasst", block_size=16), sparse_kernel="sdpa"),
        pytest.raises((UserError, ValueError), match="kernel=sdpa has no skipping of tiles inside it; choose one of: auto"),
    ):
        loaded.model(ids, use_cache=False)


def test_a_smaller_threshold_loses_less_on_a_trained_model() -> None:
    """The paper's claim: what is skipped weighs little. Output error, relative, mean over the bundled model's layers."""
    inputs = bundled.layers("niah_multikey_1", 1024)
    dense_outputs = [dense_attention(x.q, x.k, v, scale=x.scale) for x, v in inputs]
    losses = []
    for factor in (1.0, 100.0, 1e4):
        rule = SkipRule(factor / 1024, 32, 32)
        density, lost = [], []
        for (x, v), dense in zip(inputs, dense_outputs, strict=True):
            out, ran = skip_softmax_attention(x.q, x.k, v, rule, scale=x.scale)
            density.append(float(ran.density().mean()))
            lost.append(float((out - dense).norm() / dense.norm()))
        losses.append((sum(density) / 6, sum(lost) / 6))
    for (more, less_lost), (fewer, more_lost) in itertools.pairwise(losses):
        assert fewer < more - 0.05
        assert less_lost < more_lost
    assert losses[0][1] < 0.01


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"sparsity": 0.5, "factor": 3.0}, r"sparsity=0.5 and factor=3.0: give one of them"),
        ({"factor": -1.0}, r"factor=-1.0: must be at least 0"),
    ],
)
def test_bad_knobs_are_one_clear_line(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.build("blasst", **knobs)
