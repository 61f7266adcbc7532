"""Runs of the toy model, end to end: dense beside the method, sweeps, kills, failures."""

from __future__ import annotations

import multiprocessing
import signal
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.measure import generate_batches as generating
from harness.measure import sweep
from harness.models import generate as generate_module
from harness.models import loading
from harness.study.columns import COLUMNS
from harness.tasks.sample import Sample
from tests.harness.measure.study_files import board, lines

Command = Callable[..., int]


@pytest.mark.usefixtures("pictures")
def test_dense_beside_the_method_on_the_same_samples(command: Command, toy: list[str], tmp_path: Path) -> None:
    arguments = [*toy, "latency=true", "latency_repeats=1", "latency_seconds=1", "batch_tokens=100000"]
    assert command(*arguments, "task.tasks=[niah_single_1,niah_single_2]") == 0
    study = tmp_path / "results" / "toy"
    samples, cells = lines(study, "samples"), lines(study, "cells")
    assert len(samples) == 2 * 2 * 2
    by_task: dict[str, dict[str, list[Any]]] = {}
    for cell in (c for c in cells if c["status"] == "ok"):
        answers = [s["answers"] for s in samples if s["cell"] == cell["cell"]]
        by_task.setdefault(cell["identity"]["task"], {})[cell["identity"]["method"]] = answers
    assert all(answers["dense"] == answers["block_topk"] for answers in by_task.values()) and len(by_task) == 2
    rows = {(r["method"], r["task"]): r for r in board(study)}
    assert set(rows) == {(m, t) for m in ("dense", "block_topk") for t in ("niah_single_1", "niah_single_2", "avg")}
    row = rows["block_topk", "avg"]
    assert set(row) == set(COLUMNS)
    for column in (
        "accuracy_low",
        "dense_accuracy",
        "p_value",
        "total_ms",
        "dense_ms",
        "speedup",
        "ttft_ms",
        "commit",
        "command",
        "torch",
        "device",
        "date",
    ):
        assert row[column] != "", column
    assert float(row["density"]) == pytest.approx(0.5, abs=0.05)
    assert (row["kernel"], row["block_size"], row["dtype"], row["seed"]) == ("sdpa", "64", "float32", "0")
    assert row["command"].startswith("python -m harness model=hf")
    assert (study / "pareto.png").stat().st_size > 10_000
    assert {p.name for p in tmp_path.iterdir()} <= {"results", ".cache"}, "nothing elsewhere, no outputs/ of Hydra"


def test_the_same_command_does_nothing_twice_and_more_samples_extend(
    command: Command, toy: list[str], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = finished
    before = {kind: lines(study, kind) for kind in ("samples", "cells", "runs")}
    prompts: list[int] = []
    real = generating.generate

    def counted(loaded: Any, given: Any, *args: Any, **kwargs: Any) -> Any:
        prompts.append(len(given))
        return real(loaded, given, *args, **kwargs)

    monkeypatch.setattr(generating, "generate", counted)
    assert command(*toy) == 0
    assert prompts == [] and {kind: lines(study, kind) for kind in before} == before
    assert command(*toy, "samples=5") == 0
    assert prompts == [1] * 6, "only the new samples of dense and of the method"
    assert sorted(s["index"] for s in lines(study, "samples")) == sorted(2 * list(range(5)))
    assert {r["samples"] for r in board(study)} == {"5"}


def test_sweep_joins_one_study_loads_one_model_and_runs_dense_once(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Any] = []
    monkeypatch.setattr(sweep, "load_quietly", lambda config: loads.append(config) or loading.load_model(config))
    assert command("-m", *toy, "method=block_topk,random", "sparsity=0,0.5", "samples=1") == 0
    assert len(loads) == 1, "one load of the model serves the whole grid"
    study = tmp_path / "results" / "toy"
    rows = [r for r in board(study) if r["task"] == "avg"]
    assert [(r["method"], r["sparsity"]) for r in rows] == [
        ("dense", "0"),
        ("block_topk", "0"),
        ("block_topk", "0.5"),
        ("random", "0"),
        ("random", "0.5"),
    ]
    predictions = {s["cell"]: s["prediction"] for s in lines(study, "samples")}
    cells = {(r["method"], r["sparsity"]): r["cell"] for r in board(study) if r["task"] == "niah_single_1"}
    assert predictions[cells["random", "0"]] == predictions[cells["dense", "0"]], "sparsity=0 is dense"
    assert len(lines(study, "samples")) == 5
    assert {p.name for p in tmp_path.iterdir()} <= {"results", ".cache"}


def test_a_sweep_over_lengths_loads_the_model_once(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Any] = []
    monkeypatch.setattr(sweep, "load_quietly", lambda config: loads.append(config) or loading.load_model(config))
    assert command("-m", *toy, "length=512,1024", "samples=1", "checks=false", "report=false") == 0
    assert len(loads) == 1 and len(lines(tmp_path / "results" / "toy", "samples")) == 4


def _slowly(command: Command, arguments: list[str]) -> None:
    """The command in a process of its own, which can be killed between two samples."""
    torch.set_num_threads(1)  # the threads of the process before are not in this one
    real = generating.generate

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.1)
        return real(*args, **kwargs)

    generating.generate = slow
    command(*arguments)


