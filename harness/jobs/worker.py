"""A worker of a sweep: it runs jobs in one process, one after the other, and writes no report.

python -m harness.jobs.worker WORK OUTCOME    # files of JSON; how a launcher of processes starts one
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from harness.core.conf_files import MAIN, conf_dir
from harness.core.letters import take_all_letters
from harness.core.mistakes import in_words
from harness.jobs.command_state import CommandState
from harness.jobs.composing import JobComposer
from harness.jobs.guard import guarded
from harness.jobs.handout import Handout
from harness.jobs.one_job import DONE, FAILED_CELLS, as_composed
from harness.jobs.run import run_job
from harness.jobs.work import Outcome, Work, lost
from harness.study.parts import own_parts

NOTICE = "SUBMITIT_EXECUTOR"
"""The variable that submitit sets for its jobs."""
GONE = 1
"""The exit code of a worker whose command is gone."""


def do_work(work: Work) -> Outcome:
    """Run jobs of a sweep in this process, one after the other, until none is left. Bad input of one does not stop the others.
    What is printed goes to the worker's log, what it records into parts of its own (`harness.study.parts`)."""
    try:
        with printing_to(Path(work.files) / work.log):
            try:
                with _ending_at_notice():
                    return _do_jobs(work)
            except _Notice:
                return lost("its time was over, or it was preempted")
            except Exception as error:
                traceback.print_exc()
                return lost(in_words(error))
    except OSError as error:  # of the log
        return lost(f"{error.filename}: {error.strerror}")


def _do_jobs(work: Work) -> Outcome:
    os.environ.update(work.environment)
    os.chdir(work.folder)
    for stream in (sys.stdout, sys.stderr):
        take_all_letters(stream)
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
    print(f"worker {work.number} on {platform.node()}, process {os.getpid()}, CUDA_VISIBLE_DEVICES: {seen or 'none'}")
    print(f"working folder: {work.folder}", flush=True)
    if problem := _lacks_gpus(work):
        return lost(problem)
    sys.argv = ["harness", *work.arguments]  # what records hold as the command
    command, codes, shown = CommandState(tuple(work.given)), [DONE], set[str]()
    log = command.sweep.failures
    log.launch, log.sweeps = work.launch or log.launch, True
    reported: set[Path] = set()
    composer = JobComposer(compose_job)
    handout, held = Handout(Path(work.files), work.jobs), None
    with own_parts(always=True) as written:
        while not log.lost and (number := handout.take(work.number, held)) is not None:
            # what is left, workers with a device take
            job = list(work.jobs[number])
            print(f"job {number + 1} of {len(work.jobs)}: {' '.join(job)}", flush=True)
            codes.append(guarded(partial(_run, composer, job, command, reported), shown, debug=work.debug))
            handout.end(number)
            held = handout.jobs[number].model
    studies = {
        str(folder): (study.margin, sorted(study.arms)) for folder, study in command.studies.items() if folder in reported
    }
    return Outcome(max(codes), sorted(shown), studies, log.as_dict(), parts=[str(folder) for folder in written.studies])


class _Notice(BaseException):
    """What a worker is told to end by: no Exception, which would count as the failure of a cell, and the worker go on."""


@contextmanager
def _ending_at_notice() -> Iterator[None]:
    """Raise _Notice inside at the signal that submitit sends a job some seconds before its time is over."""
    if NOTICE not in os.environ:
        yield
        return

    def end(*_: object) -> None:
        raise _Notice

    before = signal.signal(signal.SIGUSR2, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR2, before)


def _lacks_gpus(work: Work) -> str:
    """Return what is wrong where a worker sees fewer GPUs than it was to have, else "". It would take jobs and run them on the
    CPU, or fail each of them at once."""
    if not work.gpus:
        return ""
    import torch  # which takes seconds

    count = torch.cuda.device_count()
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
    told = f"it was to have {work.gpus} GPU{'s' * (work.gpus > 1)}, and torch finds {count} (CUDA_VISIBLE_DEVICES: {seen})"
    return told if count < work.gpus else ""


@contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """Have all that this process prints inside go to a file, that of libraries and of Python's own streams."""
    before = os.dup(1), os.dup(2)
    try:
        with open(path, "a", buffering=1, encoding="utf-8", errors="backslashreplace") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
            with redirect_stdout(log), redirect_stderr(log):
                yield
    finally:
        for stream, own in enumerate(before, 1):
            os.dup2(own, stream)
            os.close(own)


def compose_job(arguments: list[str]) -> DictConfig:
    """Return the config of a job, with Hydra's own settings."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return compose(MAIN, arguments, return_hydra_config=True)


def _run(composer: JobComposer, job: list[str], command: CommandState, reported: set[Path]) -> int:
    """Run one job, whose report is left to whoever joins the workers; its study goes among those `reported` if it wants one."""
    cfg = composer(job)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    wants_report = bool(cfg.report)
    OmegaConf.update(cfg, "report", False)
    with as_composed(HydraConfig.get()):
        failed = run_job(cfg, command)
    if wants_report:
        reported |= set(command.studies)
    return FAILED_CELLS if failed else DONE


def _end_with_parent() -> None:
    """End this process as soon as the one that started it is gone: the pipe of its standard input is then closed. Python's own
    `stdin` would have a lock, which nobody lets go of at the end."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(GONE)

    threading.Thread(target=wait, daemon=True).start()


def main(work_file: str, outcome_file: str) -> None:
    """Do the work of a file, and write its outcome into another, whole or not at all."""
    _end_with_parent()
    target = Path(outcome_file).resolve()
    outcome = do_work(Work(**json.loads(Path(work_file).read_text())))
    part = target.with_suffix(".part")
    part.write_text(json.dumps(asdict(outcome)))
    part.replace(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
