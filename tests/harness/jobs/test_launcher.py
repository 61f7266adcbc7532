"""Sweeps on several workers: their settings, what a worker hands back, what is said of a lost one, and the same rows as in one
process. The engines themselves are in test_engines.py."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from harness.core.errors import UserError
from harness.jobs import engines, launcher, worker
from harness.jobs.engines import Workplace
from harness.jobs.handout import Handout
from harness.jobs.launcher import as_launched
from harness.jobs.launcher_settings import launcher_settings
from harness.jobs.work import Outcome, Work
from harness.jobs.worker import do_work
from harness.study import record_io
from harness.study.one_at_a_time import one_at_a_time
from harness.study.parts import parts_in
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
    parts_there: list[int] = []

    def here(parts: Sequence[Work], place: Workplace) -> list[Outcome]:
        works.extend(parts)
        GlobalHydra.instance().clear()  # of the command, which workers elsewhere don't share
        outcomes: list[Outcome] = []
        for part in parts:
            with monkeypatch.context() as patch:
                patch.setattr(fcntl, "flock", _no_locks)  # which no worker needs
                outcomes.append(do_work(part))
            parts_there.append(len(parts_in(tmp_path / "results/two/records")))
        return outcomes

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def locked(folder: Path, name: str, waits: Callable[[], None]) -> AbstractContextManager[None]:
        locks.add(name)
        return one_at_a_time(folder, name, waits)

    locks: set[str] = set()
    monkeypatch.setattr("harness.measure.run.one_at_a_time", locked)
    monkeypatch.setitem(engines.ENGINES, "processes", here)
    assert command(*toy, *ARMS, "study=one") == 0
    assert command(*toy, *ARMS, "study=two", "devices=cpu:2", "report=true") == 0
    assert parts_there == [1, 1], "who has a job writes records of its own; the first one here takes both"
    assert {path.suffix for path in (tmp_path / "results/two/records").iterdir()} == {".jsonl", ".yaml"}, "joined at the end"
    assert len(works) == 2 and rows(tmp_path / "results/two") == rows(tmp_path / "results/one")
    assert [len(runs) for runs in dense_runs(tmp_path / "results/two")] == [1]
    assert [name[-len("-niah_single_1") :] for name in locks] == ["-niah_single_1"]  # who measures other tasks goes on
    assert (tmp_path / "results/two/leaderboard.csv").exists()
    (typed,) = {run["command"] for run in Store(tmp_path / "results/two").runs.read()}
    assert "devices=cpu:2" in typed and "launcher" not in typed
    assert command(*toy, *ARMS, "study=two", "devices=cpu:2", "sparsity=7", "report=false") == 2


def _no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_a_command_where_locks_fail_and_the_disk_is_full_for_a_while(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "flock", _no_locks)
    write, room = os.write, [3]  # lines: of the process, of the cell, of a sample

    def full(fd: int, line: bytes) -> int:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, line)

    short = [*toy, "samples=2", "report=false", "progress=false", "checks=false", "method=dense"]
    with monkeypatch.context() as patch:
        patch.setattr(record_io.os, "write", full)
        assert command(*short) == 2, capsys.readouterr()
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said] == ["warning", "error"] and "No space left on device" in said[1]
    assert len(rows(tmp_path / "results/toy")) == 1, "what was measured is read"
    assert command(*short) == 0
    assert sorted(index for _, index in rows(tmp_path / "results/toy")) == [0, 1]
    assert len((tmp_path / "results/toy/records/samples.jsonl").read_text().splitlines()) == 2


def test_a_worker_that_dies_is_one_line_and_the_exit_code(
    command: Command, toy: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert command(*toy, *ARMS, "devices=cpu:1") == 1
    line, left = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert left == "error: 2 of 2 jobs were not begun, as no worker was left: the same command carries on"
    assert line.startswith("error: worker 0 was lost (exit code 1): what it printed is in .cache/workers/")
    assert "/worker-0.log; what is finished is recorded" in line and line.endswith("the same command carries on")


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("hydra.launcher.workers=0", "hydra.launcher.workers=0: must be a whole number, at least 1"),
        ("hydra.launcher.gpus=-1", "hydra.launcher.gpus=-1: must be a whole number, at least 0"),
        ("hydra.launcher.folder=/dev/null/x", "no folder can be made there"),
        ("hydra.launcher.engine=none", "must be one of processes, submitit_local, submitit_slurm, ray"),
        ("hydra.launcher.folder=null", "hydra.launcher.folder=null: must be a folder's path"),
        ("+hydra.launcher.worker=3", "hydra.launcher.worker: hydra/launcher=ray has no such setting (did you mean workers?)"),
        ("hydra.launcher.env=null", "hydra.launcher.env=null: must be variables, +hydra.launcher.env.NAME=value"),
        ("+hydra.launcher.env.A=null", "hydra.launcher.env.A=null: must be a variable's name and a text or a number"),
        ("hydra.launcher.parameters=null", "hydra.launcher.parameters=null: must be settings, parameters.NAME=value"),
        ("hydra.launcher.workers=1", "ray is not installed: pip install"),
    ],
)
def test_settings_that_no_launcher_can_have(
    argument: str, says: str, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert command("-m", "hydra/launcher=ray", argument, "seed=0,1") == 2
    said = capsys.readouterr()
    assert says in said.err and (len(said.err.splitlines()), said.out) == (1, "")
    assert not [*Path().glob(".cache/workers/*")]


def test_what_waits_for_a_job_of_submitit_prints_into_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Executor:
        """Submits as submitit does on this machine: by a process with the streams of the command."""

        def __init__(self, **where: str) -> None:
            pass

        def update_parameters(self, **parameters: str) -> None:
            pass

        def submit(self, function: object, work: Work) -> SimpleNamespace:
            os.write(2, b"KeyboardInterrupt\n")
            return SimpleNamespace(result=Outcome, done=lambda: True)

    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=Executor))
    work = Work(0, [], [], [], str(tmp_path), str(tmp_path), {})
    assert engines.run_submitit_local([work], Workplace(tmp_path, 0, {})) == [Outcome()]
    assert (tmp_path / "submitit.log").read_text() == "KeyboardInterrupt\n" and capfd.readouterr() == ("", "")


def test_variables_are_texts_and_no_worker_sees_the_gpu_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "outside")
    env = {"OFFLINE": True, "THREADS": 2, "NAME": "x y"}
    settings = launcher_settings("ray", {"env": env})
    assert {name: settings.environment[name] for name in env} == {"OFFLINE": "true", "THREADS": "2", "NAME": "x y"}
    root = str(Path(launcher.__file__).parents[2])
    assert settings.environment["PYTHONPATH"] == f"{root}:outside"
    own = launcher_settings("ray", {"env": {"PYTHONPATH": f"own:{root}"}}).environment
    assert own["PYTHONPATH"] == f"{root}:own"
    shared = {"env": {"CUDA_VISIBLE_DEVICES": "0"}}
    assert launcher_settings("ray", shared).environment["CUDA_VISIBLE_DEVICES"] == "0"
    for engine, gpus in (("processes", {}), ("ray", {"gpus": 1})):
        with pytest.raises(UserError, match="this launcher says which GPUs a worker sees"):
            launcher_settings(engine, shared | gpus)


def test_what_a_library_takes_is_plain() -> None:
    given = OmegaConf.create({"slurm_setup": ["module load cuda"], "slurm_additional_parameters": {"gres": "gpu:1"}})
    parameters = launcher_settings("submitit_slurm", {"parameters": given}).parameters
    assert type(parameters["slurm_setup"]) is list and type(parameters["slurm_additional_parameters"]) is dict


def test_a_ray_that_does_not_answer_is_said_at_once() -> None:
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))  # which takes a port, and listens to none
        for address in (f"127.0.0.1:{here.getsockname()[1]}", "127.0.0.1:99999"):
            with pytest.raises(UserError, match=rf"address={address}: no Ray answers there"):
                engines.check_address(address)
        here.listen()
        for address in (f"127.0.0.1:{here.getsockname()[1]}", "auto", "local", "ray://nowhere:1", ""):
            engines.check_address(address)


def test_each_batch_of_a_sweep_has_a_folder_and_each_worker_a_gpu(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[str] = []
    gpus: list[list[tuple[str, int]]] = []

    def note(works: Sequence[Work], place: Workplace) -> list[Outcome]:
        folders.extend({work.files for work in works})
        gpus.append([(work.environment["CUDA_VISIBLE_DEVICES"], work.gpus) for work in works])
        for number in range(len(works[0].jobs)):
            assert Handout(place.folder, works[0].jobs).take(0, None) == number
        return [Outcome() for _ in works]

    monkeypatch.setattr("harness.jobs.worker_folders.shutil.rmtree", lambda *_, **__: None)  # the first folder stays
    monkeypatch.setitem(engines.ENGINES, "processes", note)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f6c,GPU-11ab")
    assert command("-m", "devices=all", "seed=0,1,2,3", "hydra.sweeper.max_batch_size=3") == 0
    assert gpus == [[("GPU-8f6c", 1), ("GPU-11ab", 1)], [("GPU-8f6c", 1)]]
    assert len(set(folders)) == 2 and all(Path(folder).parent == tmp_path / ".cache/workers" for folder in folders)


def test_a_worker_prints_into_its_log_and_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # and out of it again
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def work(**changes: Any) -> Work:
        return replace(Work(3, [["seed=0"]], [], [], str(tmp_path), str(tmp_path), {}, 0), **changes)

    assert "it was to have 2 GPUs, and torch finds 0" in do_work(work(gpus=2, environment={"CUDA_VISIBLE_DEVICES": ""})).lost
    assert do_work(work(folder=str(tmp_path / "none"))).lost.startswith("FileNotFoundError")
    assert do_work(work(files=str(tmp_path / "none"))).lost == f"{tmp_path}/none/worker-3.log: No such file or directory"
    log = (tmp_path / "worker-3.log").read_text()
    assert log.startswith("worker 3 on ") and "CUDA_VISIBLE_DEVICES: none" in log and f"working folder: {tmp_path}" in log
    assert "Traceback" in log and capfd.readouterr() == ("", "")
    assert Handout(tmp_path, [["seed=0"]]).left() == [0]


def test_a_worker_whose_time_is_over_ends_and_fails_no_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overdue(*_: object) -> int:
        os.kill(os.getpid(), signal.SIGUSR2)
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker, "_run", overdue)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    before = signal.getsignal(signal.SIGUSR2)
    outcome = do_work(Work(0, [["seed=0"], ["seed=1"]], [], [], str(tmp_path), str(tmp_path), {}))
    assert outcome == Outcome(1, lost="its time was over, or it was preempted")
    assert Handout(tmp_path, [["seed=0"], ["seed=1"]]).in_hand(0) == [0] and signal.getsignal(signal.SIGUSR2) is before


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


def test_no_launcher_is_left_to_a_plugin() -> None:
    names = {path.stem for path in (launcher.conf_dir() / "hydra" / "launcher").glob("*.yaml")}
    assert names == set(engines.ENGINES)
