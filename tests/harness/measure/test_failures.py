"""Failures are data: each is recorded with its kind, costs its cell alone, and is told of in one table at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import save_file

from harness.core.device_memory import is_device_error, is_out_of_memory
from harness.core.errors import NotFiniteError, UserError, WeightsError
from harness.core.time_limit import TimeIsUp, check_time, time_limit
from harness.jobs import engines
from harness.jobs.engines import Workplace
from harness.jobs.work import Outcome, Work, read_outcome
from harness.jobs.worker import do_work
from harness.measure import cells, knob_values
from harness.measure import generate_batches as generating
from harness.measure.cell_clock import CellClock
from harness.measure.failures import kind_of
from harness.models import bridge as bridge_module
from harness.models import generate as generate_module
from harness.study.store import Store
from harness.study.verdict import is_baseline
from harness.tasks import registry

Command = Callable[..., int]
BARE = ("checks=false", "report=false", "samples=1", "progress=false")
ILLEGAL = "CUDA error: an illegal memory access was encountered\nmore"


def failed(tmp_path: Path) -> list[tuple[str, str]]:
    """The methods and kinds of all recorded failures."""
    return [
        (c["identity"]["method"], c["kind"]) for c in Store(tmp_path / "results/toy").cells.read() if c["status"] == "failed"
    ]


def sampled(tmp_path: Path) -> list[int]:
    return sorted(sample["index"] for sample in Store(tmp_path / "results/toy").samples.read())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("x"), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"), "memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "memory"),
        (RuntimeError(ILLEGAL), "device"),
        (torch.AcceleratorError("device-side assert"), "device"),
        (RuntimeError("Triton Error [CUDA]: misaligned address"), "device"),
        (TimeIsUp(), "time_out"),
        (NotFiniteError("x"), "not_finite"),
        (WeightsError("x"), "weights"),
        (UserError("length=1: too short"), "input"),
        (ValueError("a method's own"), "error"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_kind_of_an_error(error: Exception, kind: str) -> None:
    assert kind_of(error).name == kind
    assert not (is_out_of_memory(error) and is_device_error(error))


def test_what_is_not_finite_fails_for_good_until_it_is_asked_for(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attend, asked = bridge_module.attend, list[int]()

    def broken(*args: Any, **options: Any) -> Any:
        asked.append(1)
        out, ran = attend(*args, **options)
        return out * float("nan"), ran

    with monkeypatch.context() as patch:
        patch.setattr(bridge_module, "attend", broken)
        assert command(*toy, *BARE) == 1
        assert failed(tmp_path) == [("block_topk", "not_finite")] and sampled(tmp_path) == [0]
        told = capsys.readouterr().out
        assert "1 of 1 samples: logits are NaN or infinite" in told and "1 failed; a line of each" in told
        calls = len(asked)
        assert command(*toy, *BARE) == 1 and len(asked) == calls, "it would be NaN again"
        table = capsys.readouterr().out
        assert "NaN or infinite" in table and "not tried again" in table and "retry_failed=true" in table.replace("\n", " ")
    assert command(*toy, *BARE, "retry_failed=true") == 0 and sampled(tmp_path) == [0, 0]
    assert capsys.readouterr().out == ""


def test_a_score_that_no_record_holds_costs_its_cell(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([1.0, float("nan"), 1.5, 1.0])  # dense, then the method

    monkeypatch.setattr(type(registry.get("niah_single_1")), "score", lambda *_: next(scores))
    assert command(*toy, *BARE, "samples=2") == 1
    assert failed(tmp_path) == [("dense", "not_finite"), ("block_topk", "input")] and sampled(tmp_path) == [0, 1]


def test_a_cell_ends_in_time_and_keeps_what_is_done(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two samples that are decoded together the one that has stopped stays; the next run begins with the other."""
    steps, decode = list[int](), generate_module._decode

    def late(loaded: Any, cache: Any, token: Any, finite: Any, lengths: Any, limits: list[int], *rest: Any) -> Any:
        steps.append(0)
        return decode(loaded, cache, token, finite, lengths, [1, *limits[1:]] if len(limits) > 1 else limits, *rest)

    def check() -> None:
        if steps and len(steps) == 1:
            raise TimeIsUp

    with monkeypatch.context() as patch:
        patch.setattr(generate_module, "_decode", late)
        patch.setattr(bridge_module, "check_time", check)
        assert command(*toy, *BARE, "samples=2", "method=dense", "batch_tokens=100000", "cell_minutes=90") == 1
    (state,) = [c for c in Store(tmp_path / "results/toy").cells.read() if c["status"] == "failed"]
    assert state["kind"] == "time_out" and state["reason"] == "cell_minutes=90: it was not done in that time"
    assert state["summary"] == {"cell_minutes": 90.0, "finished": 1} and state["traceback"] == ""
    assert len(sampled(tmp_path)) == 1 and "time-out" in capsys.readouterr().out
    assert command(*toy, *BARE, "samples=2", "method=dense", "cell_minutes=90") == 0 and sampled(tmp_path) == [0, 1]


def test_time_is_asked_for_between_layers_and_steps() -> None:
    check_time()
    with time_limit(None), time_limit(1e-9), time_limit(100), pytest.raises(TimeIsUp):
        check_time()
    with time_limit(100):
        check_time()


