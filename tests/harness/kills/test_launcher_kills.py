"""SIGKILL at 100 moments of sweeps on workers: the same command, run again, ends with the rows that one process measures.

    python -m pytest -m slow -n0 -s tests/harness/kills/test_launcher_kills.py

prints the counts by launcher and by what was killed: a worker, the command itself, all processes at once. Half of the deaths
are at a moment, the others just before a change of a file, the joining of records among them. HARNESS_LAUNCHER_KILLS says how
many of each launcher (processes=40,submitit_local=30,ray=30), HARNESS_KILLS_SEED other moments.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from harness.core.partial_files import is_running
from harness.study.integrity import check_study
from harness.study.joining import join_parts
from harness.study.parts import has_ended, parts_in
from harness.study.store import Store
from harness.study.verdict import finished
from tests.harness.kills.fork_server import Server
from tests.harness.kills.test_kills import import_all
from tests.harness.kills.trial import count_changes
from tests.harness.settings import toy_arguments

COUNTS = os.environ.get("HARNESS_LAUNCHER_KILLS", "processes=30,processes without locks=10,submitit_local=30,ray=30")
SEED = int(os.environ.get("HARNESS_KILLS_SEED", "0"))
VICTIMS = ("worker", "parent", "all")
LONGEST = 200.0
"""Seconds that a command may take."""
WORKERS = ("harness.jobs.worker", "submitit.core._submit", "default_worker.py")
"""What is among the arguments of a worker, by launcher."""
RAY = """
import sys
from ray.scripts.scripts import main
sys.executable = sys.argv.pop(1)  # what Ray starts its workers with
main()
"""
RAY_PORT = 6391
QUICK = ("progress=false", "report=false", "checks=false")
MODULES = ("harness.measure.run", "harness.jobs.worker", "transformers.models.llama.modeling_llama", "submitit")


def begin(arguments: list[str]) -> None:
    """Make a forked process what its environment says: one in whose folder locks don't work, one that dies before a change."""
    if os.environ.get("TRIAL_WITHOUT_LOCKS"):
        fcntl.flock = no_locks  # type: ignore[assignment]
    role = role_of(arguments)
    folder = os.environ.get("TRIAL_FOLDER", "")
    if not role or not folder:
        return
    last = None
    if os.environ.get("TRIAL_VICTIM") == role:
        with suppress(FileExistsError):
            os.close(os.open(f"{folder}.victim", os.O_CREAT | os.O_EXCL))
            last = int(os.environ["TRIAL_CHANGE"])
    count = count_changes(Path(folder) / "results", last)
    leave = os._exit

    def counted(code: int) -> None:
        with open(f"{folder}.changes", "a") as file:
            file.write(json.dumps([role, count[0]]) + "\n")
        leave(code)

    os._exit = counted  # type: ignore[assignment]


def role_of(arguments: list[str]) -> str:
    """What a process of a trial is: "worker", "parent", or neither, ""."""
    if any(name in argument for argument in arguments for name in WORKERS):
        return "worker"
    return "parent" if arguments[:2] == ["-m", "harness"] else ""


