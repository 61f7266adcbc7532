"""What starts the workers of a sweep: processes of this machine, submitit (this machine or Slurm), Ray.

Each function starts a worker for every Work, waits for all of them, and returns their outcomes in the same order: None where a
worker ended without one, as when it was killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.jobs.work import Outcome, Work, read_outcome
from harness.jobs.worker import do_work

ROOT = Path(__file__).resolve().parents[2]
"""The folder that `harness` is imported from."""


@dataclass(frozen=True)
class Workplace:
    """Where workers run. folder: of their files; gpus: GPUs a worker; parameters: what the engine takes besides."""

    folder: Path
    gpus: int
    parameters: Mapping[str, Any]


Engine = Callable[[Sequence[Work], Workplace], list[Outcome | None]]


def run_processes(parts: Sequence[Work], place: Workplace) -> list[Outcome | None]:
    """Run the workers as processes of this machine. What they print goes to `worker-N.log` in the folder."""
    running: list[subprocess.Popen[bytes]] = []
    outcomes = [place.folder / f"outcome-{number}.json" for number in range(len(parts))]
    try:
        for number, (work, outcome) in enumerate(zip(parts, outcomes, strict=True)):
            work_file = place.folder / f"work-{number}.json"
            work_file.write_text(json.dumps(asdict(work)))
            outcome.unlink(missing_ok=True)
            command = [sys.executable, "-m", "harness.jobs.worker", str(work_file), str(outcome)]
            with open(place.folder / f"worker-{number}.log", "wb") as log:
                environment = {**os.environ, **_import_path(), **work.environment}
                running.append(
                    subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment)
                )
        for process in running:
            process.wait()
    finally:  # where the command is interrupted
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()
    return [read_outcome(path.read_text()) if path.exists() else None for path in outcomes]


def run_submitit_local(parts: Sequence[Work], place: Workplace) -> list[Outcome | None]:
    """Run the workers by submitit on this machine. Raises UserError where submitit is not installed."""
    return _run_submitit(parts, place, "local")


def run_submitit_slurm(parts: Sequence[Work], place: Workplace) -> list[Outcome | None]:
    """Run the workers by submitit as jobs of Slurm. Raises UserError where submitit or Slurm is not installed."""
    return _run_submitit(parts, place, "slurm")


def _run_submitit(parts: Sequence[Work], place: Workplace, cluster: str) -> list[Outcome | None]:
    submitit = _module("submitit")
    try:
        executor = submitit.AutoExecutor(folder=str(place.folder / "%j"), cluster=cluster)
    except RuntimeError as error:  # no sbatch here
        raise UserError(f"hydra/launcher=submitit_{cluster}: {error}") from None
    try:
        executor.update_parameters(name="harness", gpus_per_node=place.gpus, **place.parameters)
    except (NameError, TypeError, ValueError) as error:
        raise UserError(f"hydra.launcher.parameters: submitit does not take them ({error})") from None
    jobs: list[Any] = []
    path = _import_path()["PYTHONPATH"]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = path  # what the job imports `harness` from; Slurm hands the environment on
    try:
        jobs += [executor.submit(do_work, work) for work in parts]
        return [_result(job.result) for job in jobs]
    finally:
        for job in jobs:
            if not job.done():
                job.cancel()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def run_ray(parts: Sequence[Work], place: Workplace) -> list[Outcome | None]:
    """Run the workers as tasks of Ray, each in a process of its own. Raises UserError where Ray is not installed, or can't be
    reached."""
    ray = _module("ray")
    began = not ray.is_initialized()
    options = {"log_to_driver": False, "include_dashboard": False, "logging_level": "error"}
    if "address" in place.parameters:
        del options["include_dashboard"]
    if began:
        try:
            ray.init(**options | dict(place.parameters), runtime_env={"env_vars": _import_path()})
        except (ConnectionError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"hydra.launcher.parameters: Ray can't be started with them ({error})") from None
    try:
        if place.gpus > ray.cluster_resources().get("GPU", 0):
            raise UserError(f"hydra.launcher.gpus={place.gpus}: Ray has {ray.cluster_resources().get('GPU', 0):.0f} GPUs")
        task = ray.remote(num_gpus=place.gpus, num_cpus=1, max_calls=1, max_retries=0)(do_work)
        tasks = [task.remote(work) for work in parts]
        return [_result(partial(ray.get, task)) for task in tasks]
    finally:
        if began:
            ray.shutdown()


ENGINES: dict[str, Engine] = {
    "processes": run_processes,
    "submitit_local": run_submitit_local,
    "submitit_slurm": run_submitit_slurm,
    "ray": run_ray,
}


def by_device(parts: Sequence[Work], devices: Sequence[str]) -> list[Work]:
    """Return the works, each with a GPU of its own, of `devices`; those on the CPU, named "cpu", with none."""
    seen = ["" if device == "cpu" else device for device in devices]
    return [
        replace(work, environment={"CUDA_VISIBLE_DEVICES": gpu, **work.environment})
        for work, gpu in zip(parts, seen, strict=False)
    ]


def _result(get: Callable[[], Outcome]) -> Outcome | None:
    """Return a worker's outcome, None where the engine says that it has none, by an error of its own."""
    try:
        return get()
    except Exception as error:
        print(f"worker: {str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__}", file=sys.stderr)
        return None


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"{name} is not installed: pip install 'sparse-attention-harness[clusters]'") from None


def _import_path() -> dict[str, str]:
    """Return the environment by which a worker imports what this process does."""
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(path for path in paths if path))}