def test_a_batch_is_shared_out_by_samples() -> None:
    clock = CellClock(1)
    assert CellClock(None).left(["a"]) is None and CellClock(None).over(["a"]) == []
    assert clock.left(["a", "a", "a", "b"]) == 80, "a has all of its minute at three quarters of 80 seconds"
    clock.take(["a", "a", "a", "b"], 40)
    assert clock.seconds == {"a": 30, "b": 10} and clock.left(["b"]) == 50
    clock.end(["b", "a"])
    assert clock.over(["b", "a", "b"]) == ["a"], "the one with the least left"


def test_a_device_that_is_lost_ends_the_process_use_of_it(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def illegal(*_: Any, **__: Any) -> None:
        raise RuntimeError(ILLEGAL)

    monkeypatch.setattr(generating, "generate", illegal)
    for module in (generating, cells):
        monkeypatch.setattr(module, "is_usable", lambda device: False)
    assert command("-m", *toy, *BARE, "sparsity=0.5,0.75,0.9", "task=[niah_single_1,niah_single_2]") == 1
    assert failed(tmp_path) == [("dense", "device")], "the cell it happened in; the others are still to be measured"
    told = capsys.readouterr().out
    assert "device error" in told and "the device takes no more work of this process" in told
    assert "2 more jobs were not begun: run the same command again" in told
    assert {c["status"] for c in Store(tmp_path / "results/toy").latest_cells().values()} == {"failed", "running"}


def test_memory_is_tried_a_second_time_and_the_sweep_tells_once(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dense attention that failed is not tried by the next job, and the cells beside it are named."""
    real, asked = generating.generate, list[int]()

    def full(*args: Any, **options: Any) -> Any:
        asked.append(1)
        if len(asked) <= 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **options)

    monkeypatch.setattr(generating, "generate", full)
    assert command("-m", *toy, *BARE, "sparsity=0.5,0.75") == 1
    assert len(asked) == 4 and failed(tmp_path) == [("dense", "memory")]
    told = capsys.readouterr().out
    assert told.count("failed: dense") == 1 and "out of memory" in told
    assert told.endswith(
        "nothing to compare with: block_topk at 1024, sparsity 0.5 (niah_single_1); block_topk at 1024, sparsity 0.75 "
        "(niah_single_1)\n"
    )
    assert command("-m", *toy, *BARE, "sparsity=0.5,0.75") == 0, "the same command tries it again"


def test_workers_of_a_command_know_what_failed_in_another(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def here(parts: Sequence[Work], place: Workplace) -> list[Outcome | None]:
        GlobalHydra.instance().clear()  # of the command, which workers elsewhere don't share
        return [read_outcome(json.dumps(vars(do_work(part)))) for part in parts]

    def never(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setitem(engines.ENGINES, "processes", here)
    monkeypatch.setattr(generating, "generate", never)
    assert command("-m", *toy, *BARE, "sparsity=0.5,0.75", "devices=cpu:2") == 1
    assert failed(tmp_path) == [("dense", "memory"), ("block_topk", "memory"), ("block_topk", "memory")]
    assert "3 failed; a line of each" in capsys.readouterr().out
    (launch,) = {run["launch"] for run in Store(tmp_path / "results/toy").runs.read()}
    assert launch


def test_gates_of_another_model_cost_their_arm_in_a_sweep(
    command: Command, toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, value in enumerate((0.0, float("nan"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file({"nonsense": torch.full((1,), value)}, str(folder / "gates-64.safetensors"))
    assert command("-m", *toy, *BARE, "method=seer,streaming_llm", "model.gates=0,1") == 1
    assert failed(tmp_path) == [("seer", "weights")] and len(sampled(tmp_path)) == 2, "one cell: it has no weights"
    state = next(c for c in Store(tmp_path / "results/toy").cells.read() if c["status"] == "failed")
    assert "gates-64.safetensors does not fit toy" in state["reason"] and state["summary"] == {"lacks": "weights_hash"}
    captured = capsys.readouterr()
    assert captured.err == "" and "weights refused" in captured.out


def test_a_search_that_fails_costs_its_arm(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(knob_values, "calibrate", full)
    assert command(*toy, *BARE, "method=xattention") == 1
    assert failed(tmp_path) == [("xattention", "memory")]
    assert [is_baseline(c) for c in Store(tmp_path / "results/toy").latest_cells().values() if c["status"] == "ok"] == [True]


@pytest.mark.parametrize("job", ["latency", "kept_mass", "densities"])
def test_what_has_no_cell_is_told_of_too(
    job: str, command: Command, toy: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def up() -> None:
        raise TimeIsUp

    monkeypatch.setattr(bridge_module, "check_time", up)
    assert command(*toy, f"job={job}", "report=false", "samples=1", "cell_minutes=0.5") == 1
    told = capsys.readouterr().out
    assert "cell_minutes=0.5: it was not done in that time" in told and "time-out" in told


def test_bad_limits(command: Command, toy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("0", "-1", "x", "true", ".nan", "1e9"):
        assert command(*toy, f"cell_minutes={value}") == 2
        assert "must be null or a number of minutes above 0" in capsys.readouterr().err
    assert command(*toy, "retry_failed=1") == 2


def test_settings_of_failures_leave_identities_alone(command: Command, toy: list[str], tmp_path: Path) -> None:
    for more in ((), ("cell_minutes=600", "retry_failed=true")):
        assert command(*toy, *BARE, "method=dense", *more) == 0
    assert sampled(tmp_path) == [0]