def test_killed_and_run_again_nothing_is_lost_or_doubled(command: Command, toy: list[str], tmp_path: Path) -> None:
    arguments = [*(a for a in toy if not a.startswith("samples=")), "samples=8", "report=false"]
    path = tmp_path / "results" / "toy" / "records" / "samples.jsonl"
    process = multiprocessing.get_context("fork").Process(target=_slowly, args=(command, arguments), daemon=True)
    process.start()  # forked off this one: importing torch takes another seconds
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.is_alive():
        if path.exists() and path.read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.01)
    assert process.is_alive(), "it ended before it could be killed"
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    recorded = path.read_bytes()
    assert 3 <= recorded.count(b"\n") < 16
    with open(path, "ab") as file:  # the worst moment: in the middle of a line
        file.write(b'{"schema":1,"cell":"')
    assert command(*arguments, "report=true") == 0
    after = path.read_bytes()
    assert after.startswith(recorded[: recorded.rfind(b"\n") + 1]), "what was recorded stays as it was"
    keys = [(s["cell"], s["index"]) for s in lines(path.parents[1], "samples")]
    assert len(keys) == len(set(keys)) == 16
    assert Path(f"{path}.torn").exists()
    assert {r["samples"] for r in board(path.parents[1])} == {"8"}


def test_a_failing_cell_is_recorded_and_the_others_go_on(
    command: Command,
    toy: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = generating.generate
    arguments = [*toy, "task.tasks=[niah_single_1,niah_single_2]"]

    def failing(loaded: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        text = [loaded.tokenizer.decode(ids) for ids in prompts]
        if not all("The grass is green." in t for t in text):  # the noise of niah_single_1
            raise RuntimeError("CUDA out of memory. Tried to allocate 3 GiB\nmore lines")
        return real(loaded, prompts, *args, **kwargs)

    monkeypatch.setattr(generating, "generate", failing)
    assert command(*arguments) == 1
    study = tmp_path / "results" / "toy"
    rows = {(r["method"], r["task"]): r for r in board(study)}
    assert rows["block_topk", "niah_single_1"]["status"] == "ok"
    for method in ("dense", "block_topk"):
        assert rows[method, "niah_single_2"]["status"] == rows[method, "avg"]["status"] == "failed"
        assert rows[method, "niah_single_2"]["reason"] == "RuntimeError: CUDA out of memory. Tried to allocate 3 GiB"
    assert "failed: dense, niah_single_2: RuntimeError: CUDA out of memory" in capsys.readouterr().out
    monkeypatch.setattr(generating, "generate", real)
    assert command(*arguments) == 0, "the same command tries what failed again"
    assert {r["status"] for r in board(study)} == {"ok"}
    assert len(lines(study, "samples")) == 8


@pytest.mark.parametrize(
    ("tokens", "batch_tokens", "size"),
    [
        (2_048, 10**9, 256),
        (8_192, 10**9, 256),
        (32_768, 10**9, 128),
        (131_072, 10**9, 64),
        (8_192, 819_200, 100),
        (8_192, 1, 1),
    ],
)
def test_a_batch_is_as_large_as_memory_and_a_kill_allow(tokens: int, batch_tokens: int, size: int) -> None:
    sample = SimpleNamespace(max_new_tokens=0)
    todo = generating.Todo([(None, sample)] * 300, [range(tokens)] * 300, None)  # type: ignore[list-item]
    assert todo.first_batch(batch_tokens) == (tokens, size)


def test_a_full_memory_halves_the_batches(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The samples that don't fit go on in smaller batches, not one by one, and no cell fails; a line says so each time."""
    real, asked = generate_module._generate_batch, list[int]()

    def small(loaded: Any, prompts: Any, *args: Any) -> Any:
        asked.append(len(prompts))
        if len(prompts) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
        return real(loaded, prompts, *args)

    monkeypatch.setattr(generate_module, "_generate_batch", small)
    assert command(*toy, "method=dense", "samples=8", "batch_tokens=100000", "checks=false") == 0
    assert asked == [8, 4, 2, 2, 2, 2], "halved until they fit, and never tried larger again"
    lines_said = [line for line in capsys.readouterr().out.splitlines() if "half as large" in line]
    assert lines_said == [f"out of memory with {n} samples at once: going on with batches half as large" for n in (8, 4)]
    assert {r["status"] for r in board(tmp_path / "results" / "toy")} == {"ok"}


def test_prompts_run_one_by_one_where_a_kernel_takes_no_more(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are decoded together all the same, and nothing is said of it."""
    real, asked = generate_module._generate_batch, list[tuple[int, int]]()

    def one_prompt(loaded: Any, prompts: Any, *args: Any) -> Any:
        asked.append((len(prompts), args[-1].prefill_tokens))
        if args[-1].prefill_tokens > 1:
            raise ValueError("index has batch and heads (1, 2); expected 3 and 4 or 2")
        return real(loaded, prompts, *args)

    monkeypatch.setattr(generate_module, "_generate_batch", one_prompt)
    assert command(*toy, "method=dense", "samples=4", "batch_tokens=2100", "checks=false") == 0
    assert asked == [(2, generating.PREFILL_ELEMENTS // 32), (2, 1), (2, 1)], "the toy's hidden states have 32 elements"
    assert {r["status"] for r in board(tmp_path / "results" / "toy")} == {"ok"}


def test_samples_go_by_length_the_longest_first() -> None:
    pairs: Any = [(None, place) for place in range(5)]
    todo = generating.Todo(pairs, [range(n) for n in (3, 5, 3, 9, 5)], [0, 1, 2, 3, 4]).by_length()
    assert [len(prompt) for prompt in todo.prompts] == [9, 5, 5, 3, 3]
    assert [place for _, place in todo.pairs] == todo.contexts == [3, 1, 4, 0, 2]


def test_what_a_failed_batch_held_is_freed_before_the_next(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error's traceback holds the frames it went through, and those a cache: smaller batches need its memory."""
    real, held, still = generate_module._generate_batch, list[weakref.ref[Any]](), list[bool]()

    def small(loaded: Any, prompts: Any, *args: Any) -> Any:
        still.append(any(cache() is not None for cache in held))
        if len(prompts) > 2:
            cache = torch.zeros(8)
            held.append(weakref.ref(cache))
            try:
                raise ValueError("a kernel's own")
            except ValueError as error:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB") from error
        return real(loaded, prompts, *args)

    monkeypatch.setattr(generate_module, "_generate_batch", small)
    assert command(*toy, "method=dense", "samples=8", "batch_tokens=100000", "checks=false") == 0 and len(held) == 2
    assert still == [False] * 6, "the cache of a batch that failed is gone when the next begins"
    assert {r["status"] for r in board(tmp_path / "results" / "toy")} == {"ok"}


def test_a_task_that_cannot_be_made_fails_alone(command: Command, toy: list[str], tmp_path: Path) -> None:
    assert command(*toy, "task.tasks=[niah_single_1,cwe]", "length=400", "samples=1") == 1
    rows = {(r["method"], r["task"]): r for r in board(tmp_path / "results" / "toy")}
    assert rows["block_topk", "cwe"]["status"] == "failed" and "too short" in rows["block_topk", "cwe"]["reason"]


def test_an_unsound_sample_gates_its_cell(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []

    def check(sample: Sample, *_: Any) -> str:
        looked_at.append(sample.index)
        return "2 BOS tokens in the prompt; there must be one"

    monkeypatch.setattr("harness.measure.context.check_sample", check)
    assert command(*toy) == 0
    assert sorted(looked_at) == [0, 1], "once for all arms"
    rows = board(tmp_path / "results" / "toy")
    assert {r["status"] for r in rows} == {"gated"}
    assert "2 of 2 samples: 2 BOS tokens" in rows[0]["reason"]


def test_only_latency(command: Command, toy: list[str], tmp_path: Path) -> None:
    arguments = [*toy, "job=latency", "latency_repeats=1", "dense_kernel=sdpa_math"]
    assert command(*arguments) == 0 and command(*arguments) == 0
    study = tmp_path / "results" / "toy"
    assert len(lines(study, "latency")) == 2, "dense and the method, once"
    assert [(r["method"], r["task"], r["accuracy"], r["total_ms"] != "") for r in board(study)] == [
        ("dense", "", "", True),
        ("block_topk", "", "", True),
    ]
    records = {r["identity"]["method"]: r for r in lines(study, "latency")}
    assert records["dense"]["kernel"] == "sdpa_math", "the baseline is timed with the kernel it runs"
