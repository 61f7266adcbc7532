"""The numbers of a timing hang together, on a CPU with tiny models."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import Tensor

import methods
from harness.core.errors import UserError
from harness.measure.latency import time_attention, time_prefill
from harness.measure.latency.attention import spread_layers
from harness.measure.latency.timing import Times, nothing_timed, take_turns
from harness.models import bridge as bridge_module
from harness.models.attention_interface import attached
from harness.models.bridge import Bridge
from harness.models.loading import wrap_model
from methods.parts.base import LayerInputs
from tests.harness.tiny import VOCAB, WINDOW, Fixed, build, load, shared, tokens

pytestmark = pytest.mark.filterwarnings("ignore")
CPU = torch.device("cpu")


def test_times() -> None:
    times = Times.of([float(x) for x in range(11)])
    assert (times.median, times.low, times.high, times.repeats) == (5, 1, 9, 11)
    assert Times.of([3.0]) == Times(3, 3, 3, 1)


def test_times_of_the_same_rounds_go_together() -> None:
    """A machine that slows down slows both calls of a round: of a median each, one may be of a slow round and one of a fast."""
    total, dense = Times.of([1.0, 1.0, 10.0]), Times.of([3.0, 30.0, 30.0])
    assert dense.median / total.median == 30 and dense.beside(total).median / total.median == 3
    assert (dense.beside(total).low, dense.beside(total).repeats, total.beside(total)) == (dense.low, 3, total)
    assert nothing_timed(total).beside(total).median == 0 and total.beside(nothing_timed(total)) == total
    with pytest.raises(ValueError, match="3 and 2 rounds: only times of the same rounds go together"):
        dense.beside(Times.of([1.0, 2.0]))


def test_turns_measure_sleep_and_keep_to_their_time() -> None:
    functions = {"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.01)}
    times = take_turns(functions, CPU, repeats=3, max_seconds=10)
    assert 2 <= times["short"].median < 10 <= times["long"].median
    assert times["long"].repeats == 3
    began = time.perf_counter()
    assert take_turns(functions, CPU, repeats=10_000, max_seconds=0.1)["long"].repeats < 10
    assert time.perf_counter() - began < 1
    assert take_turns(functions, CPU, repeats=5, max_seconds=0)["long"].repeats == 1
    assert take_turns(functions, CPU, repeats=5, max_seconds=0, at_least=3)["long"].repeats == 3
    assert take_turns(functions, CPU, repeats=2, max_seconds=0, at_least=3)["long"].repeats == 2


def test_attention() -> None:
    loaded, method = load("llama"), Fixed(keep="ends")
    timing = time_attention(loaded, method, tokens(128).tolist(), repeats=3, max_seconds=5)
    assert timing.layers == (0, 1)
    assert timing.density == pytest.approx((1 + 7 * 2) / 36)
    assert timing.kernel == "sdpa"
    assert timing.dense_kernel in timing.dense_all
    assert timing.dense_ms == min(timing.dense_all.values())
    assert not {"reference", "sdpa_math"} & timing.dense_all.keys()
    assert 0 < timing.total_low <= timing.total_ms <= timing.total_high
    assert timing.speedup == pytest.approx(timing.dense_ms / timing.total_ms)
    assert timing.pct_ideal == pytest.approx(100 * timing.dense_ms * timing.density / timing.total_ms)
    flop = 4 * 16 * 4 * 16 * 16 * (1 + 7 * 2)
    assert timing.tflops == pytest.approx(flop / (timing.attention_ms * 1e9))
    assert timing.peak_mib is None
    assert timing.repeats >= 1
    assert loaded.model.config._attn_implementation == "sdpa"
    assert not attached


def test_chosen_layers_and_kernels() -> None:
    timing = time_attention(
        load("llama"), Fixed(), tokens(64).tolist(), layers=[0], dense_kernels=["reference"], repeats=1, max_seconds=1
    )
    assert (timing.layers, timing.global_layers) == ((0,), 2)
    assert list(timing.dense_all) == ["reference"] and timing.full_row_kernel is None
    method = methods.build("random", block_size=16, sparsity=0.2, last=1)
    with_full_rows = time_attention(
        load("llama"), method, tokens(64).tolist(), layers=[0], sparse_kernel="reference", repeats=1, max_seconds=1
    )
    assert (with_full_rows.kernel, with_full_rows.full_row_kernel) == ("reference", "reference")


class FirstDense(Fixed):
    """Leaves the first layer dense, and asks in later ones what it saw there."""

    def select(self, x: LayerInputs) -> Any:
        chosen = super().select(x)
        assert self.seen[0][0] == 0, "a layer that is not timed was passed over"
        return chosen if x.layer else None


def test_layers_that_are_not_timed() -> None:
    """A method sees them all the same, and the density of the prefill, which is judged, is of all layers."""
    ids, loaded = tokens(128).tolist(), shared("llama")
    limits: dict[str, Any] = {"repeats": 1, "max_seconds": 0}
    ends = (1 + 7 * 2) / 36
    for layers, density in (([0], 1.0), ([1], ends), (None, (1 + ends) / 2)):
        timing = time_attention(loaded, FirstDense(), ids, layers=layers, dense_kernels=["sdpa"], **limits)
        assert (timing.density, timing.global_layers) == (pytest.approx(density), 2)
    assert time_prefill(loaded, FirstDense(), ids, **limits).density == pytest.approx((1 + ends) / 2)
    assert spread_layers(loaded, 128, 1) == [1] and spread_layers(loaded, 128, 2) == spread_layers(loaded, 128, 9) == [0, 1]
    assert spread_layers(shared("gemma3"), WINDOW, 9) == [0, 1] and spread_layers(shared("gemma3"), WINDOW + 1, 9) == [1]


@pytest.mark.parametrize("method", [None, Fixed(keep="none")])
def test_dense(method: Fixed | None) -> None:
    timing = time_attention(load("llama"), method, tokens(64).tolist(), repeats=2, max_seconds=2)
    assert timing.density == 1
    assert timing.kernel in timing.dense_all
    if method is None:  # it is one of the kernels that it is raced with, not timed a second time
        assert timing.total_ms == timing.attention_ms == timing.dense_all[timing.kernel]
        assert (timing.selection_ms, timing.speedup, timing.pct_ideal) == (0, 1, 100)
    assert timing.tflops == pytest.approx(4 * 16 * 4 * (64 * 65 / 2) / (timing.attention_ms * 1e9))


def test_sliding_layers_are_left_out() -> None:
    ids = tokens(64).tolist()
    assert time_attention(load("gemma3"), Fixed(), ids, repeats=1, max_seconds=1).layers == (1,)
    with pytest.raises(UserError, match="sliding window"):
        time_attention(load("gemma3"), Fixed(), ids, layers=[0, 1], repeats=1, max_seconds=1)
    with pytest.raises(UserError, match="every layer"):
        time_attention(load("mistral_window"), Fixed(), ids, repeats=1, max_seconds=1)


def test_refuses_layers_that_are_not_there() -> None:
    with pytest.raises(UserError, match="layers 0 to 1"):
        time_attention(load("llama"), Fixed(), tokens(64).tolist(), layers=[2])


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    loaded = wrap_model(build("llama"), None, name="llama", device="cuda", dtype=torch.bfloat16)
    ids = tokens(500).tolist()
    timing = time_attention(loaded, Fixed(keep="ends"), ids, repeats=5, max_seconds=60)
    assert timing.kernel == "triton"
    assert timing.repeats == 5
    assert timing.peak_mib is not None
    assert timing.peak_mib > 0
    assert 0 < timing.total_low <= timing.total_ms <= timing.total_high
    whole = time_prefill(loaded, Fixed(keep="ends"), ids, repeats=5)
    assert whole.peak_mib is not None
    assert whole.no_attention_ttft_ms > 0 and whole.ttft_ms > 0


def test_prefill() -> None:
    loaded, ids = load("llama"), tokens(64).tolist()
    for method in (None, Fixed()):
        timing = time_prefill(loaded, method, ids, repeats=3, max_seconds=5)
        assert 0 < timing.low <= timing.ttft_ms <= timing.high
        assert timing.repeats == 3
        assert timing.peak_mib is None
    with pytest.raises(UserError, match="repeats=0"):
        time_prefill(loaded, None, ids, repeats=0)


@pytest.mark.parametrize("family", ["llama_group3", "gemma3"])
@pytest.mark.parametrize("length", [1, 64])
def test_without_attention_everything_else_runs(family: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values are written as they are; no key is read but those of a sliding window, which methods leave as it is."""

    def never(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("attention ran")

    windows, attend = [], bridge_module.sliding_window_attention
    monkeypatch.setattr(bridge_module, "dense_attention", never)
    monkeypatch.setattr(bridge_module, "attend", never)
    monkeypatch.setattr(bridge_module, "sliding_window_attention", lambda *a, **k: windows.append(1) or attend(*a, **k))
    loaded, method = shared(family), Fixed()
    with torch.inference_mode(), Bridge(loaded, method) as bridge:
        with bridge.without_attention():
            out = loaded.model(tokens(1, length), use_cache=True)
        stats = {layer["layer"]: layer["kernel"] for layer in bridge.stats()}
        with pytest.raises(AssertionError, match="attention ran"):
            loaded.model(tokens(1, length))
    assert out.logits.shape == (1, length, VOCAB) and out.past_key_values.get_seq_length() == length
    local = {0} if family == "gemma3" and length > WINDOW else set()
    assert stats == {layer: "sliding_window" if layer in local else "none" for layer in (0, 1)}
    assert bool(windows) == bool(local) and len(method.seen) <= 1, "the last pass alone asked the method"


def test_a_prefill_without_attention_takes_turns_in_the_same_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    dense, sparse, without = bridge_module.dense_attention, bridge_module.attend, Bridge.without_attention

    def slow(name: str, attention: Any) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            ran.append(name)
            time.sleep(0.02)
            return attention(*args, **options)

        return run

    @contextmanager
    def noted(self: Bridge) -> Iterator[None]:
        ran.append("no_attention")
        with without(self):
            yield

    monkeypatch.setattr(bridge_module, "dense_attention", slow("baseline", dense))
    monkeypatch.setattr(bridge_module, "attend", slow("method", sparse))
    monkeypatch.setattr(Bridge, "without_attention", noted)
    timing = time_prefill(shared("llama"), Fixed(), tokens(64).tolist(), repeats=2)
    there = ["baseline", "method", "no_attention"]
    assert list(timing.rounds) == there and {len(rounds) for rounds in timing.rounds.values()} == {2}
    assert [name for name, _ in groupby(ran)] == ["method", *there, "method", "baseline"], "first for its density"
    assert ran.count("no_attention") == 2
    assert timing.no_attention_ttft_ms < min(timing.ttft_ms, timing.dense_ttft_ms) - 20
    ran.clear()
    baseline = time_prefill(shared("llama"), None, tokens(64).tolist(), repeats=1)
    assert list(baseline.rounds) == ["baseline", "no_attention"] and baseline.dense_ttft_ms == baseline.ttft_ms
    assert baseline.no_attention_ttft_ms < baseline.ttft_ms - 20