def no_locks(fd: int, how: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@dataclass
class Trials:
    """The trials of one launcher: how its command is run, what it must end with, and the changes of files of each role."""

    launcher: str
    server: Server
    arguments: list[str]
    expected: dict[Any, Any]
    seconds: float = 0.0
    changes: dict[str, int] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def run(self, folder: Path, victim: str = "", moment: float = 0.0, change: int = 0) -> int:
        """Run the command in a folder, kill what is to be killed, wait for its end, and return its exit code. change: before
        which one of files a process kills itself, if not 0."""
        environment = {**os.environ, "TRIAL_FOLDER": str(folder), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        if "without locks" in self.launcher:
            environment["TRIAL_WITHOUT_LOCKS"] = "1"
        if change:
            environment |= {"TRIAL_VICTIM": victim, "TRIAL_CHANGE": str(change)}
        before, began = len(self.server.children()), time.monotonic()
        with open(f"{folder}.log", "ab") as log:
            command = [str(self.server.python), "-m", "harness", *self.arguments]
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            if victim and not change:
                time.sleep(moment)
                self._kill(victim, before, process, folder)
            code = process.wait(LONGEST)
        if not victim:
            self.seconds = min(self.seconds or LONGEST, time.monotonic() - began)  # the first one may be slow to begin
        return code

    def _kill(self, victim: str, before: int, process: subprocess.Popen[bytes], folder: Path) -> None:
        """Kill a worker, waiting until there is one, the command, or all their processes."""
        while process.poll() is None:
            victims = [c.process for c in self.server.children()[before:] if victim in ("all", role_of(c.arguments))]
            if victim != "parent":
                victims += recording(folder / "results" / "toy")
            victims = [number for number in victims if is_running(number)]
            if victims:
                for number in victims if victim == "all" else victims[-1:]:
                    with suppress(ProcessLookupError):
                        os.kill(number, signal.SIGKILL)
                return
            time.sleep(0.02)

    def wait_for_workers(self, before: int) -> None:
        """Wait until no process of a command is left: those of a launcher may go on where the command is killed."""
        until = time.monotonic() + LONGEST
        while any(is_running(child.process) for child in self.server.children()[before:]):
            assert time.monotonic() < until
            time.sleep(0.05)

    def one(self, folder: Path, victim: str, rng: random.Random) -> None:
        """Kill the command once in a folder of its own, run it again, and compare."""
        by_change = rng.random() < 0.5 and victim in self.changes
        moment = {"change": rng.randint(1, self.changes[victim])} if by_change else {"moment": rng.uniform(0, self.seconds)}
        before = len(self.server.children())
        prepare(folder)
        killed = self.run(folder, victim, **moment)  # type: ignore[arg-type]
        log = Path(f"{folder}.log").read_text(errors="replace")
        if killed == 0 and not Path(f"{folder}.victim").exists():
            return  # it was over before
        code = self.run(folder)
        problems = [f"exit code {code}"] if code else []
        problems += compare(self.expected, folder / "results" / "toy")
        self.wait_for_workers(before)
        join_parts(folder / "results" / "toy")
        problems += compare(self.expected, folder / "results" / "toy", joined=True)
        self.kills[victim] += 1
        if problems:
            log = Path(f"{folder}.log").read_text(errors="replace")
            self.failures.append(f"{self.launcher}, {victim} killed at {moment}: {problems} in {folder}\n{log[-1500:]}")
        else:
            shutil.rmtree(folder)


def start_ray(server: Server) -> None:
    """Start a Ray of this machine whose workers are forks of the server."""
    options = ["--head", "--num-cpus=2", f"--port={RAY_PORT}", "--include-dashboard=false", "--disable-usage-stats", "--block"]
    log = server.log.with_name("ray.log")
    command = [sys.executable, "-c", RAY, str(server.python), "start", *options, f"--temp-dir=/tmp/ray-{os.getpid()}"]
    with log.open("wb") as told:
        server.others.append(subprocess.Popen(command, stdout=told, stderr=told, start_new_session=True))
    until = time.monotonic() + LONGEST
    while "will now block" not in log.read_text():
        assert time.monotonic() < until and server.others[-1].poll() is None, log.read_text()
        time.sleep(0.2)


def recording(study: Path) -> list[int]:
    """The processes that write parts of a study."""
    return [int(part.name.split("-")[1]) for part in parts_in(study / "records") if not has_ended(part)]


def prepare(folder: Path) -> None:
    (folder / ".cache").mkdir(parents=True)
    (folder / ".cache" / "samples").symlink_to(folder.parent / "samples")


def rows(study: Path) -> dict[Any, Any]:
    """What was answered and scored, by cell and sample, and the verdict of each cell."""
    store = Store(study)
    samples = store.samples.read()
    answers = {(r["cell"], r["index"]): [r["prediction"], r["score"], r["density"], r["tokens"]] for r in samples}
    assert len(answers) == len(samples), "doubled"
    cells = {cell: [c["status"], c["summary"]["accuracy"]] for cell, c in finished(store.cells.read()).items()}
    return {**answers, **cells}


def compare(expected: dict[Any, Any], study: Path, *, joined: bool = False) -> list[str]:
    """What is lost, doubled or different in a study. joined: whether all is in its own files now."""
    try:
        check_study(Store(study))
        now = rows(study)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    problems = [f"lost {key}" for key in expected.keys() - now.keys()]
    problems += [f"too many {key}" for key in now.keys() - expected.keys()]
    problems += [f"different {key}" for key in now.keys() & expected.keys() if now[key] != expected[key]]
    if joined:
        lines = (study / "records" / "samples.jsonl").read_bytes().splitlines()
        count = sum(isinstance(key, tuple) for key in expected)
        problems += [f"{len(lines)} lines instead of {count}"] if len(lines) != count else []
        problems += [f"left {part}" for part in parts_in(study / "records")]
    return problems


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    import_all(name for name in MODULES if find_spec(name.partition(".")[0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)
        gc.freeze()
        running = Server(tmp_path, ("harness", *WORKERS), begin)
    yield running
    running.close()


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_the_same_command_ends_what_was_killed_on_workers(
    brief_folder: Path, tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_COMMIT", "0" * 12)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    sweep = [*toy_arguments(brief_folder), "-m", "method=block_topk,streaming_llm", "length=768", *QUICK]
    sweep = [argument for argument in sweep if argument not in ("method=block_topk", "length=1024")]
    (tmp_path / "samples").mkdir()
    plain = Trials("one process", server, sweep, {})
    prepare(tmp_path / "plain")
    assert plain.run(tmp_path / "plain") == 0, (tmp_path / "plain.log").read_text()
    expected = rows(tmp_path / "plain" / "results" / "toy")
    failures = []
    for launcher, _, count in (part.partition("=") for part in COUNTS.split(",")):
        engine = launcher.partition(" ")[0]
        if engine in ("ray", "submitit_local") and find_spec(engine.partition("_")[0]) is None:
            continue
        chosen = ["devices=cpu:2"] if engine == "processes" else [f"hydra/launcher={engine}"]
        if engine == "ray":
            chosen.append(f"+hydra.launcher.parameters.address=127.0.0.1:{RAY_PORT}")
            start_ray(server)
        trials = Trials(launcher, server, [*sweep, *chosen], expected)
        whole = tmp_path / f"{launcher}-whole"
        prepare(whole)
        assert trials.run(whole) == 0, Path(f"{whole}.log").read_text()
        assert compare(expected, whole / "results" / "toy", joined=True) == []
        for line in Path(f"{whole}.changes").read_text().splitlines():
            role, changes = json.loads(line)
            trials.changes[role] = max(changes, trials.changes.get(role, 1))
        rng, number = random.Random(f"{SEED} {launcher}"), 0
        while sum(trials.kills.values()) < int(count):
            number += 1
            trials.one(tmp_path / f"{launcher}-{number}", VICTIMS[sum(trials.kills.values()) % 3], rng)
        with capsys.disabled():
            told = ", ".join(f"{victim} {trials.kills[victim]}" for victim in VICTIMS)
            print(f"{launcher}: {sum(trials.kills.values())} kills ({told}), {len(trials.failures)} failures", flush=True)
        failures += trials.failures
    assert not failures, "\n".join(failures)
