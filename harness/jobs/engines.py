"""What starts the workers of a sweep: processes of this machine, submitit (this machine or Slurm), Ray.

Each function starts a worker for every Work, waits for all of them, and returns their outcomes in the same order; that of a
worker which ended without one, as when it was killed, says why (`Outcome.lost`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.errors import first_line as text_line
from harness.core.mistakes import first_line
from harness.core.printable import cut
from harness.jobs.work import Outcome, Work, lost, read_outcome
from harness.jobs.worker import do_work, printing_to


@dataclass(frozen=True)
class Workplace:
    """Where workers run. folder: of their files; gpus, cpus: how many of the engine's a worker is to have; parameters: what the
    engine takes besides."""

    folder: Path
    gpus: int
    parameters: Mapping[str, Any]
    cpus: int = 1


PATIENCE = 10.0
"""Seconds to wait for a machine to answer."""
SUBMITIT, RAY = "submitit_", "ray"
LONGEST_REASON = 200
"""Characters of what an engine says of a lost worker."""
Engine = Callable[[Sequence[Work], Workplace], list[Outcome]]


def run_processes(works: Sequence[Work], place: Workplace) -> list[Outcome]:
    """Run the workers as processes of this machine."""
    running: list[subprocess.Popen[bytes]] = []
    outcomes = [place.folder / f"outcome-{work.number}.json" for work in works]
    try:
        for work, outcome in zip(works, outcomes, strict=True):
            work_file = place.folder / f"work-{work.number}.json"
            work_file.write_text(json.dumps(asdict(work)))
            command = [sys.executable, "-m", "harness.jobs.worker", str(work_file), str(outcome)]
            with open(place.folder / work.log, "ab") as log:
                environment = {**os.environ, **work.environment}
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
    return [
        read_outcome(path.read_text()) if path.exists() else lost(_ending(process.returncode))
        for path, process in zip(outcomes, running, strict=True)
    ]


def _ending(code: int) -> str:
    """Return how a process ended, by its exit code."""
    if code >= 0:
        return f"exit code {code}"
    if -code == signal.SIGKILL:
        return "killed by SIGKILL, as the system does where memory is full"
    return f"killed by {signal.Signals(-code).name}"


def run_submitit_local(works: Sequence[Work], place: Workplace) -> list[Outcome]:
    """Run the workers by submitit on this machine. Raises UserError where submitit is not installed."""
    return _run_submitit(works, place, "local")


def run_submitit_slurm(works: Sequence[Work], place: Workplace) -> list[Outcome]:
    """Run the workers by submitit as jobs of Slurm. Raises UserError where submitit or Slurm is not installed, or where Slurm
    refuses the jobs."""
    return _run_submitit(works, place, "slurm")


def check_engine(engine: str, gpus: int, parameters: Mapping[str, Any]) -> None:
    """Raise UserError where an engine is not installed or not here, or does not take its parameters, as far as that is known
    without any worker."""
    if engine.startswith(SUBMITIT):
        _executor(Workplace(Path(), gpus, parameters), engine.removeprefix(SUBMITIT))
    elif engine == RAY:
        _module(RAY)
        check_address(str(parameters.get("address", "")))


def _executor(place: Workplace, cluster: str) -> Any:
    """Return submitit's executor, with its parameters. Raises UserError where it is not installed, or does not take them."""
    submitit = _module("submitit")
    try:
        executor = submitit.AutoExecutor(folder=str(place.folder / "%j"), cluster=cluster)
    except RuntimeError as error:  # no srun here
        raise UserError(f"hydra/launcher={SUBMITIT}{cluster}: {error}") from None
    asked: dict[str, Any] = {"name": "harness"}
    if place.gpus and cluster == "slurm":  # on this machine each worker has its own in its environment
        asked["gpus_per_node"] = place.gpus
    try:
        executor.update_parameters(**asked | dict(place.parameters))
    except (NameError, TypeError, ValueError) as error:
        raise UserError(f"hydra.launcher.parameters: submitit does not take them ({text_line(error)})") from None
    return executor


