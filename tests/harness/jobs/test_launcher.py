"""Sweeps on several workers: how jobs are shared out, what a worker hands back, and the same rows as in one process."""

from __future__ import annotations

import fcntl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from harness.core.errors import UserError
from harness.jobs import engines, launcher
from harness.jobs.engines import Workplace, by_device
from harness.jobs.launcher import as_launched, devices_of, shares
from harness.jobs.work import Outcome, Work
from harness.jobs.worker import do_work
from harness.study.one_at_a_time import one_at_a_time
from harness.study.store import Store
from harness.study.verdict import is_baseline

Command = Callable[..., int]
ARMS = ("-m", "method=block_topk,streaming_llm", "samples=1", "progress=false")


def rows(study: Path) -> dict[Any, Any]:
    """What was answered, and how it was scored, by cell and sample."""
    return {
        (r["cell"], r["index"]): (r["prediction"], r["score"], r["density"], r["tokens"]) for r in Store(study).samples.read()
    }


def dense_runs(study: Path) -> list[list[str]]:
    """The processes that measured the samples of each dense cell."""
    store = Store(study)
    dense = {cell["cell"] for cell in store.cells.read() if is_baseline(cell)}
    return [sorted({r["run"] for r in records}) for cell, records in store.samples_of().items() if cell in dense]


def test_jobs_of_a_model_stay_together() -> None:
    jobs = [[f"model={m}", f"method={a}"] for a in "ab" for m in ("one", "two")]
    assert shares(jobs, 2) == [
        [["model=one", "method=a"], ["model=one", "method=b"]],
        [["model=two", "method=a"], ["model=two", "method=b"]],
    ]
    assert [len(run) for run in shares(jobs, 3)] == [1, 1, 2]
    assert [len(run) for run in shares(jobs, 9)] == [1, 1, 1, 1]
    assert shares([], 2) == []


def test_each_worker_sees_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    assert devices_of("all") == ["4", "6", "7"] and devices_of("0,2") == ["4", "7"] and devices_of("cpu:2") == ["cpu", "cpu"]
    work = Work([["seed=0"]], [], [], ".", {"A": "b"})
    assert [w.environment for w in by_device([work, work], ["4", "cpu"])] == [
        {"CUDA_VISIBLE_DEVICES": "4", "A": "b"},
        {"CUDA_VISIBLE_DEVICES": "", "A": "b"},
    ]
    for choice in ("0,0", "3", "cpu", "cpu:0", "two", ""):
        with pytest.raises(UserError, match="devices="):
            devices_of(choice)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="torch finds no CUDA device here; devices=cpu:2"):
        devices_of("all")


def test_devices_is_short_for_a_launcher() -> None:
    assert as_launched(["-m", "devices=0,1", "seed=1"], sweeps=True)[2:] == [
        "hydra/launcher=processes",
        "hydra.launcher.devices='0,1'",
    ]
    with pytest.raises(UserError, match="add -m"):
        as_launched(["devices=all"], sweeps=False)
    with pytest.raises(UserError, match="a launcher of its own"):
        as_launched(["devices=all", "hydra/launcher=ray"], sweeps=True)


def test_two_workers_measure_the_rows_of_one(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blank_pictures: None
) -> None:
    works: list[Work] = []

    def here(parts: Sequence[Work], place: Workplace) -> list[Outcome | None]:
        works.extend(parts)
        GlobalHydra.instance().clear()  # of the command, which workers elsewhere don't share
        return [do_work(part) for part in parts]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setitem(engines.ENGINES, "processes", here)
    assert command(*toy, *ARMS, "study=one") == 0
    assert command(*toy, *ARMS, "study=two", "devices=cpu:2") == 0
    assert len(works) == 2 and rows(tmp_path / "results/two") == rows(tmp_path / "results/one")
    assert [len(runs) for runs in dense_runs(tmp_path / "results/two")] == [1]
    assert (tmp_path / "results/two/leaderboard.csv").exists()
    (typed,) = {run["command"] for run in Store(tmp_path / "results/two").runs.read()}
    assert "devices=cpu:2" in typed and "launcher" not in typed
    assert command(*toy, *ARMS, "study=two", "devices=cpu:2", "sparsity=7", "report=false") == 2


def test_a_worker_that_dies_is_one_line_and_the_exit_code(
    command: Command, toy: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert command(*toy, *ARMS, "devices=cpu:1") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line.startswith("error: worker 0, of 2 jobs, ended before") and line.endswith("the same command carries on")


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("hydra.launcher.workers=0", "hydra.launcher.workers=0: must be a whole number, at least 1"),
        ("hydra.launcher.gpus=-1", "hydra.launcher.gpus=-1: must be a whole number, at least 0"),
        ("hydra.launcher.folder=/dev/null/x", "no folder can be made there"),
        ("hydra.launcher.engine=none", "must be one of processes, submitit_local, submitit_slurm, ray"),
        ("hydra.launcher.workers=1", "ray is not installed: pip install"),
    ],
)
def test_settings_that_no_launcher_can_have(
    argument: str, says: str, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert command("-m", "hydra/launcher=ray", argument, "seed=0,1") == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_one_of_several_processes_measures_dense_and_the_others_say_that_they_wait(tmp_path: Path) -> None:
    path = tmp_path / "records" / "dense.lock"
    said: list[str] = []
    with one_at_a_time(tmp_path, "dense", lambda: said.append("first")):
        holds = threading.Thread(target=_hold, args=(tmp_path, said))
        holds.start()
        while not said:
            time.sleep(0.01)
        with open(path) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert said == ["second"]
    holds.join()
    assert said == ["second", "second holds it"] and not path.exists()


def _hold(folder: Path, said: list[str]) -> None:
    with one_at_a_time(folder, "dense", lambda: said.append("second")):
        said.append("second holds it")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["processes", "submitit_local", "ray"])
def test_the_engines_themselves(engine: str, command: Command, toy: list[str], tmp_path: Path) -> None:
    if engine != "processes":
        pytest.importorskip(engine.partition("_")[0])
    devices = ["hydra.launcher.devices=cpu:2"] if engine == "processes" else []
    assert command(*toy, *ARMS, "study=one") == 0
    assert command(*toy, *ARMS, "study=two", f"hydra/launcher={engine}", *devices) == 0
    assert rows(tmp_path / "results/two") == rows(tmp_path / "results/one")
    assert [len(runs) for runs in dense_runs(tmp_path / "results/two")] == [1]
    (typed,) = {run["command"] for run in Store(tmp_path / "results/two").runs.read()}
    assert typed.startswith("python -m harness -m") and engine in typed


def test_no_launcher_is_left_to_a_plugin() -> None:
    names = {path.stem for path in (launcher.conf_dir() / "hydra" / "launcher").glob("*.yaml")}
    assert names == set(engines.ENGINES)
