"""A worker of a sweep: it runs its part of the jobs in one process, which loads each model once, and writes no report.

python -m harness.jobs.worker WORK OUTCOME    # files of JSON; how a launcher of processes starts one
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict
from functools import partial
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from harness.core.conf_files import MAIN, conf_dir
from harness.core.letters import take_all_letters
from harness.jobs.command_state import CommandState
from harness.jobs.composing import JobComposer
from harness.jobs.guard import guarded
from harness.jobs.one_job import DONE, FAILED_CELLS, as_composed
from harness.jobs.run import run_job
from harness.jobs.work import Outcome, Work

GONE = 1
"""The exit code of a worker whose command is gone."""


def do_work(work: Work) -> Outcome:
    """Run the jobs of a worker, one after the other, in this process. Bad input of one does not stop the others."""
    os.environ.update(work.environment)
    os.chdir(work.folder)
    for stream in (sys.stdout, sys.stderr):
        take_all_letters(stream)
    sys.argv = ["harness", *work.arguments]  # what records hold as the command
    command, codes, shown = CommandState(tuple(work.given)), [DONE], set[str]()
    log = command.sweep.failures
    log.launch, log.sweeps = work.launch or log.launch, True
    reported: set[Path] = set()
    composer = JobComposer(compose_job)
    for job in work.jobs:
        if log.lost:
            log.skipped += 1
            continue
        codes.append(guarded(partial(_run, composer, list(job), command, reported), shown, debug=work.debug))
    studies = {
        str(folder): (study.margin, sorted(study.arms)) for folder, study in command.studies.items() if folder in reported
    }
    return Outcome(max(codes), sorted(shown), studies, log.as_dict())


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
