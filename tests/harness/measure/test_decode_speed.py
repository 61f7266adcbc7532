"""Decoding speed in job=latency: what the steps decode, what is recorded of a batch that fails, rows, resuming, bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.core.errors import UserError
from harness.measure.latency import decoding as decoding_module
from harness.measure.latency import time_decoding
from harness.measure.latency.decoding import BASELINE, METHOD
from harness.measure.latency.limits import TimingLimits, timing_limits
from harness.models.attention_interface import attached
from harness.models.batch_cache import BatchCache
from harness.models.bridge import Bridge
from harness.models.decoder import Decoder
from harness.models.loading import wrap_model
from methods import decode
from methods.decode.parts.base import DecodeMethod
from tests.harness.measure.study_files import board, lines
from tests.harness.settings import tiny_shape
from tests.harness.tiny import Fixed, build, shared, tokens

Command = Callable[..., int]
PROMPT = tokens(100).tolist()


def quest(**knobs: Any) -> DecodeMethod:
    return decode.build("quest", budget=48, dense_layers=0, **knobs)


def test_rounds_decode_all_sequences_at_the_same_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every round of both kinds takes the same steps in the same columns, after a prefill by the arm's method."""
    calls: list[tuple[bool, tuple[int, ...], int]] = []
    attend = Bridge.decode

    def noted(self: Bridge, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if layer == 0 and not self._record:
            calls.append((self.decoder is not None, tuple(q.shape[:3:2]), k.shape[2]))
        return attend(self, layer, q, k, v, **kwargs)

    monkeypatch.setattr(Bridge, "decode", noted)
    method = Fixed(keep="ends")
    timing = time_decoding(shared("llama"), method, quest(), PROMPT, batches=(3, 1), steps=4, repeats=2, max_seconds=60)
    assert {(layer, queries, keys) for layer, queries, keys in method.seen} == {(0, 95, 95), (1, 95, 95)}
    steps = [96, 97, 98, 99, 100]
    turns = [False, True, True, False]  # there and back
    assert calls == [(sparse, (batch, 1), keys) for batch in (1, 3) for sparse in turns for keys in steps]
    assert not timing.failed and list(timing.batches) == [1, 3]
    for batch in timing.batches.values():
        assert {name: times.repeats for name, times in batch.times.items()} == {BASELINE: 2, METHOD: 2}
    assert timing.density == pytest.approx(3 / 7) and timing.kernels == ("sparse reference",)
    record = timing.as_record()
    milliseconds = timing.batches[3].times[METHOD].median
    assert record["decode_tokens_s"]["3"] == pytest.approx(3 * 4 / milliseconds * 1e3)
    for batch in ("1", "3"):
        rates = [record[f"decode_tokens_s{end}"][batch] for end in ("_low", "", "_high")]
        assert rates == sorted(rates) and len(record["decode_rounds"][batch][METHOD]) == 2
    assert not attached


def _work(method: DecodeMethod | None) -> Any:
    """Rounds of three timed steps at the end of PROMPT."""
    return decoding_module._Work(shared("llama"), method, PROMPT, 3, {}, 1, 1.0, False)


def test_a_batch_decodes_what_its_sequences_do_alone() -> None:
    """Each sequence of a batch gives the tokens that the one it was copied from gives, densely and by a method."""

    def decoded(cache: BatchCache, method: DecodeMethod | None) -> torch.Tensor:
        work = _work(method)
        rounds = decoding_module._Rounds(work, cache)
        with torch.inference_mode(), work.bridge(record=False):
            for _ in range(2):
                rounds.begin()
                rounds.run()
                assert cache.get_seq_length() == len(PROMPT)
        return rounds._token

    with torch.inference_mode():
        source = decoding_module._prefilled(_work(None), None, 32)
        copies = source.repeated(3)
    assert copies.layers[0].keys.shape[0] == 3 and copies.layers[0].keys[2].data_ptr() != source.layers[0].keys.data_ptr()
    for method in (None, quest()):
        alone = decoded(source, method)
        assert decoded(copies, method).tolist() == alone.tolist() * 3
    with pytest.raises(ValueError, match="a cache of 3 rows: only one row can be repeated"):
        copies.repeated(2)


def test_a_batch_that_fails_costs_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, started = shared("llama"), Decoder.select

    def full(self: Decoder, layer: int, q: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if q.shape[0] == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more")
        return started(self, layer, q, *args, **kwargs)

    monkeypatch.setattr(Decoder, "select", full)
    timing = time_decoding(loaded, None, quest(), PROMPT, batches=(1, 2, 3, 10**6), steps=1, repeats=1)
    assert list(timing.batches) == [1, 3] and list(timing.failed) == [2, 10**6]
    assert timing.failed[2] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert timing.failed[10**6].startswith("out of memory: keys and values of 999999 more sequences of 100 tokens take ")
    assert not attached
    record = timing.as_record()
    assert set(record["decode_failed"]) == {"2", "1000000"} and set(record["decode_tokens_s"]) == {"1", "3"}
    short = time_decoding(loaded, None, None, PROMPT[:5], batches=(1, 2), steps=4)
    assert set(short.failed.values()) == {
        "a prompt of 5 tokens: it must have more than the 5 that are decoded (job.decode_steps)"
    }


def test_both_are_replayed_as_graphs_or_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(_: Any, begin: Callable[[], None], run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        return lambda: (begin(), run())[0]

    def time_one() -> decoding_module.DecodeTiming:
        return time_decoding(shared("llama"), None, quest(), PROMPT, batches=(2,), steps=1, repeats=1, graph=True)

    monkeypatch.setattr(decoding_module, "captured_round", begun)
    timing = time_one()
    assert (timing.batches[2].timing, timing.notices) == ("graph", [])
    captured = []

    def only_one(*arguments: Any) -> Callable[[], None]:
        captured.append(arguments)
        if len(captured) > 1:
            raise RuntimeError("operation not permitted when stream is capturing")
        return begun(*arguments)

    monkeypatch.setattr(decoding_module, "captured_round", only_one)
    timing = time_one()
    assert timing.batches[2].timing == "events" and set(timing.batches[2].times) == {BASELINE, METHOD}
    (notice,) = timing.notices
    assert notice.startswith("decoding a batch of 2: timed step by step, as no CUDA graph could be made of it (RuntimeError:")


@pytest.mark.gpu
@pytest.mark.parametrize("method", [None, "quest", "streaming"])
def test_a_graph_decodes_what_python_does(method: str | None) -> None:
    """Replayed again and again, the steps of a round write the keys that they write one by one, and leave the stream alone."""
    device = torch.device("cuda")
    loaded = wrap_model(build("llama"), None, name="llama", device=device, dtype=torch.float32)
    decoder = None if method is None else decode.build(method, budget=48, dense_layers=0)
    work = decoding_module._Work(loaded, decoder, PROMPT, 20, {}, 2, 60.0, True)
    stream = torch.cuda.current_stream(device)
    with torch.inference_mode():
        cache = decoding_module._prefilled(work, None, None).repeated(3)
        rounds = decoding_module._Rounds(work, cache)
        with work.bridge(record=False):
            rounds.begin()
            rounds.run()
            keys = [layer.keys.clone() for layer in cache.layers]
            replay = decoding_module.captured_round(loaded.model, rounds.begin, rounds.run, device)
            for layer in cache.layers:
                layer.keys[:, :, work.context + 1 :] = 0
            for _ in range(3):
                replay()
        assert torch.cuda.current_stream(device) == stream
    for layer, expected in zip(cache.layers, keys, strict=True):
        torch.testing.assert_close(layer.keys, expected)
    timing = time_decoding(loaded, None, decoder, PROMPT, batches=(1, 3), steps=4, repeats=2, graph=True)
    assert not timing.failed and timing.notices == []
    assert all(batch.timing == "graph" and batch.peak_mib is not None for batch in timing.batches.values())


@pytest.mark.gpu
def test_a_step_that_waits_is_timed_without_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = wrap_model(build("llama"), None, name="llama", device=torch.device("cuda"), dtype=torch.float32)
    select = Decoder.select

    def waiting(self: Decoder, layer: int, q: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        assert float(q.abs().max()) >= 0
        return select(self, layer, q, *args, **kwargs)

    monkeypatch.setattr(Decoder, "select", waiting)
    timing = time_decoding(loaded, None, quest(), PROMPT, batches=(2,), steps=2, repeats=2, graph=True)
    assert timing.batches[2].timing == "events" and len(timing.notices) == 1 and "synchroniz" in timing.notices[0]
    assert torch.cuda.get_sync_debug_mode() == 0


def test_rows(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sparse prefill and sparse decoding are one row, beside dense decoding; dense attention has one of its own."""
    arguments = tiny_shape("job=latency", "length=96", "block_size=16", "method=block_topk", "device=cpu", "study=toy")
    arguments += ["sparsity=0.5", "latency_repeats=1", "job.decode_batches=[2,1,1000000]", "job.decode_steps=2"]
    arguments += ["decode=streaming", "decode.budget=32"]
    assert command(*arguments) == 0
    said = capsys.readouterr()
    assert "decoding a batch of 1000000 is not timed: out of memory" in said.out + said.err
    assert "decoding, tokens/s by batch" in said.out
    study = tmp_path / "results" / "toy"
    dense, sparse = lines(study, "latency")
    assert (dense["decode_density"], sparse["decode_density"]) == (None, pytest.approx(2 / 6))
    for record in (dense, sparse):
        assert set(record["decode_tokens_s"]) == set(record["dense_decode_tokens_s"]) == {"1", "2"}
        assert list(record["decode_failed"]) == ["1000000"] and record["decode_timing"] == {"1": "events", "2": "events"}
    full, row = board(study)
    assert full["decode_speedup"] == "1=1;2=1" and full["decode_density"] == ""
    speeds = dict(pair.split("=") for pair in row["decode_tokens_s"].split(";"))
    assert {int(batch): float(speed) for batch, speed in speeds.items()} == pytest.approx(
        {int(batch): speed for batch, speed in sparse["decode_tokens_s"].items()}, rel=1e-5
    )
    assert row["decode_failed"].startswith("1000000=out of memory") and row["decode_timing"] == "1=events;2=events"
    assert float(row["decode_density"]) == pytest.approx(1 / 3, rel=1e-5) and float(row["density"]) < 1
    assert row["decode"].endswith("(sparse reference)")
    assert "'job.decode_batches=[1,2,1000000]' job.decode_steps=2 job.decode_graph=false" in row["settings"]
    assert command(*arguments) == 0 and len(lines(study, "latency")) == 2, "recorded, the failed batch too"


def test_what_is_timed() -> None:
    def limits(**options: object) -> TimingLimits:
        return timing_limits(20, 4.0, "latency", options)

    assert limits().identity == limits(decode_batches=[], decode_steps=3).identity == [20, 4.0], "as recorded before"
    assert limits(decode_batches=[4, 1]).decode_batches == (1, 4) and limits(decode_batches=2).decode_batches == (2,)
    assert limits(decode_batches=[4, 1]).identity == [20, 4.0, {"decode": [(1, 4), 16, False]}]
    assert timing_limits(20, 4.0, "evaluate", {"decode_batches": [1]}) == TimingLimits(20, 4.0)


@pytest.mark.parametrize(
    "batches",
    [[0], [-1], [1, 1], [1, True], ["1"], "fast", None, [[1]], [1.5], [10**7], {"a": 1}],
)
def test_refuses_batches(batches: object) -> None:
    with pytest.raises(UserError, match=r"^job.decode_batches=.*: must be a list of different whole numbers from 1 to 1000000"):
        timing_limits(20, 4.0, "latency", {"decode_batches": batches})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["job.decode_batches=[0]"], "job.decode_batches=[0]: must be a list of different whole numbers"),
        (["job.decode_batches=null"], "job.decode_batches=null: must be a list of different whole numbers"),
        (["job.decode_batches=[1]", "job.decode_steps=0"], "job.decode_steps=0: must be a whole number of at least 1"),
        (["job.decode_batches=[1]", "length=17"], "job.decode_steps=16: these and one step before them must leave some"),
        (["job.decode_batches=[1]", "job.decode_graph=true"], "job.decode_graph=true: CUDA graphs need a GPU, and this runs"),
        (["job.decode_steps=4"], "job.decode_steps says how decoding is timed, and none is: say of which batches"),
        (["decode=quest"], "or time decoding too, as job.decode_batches=[1,4] does"),
    ],
)
def test_bad_input_is_one_line(command: Command, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert command(*tiny_shape("job=latency", "length=96", "device=cpu"), *arguments) == 2
    printed = capsys.readouterr().err
    assert says in printed and printed.count("\n") == 1