def _run_submitit(works: Sequence[Work], place: Workplace, cluster: str) -> list[Outcome]:
    submitit, executor = _module("submitit"), _executor(place, cluster)
    launcher = f"hydra/launcher={SUBMITIT}{cluster}"
    jobs: list[Any] = []
    try:
        for work in works:
            # both of which the job is started with: Slurm hands the one on, and what waits for a job here says to the other how
            # it was cancelled
            with _environment(work.environment), printing_to(place.folder / "submitit.log"):
                try:
                    jobs.append(executor.submit(do_work, work))
                except (OSError, submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
                    raise UserError(f"{launcher}: no job can be submitted ({_last_line(error)})") from None
        return [_result(job.result) for job in jobs]
    finally:
        for job in jobs:
            if not job.done():
                job.cancel()


def run_ray(works: Sequence[Work], place: Workplace) -> list[Outcome]:
    """Run the workers as tasks of Ray, each in a process of its own, on different nodes as far as there are any. Raises
    UserError where Ray is not installed, or can't be reached, or has no node for a worker.

    Ray prints what happens to its nodes, in many lines: that goes to `ray.log`.
    """
    ray = _module("ray")
    began = not ray.is_initialized()
    options = {"log_to_driver": False, "include_dashboard": False, "logging_level": "error"}
    if "address" in place.parameters:
        del options["include_dashboard"]
    with open(place.folder / "ray.log", "a", buffering=1) as log, redirect_stdout(log):
        try:
            if began:
                _start(ray, options | dict(place.parameters))
            _check_room(ray, place)
            tasks = [_task(ray, work, place).remote(work) for work in works]
            return [_result(partial(ray.get, task)) for task in tasks]
        finally:
            if began:
                ray.shutdown()


def _start(ray: Any, options: Mapping[str, Any]) -> None:
    check_address(str(options.get("address", "")))
    try:
        ray.init(**options)
    except (OSError, RuntimeError, TypeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(f"hydra.launcher.parameters: Ray can't be started with them ({text_line(error)})") from None


def check_address(address: str) -> None:
    """Raise UserError where nobody listens at HOST:PORT: Ray would try for minutes. Other ways to name a cluster pass."""
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"hydra.launcher.parameters.address={address}: no Ray answers there ({error})") from None


def _check_room(ray: Any, place: Workplace) -> None:
    """Raise UserError where no node is large enough for a worker: Ray would wait for one without an end."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("GPU", 0) >= place.gpus and node.get("CPU", 0) >= place.cpus for node in nodes):
        sizes = ", ".join(f"{node.get('GPU', 0):.0f} and {node.get('CPU', 0):.0f}" for node in nodes)
        asked = f"hydra.launcher.gpus={place.gpus} hydra.launcher.cpus={place.cpus}"
        raise UserError(f"{asked}: no node of Ray has so many for a worker; GPUs and CPUs of each: {sizes or 'no node'}")


def _task(ray: Any, work: Work, place: Workplace) -> Any:
    """Return Ray's task of a worker; `max_calls` ends its process after it, which gives its GPU back."""
    options = {"num_gpus": place.gpus, "num_cpus": place.cpus, "scheduling_strategy": "SPREAD"}
    return ray.remote(max_calls=1, max_retries=0, runtime_env={"env_vars": work.environment}, **options)(do_work)


ENGINES: dict[str, Engine] = {
    "processes": run_processes,
    "submitit_local": run_submitit_local,
    "submitit_slurm": run_submitit_slurm,
    "ray": run_ray,
}


def _result(get: Callable[[], Outcome]) -> Outcome:
    """Return a worker's outcome; where the engine says that it has none, by an error of its own, what that says."""
    try:
        return get()
    except Exception as error:
        return lost(_first_sentence(first_line(error)))


def _first_sentence(line: str) -> str:
    """Return the first sentence of a line, without what makes it long: Ray goes on with how to find out more."""
    return cut(line.partition(". ")[0].rstrip(" ."), LONGEST_REASON)


def _last_line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"{name} is not installed: pip install 'sparse-attention-harness[clusters]'") from None


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process's environment inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
