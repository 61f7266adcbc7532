"""Which GPUs each worker of a sweep sees, by CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import os
import re

from harness.core.errors import UserError
from harness.jobs.launcher_settings import VISIBLE, LauncherSettings

CPU = "cpu"
FEW_CPUS = re.compile(r"cpu:([1-9]\d{0,3})")
INDICES = re.compile(r"\d{1,4}(,\d{1,4})*")
SLICE = "MIG-"
"""What the names of a GPU's slices begin with (MIG). A process sees only the first of them, however many it is given."""
THREADS = "OMP_NUM_THREADS"
ON_THIS_MACHINE = ("processes", "submitit_local")
NONE = ""
"""The value of CUDA_VISIBLE_DEVICES that shows no GPU."""


def visible_devices(settings: LauncherSettings, jobs: int) -> list[str | None]:
    """Return what CUDA_VISIBLE_DEVICES is to be for each worker, of which there are at most as many as jobs: no GPU is given
    twice. None leaves it to the engine, which knows the GPUs of its machines. Raises UserError where there are too few."""
    if settings.devices is not None:
        return [NONE if name == CPU else name for name in devices_of(settings.devices)[:jobs]]
    workers, gpus = min(settings.workers, jobs), settings.gpus
    if settings.engine == "submitit_local" and gpus:
        here = _visible_here(f"hydra.launcher.gpus={gpus}")
        if gpus > len(here):
            raise UserError(f"hydra.launcher.gpus={gpus}: a worker would have more than the {len(here)} GPUs here")
        if workers * gpus > len(here):
            raise UserError(
                f"hydra.launcher.workers={workers} hydra.launcher.gpus={gpus}: {workers * gpus} GPUs, and torch finds "
                f"{len(here)} here: hydra.launcher.workers={len(here) // gpus} at most"
            )
        return [",".join(here[first : first + gpus]) for first in range(0, workers * gpus, gpus)]
    if settings.engine == "submitit_slurm" or gpus or VISIBLE in settings.environment:
        return [None] * workers
    return [NONE] * workers


def worker_variables(settings: LauncherSettings, jobs: int) -> list[dict[str, str]]:
    """Return the variables of each worker's environment, of which there are at most as many as jobs: those of the settings, its
    GPUs, and where all compute on the CPU of this machine, their share of its threads, if nothing else says how many. Raises
    UserError where there are too few GPUs."""
    devices = visible_devices(settings, jobs)
    shared = dict(settings.environment)
    if settings.engine in ON_THIS_MACHINE and set(devices) == {NONE} and THREADS not in os.environ:
        shared = {THREADS: str(max(1, len(os.sched_getaffinity(0)) // len(devices)))} | shared
    return [shared if device is None else {VISIBLE: device} | shared for device in devices]


def devices_of(choice: str) -> list[str]:
    """Return the devices that `devices=` names, one a worker: "cpu", or what CUDA_VISIBLE_DEVICES takes. Raises UserError."""
    if match := FEW_CPUS.fullmatch(choice):
        return [CPU] * int(match[1])
    if choice != "all" and not INDICES.fullmatch(choice):
        raise UserError(f"devices={choice}: must be all, cpu:N for N workers on the CPU, or indices of GPUs such as 0,2")
    here = _visible_here(f"devices={choice}")
    asked = list(range(len(here))) if choice == "all" else [int(index) for index in choice.split(",")]
    if max(asked) >= len(here) or len(set(asked)) < len(asked):
        raise UserError(f"devices={choice}: each of the {len(here)} GPUs here once at most, 0 to {len(here) - 1}")
    return [here[index] for index in asked]


def _visible_here(asks: str) -> list[str]:
    """Return the names of the GPUs that this process sees, as CUDA_VISIBLE_DEVICES has them: indices, UUIDs, slices. Raises
    UserError where there are none."""
    import torch  # which takes seconds

    count = torch.cuda.device_count()
    if not count:
        raise UserError(f"{asks}: torch finds no CUDA device here; devices=cpu:2 runs two workers on the CPU")
    names = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    if names and all(name.startswith(SLICE) for name in names):
        return list(dict.fromkeys(names))
    return names[:count] if names else [str(index) for index in range(count)]
