"""Which GPUs each worker sees, where torch's count of them is given."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.core.errors import UserError
from harness.jobs.launcher_settings import launcher_settings
from harness.jobs.worker_devices import devices_of, visible_devices, worker_variables


def gpus_here(monkeypatch: pytest.MonkeyPatch, count: int, visible: str | None = None) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.mark.parametrize(
    ("count", "visible", "names"),
    [
        (3, None, ["0", "1", "2"]),
        (3, "4,6,7", ["4", "6", "7"]),
        (2, "GPU-8f6c, GPU-11ab", ["GPU-8f6c", "GPU-11ab"]),
        (1, "1,-1,0", ["1"]),  # CUDA looks no further than what is no device
        (1, "MIG-3eb8,MIG-d0f1", ["MIG-3eb8", "MIG-d0f1"]),  # of which a process sees one
        (1, "MIG-GPU-8f6c/1/0,MIG-GPU-8f6c/2/0", ["MIG-GPU-8f6c/1/0", "MIG-GPU-8f6c/2/0"]),
    ],
)
def test_all_devices_are_those_that_the_command_sees(
    count: int, visible: str | None, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus_here(monkeypatch, count, visible)
    assert devices_of("all") == names
    assert visible_devices(launcher_settings("processes", {}), jobs=9) == names
    assert visible_devices(launcher_settings("processes", {}), jobs=1) == names[:1]
    assert devices_of("0") == names[:1]


def test_devices_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus_here(monkeypatch, 3, "4,6,7")
    assert devices_of("0,2") == ["4", "7"] and devices_of("cpu:2") == ["cpu", "cpu"]
    for choice in ("0,0", "3", "cpu", "cpu:0", "two", "", "-1", "0,", "99999999999999999999"):
        with pytest.raises(UserError, match="devices="):
            devices_of(choice)
    gpus_here(monkeypatch, 0)
    with pytest.raises(UserError, match="torch finds no CUDA device here; devices=cpu:2"):
        devices_of("all")


@pytest.mark.parametrize(
    ("engine", "settings", "names"),
    [
        ("processes", {"devices": "cpu:3"}, ["", ""]),
        ("submitit_local", {}, ["", ""]),
        ("submitit_local", {"gpus": 1}, ["4", "6"]),
        ("submitit_local", {"gpus": 2, "workers": 1}, ["4,6"]),
        ("submitit_slurm", {}, [None, None]),
        ("submitit_slurm", {"gpus": 0}, [None, None]),
        ("ray", {}, ["", ""]),
        ("ray", {"gpus": 1}, [None, None]),
        ("ray", {"env": {"CUDA_VISIBLE_DEVICES": "7"}}, [None, None]),
    ],
)
def test_a_worker_sees_its_own_gpus(
    engine: str, settings: dict[str, Any], names: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus_here(monkeypatch, 3, "4,6,7")
    assert visible_devices(launcher_settings(engine, settings), jobs=2) == names


def test_more_workers_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus_here(monkeypatch, 3, "4,6,7")
    with pytest.raises(UserError, match=r"4 GPUs, and torch finds 3 here: hydra.launcher.workers=1 at most"):
        visible_devices(launcher_settings("submitit_local", {"gpus": 2}), jobs=5)
    with pytest.raises(UserError, match=r"hydra.launcher.gpus=8: a worker would have more than the 3 GPUs here"):
        visible_devices(launcher_settings("submitit_local", {"gpus": 8}), jobs=5)


def test_workers_on_the_cpu_share_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def threads(engine: str, **settings: Any) -> list[str | None]:
        return [variables.get("OMP_NUM_THREADS") for variables in worker_variables(launcher_settings(engine, settings), jobs=3)]

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert threads("processes", devices="cpu:3") == ["2"] * 3 and threads("submitit_local", workers=1) == ["8"]
    assert threads("processes", devices="cpu:3", env={"OMP_NUM_THREADS": 5}) == ["5"] * 3
    assert threads("ray") == threads("submitit_slurm", workers=2) == [None] * 2
    gpus_here(monkeypatch, 2)
    assert threads("processes") == [None] * 2
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert threads("processes", devices="cpu:3") == [None] * 3
