"""SIGKILL at 200 moments over all jobs: the same command, run again, ends with what it leaves unharmed, and nothing else.

    python -m pytest -m slow -n0 -s tests/harness/kills

prints the counts. HARNESS_KILLS sets how many kills there are, HARNESS_KILLS_SEED other moments, HARNESS_KILLS_ONLY cases, by
parts of their names with a semicolon between.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import pytest

from harness.jobs.table import JOBS
from tests.harness.kills.cases import Case, all_cases
from tests.harness.kills.outputs import Difference, compare, snapshot
from tests.harness.kills.trial import Ended, draw_death, run

KILLS = int(os.environ.get("HARNESS_KILLS", "200"))
SEED = int(os.environ.get("HARNESS_KILLS_SEED", "0"))
ONLY = os.environ.get("HARNESS_KILLS_ONLY", "").split(";")


@dataclass
class Tally:
    """The kills of one case, and what they did."""

    kills: int = 0
    late: int = 0
    differences: list[Difference] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def line(self, name: str) -> str:
        """A row of the table in docs/reliability.md."""
        parts = [sum(getattr(d, what) for d in self.differences) for what in ("lost", "doubled", "different")]
        left = sum(len(d.files_left) for d in self.differences)
        return f"| {name} | {self.kills} | {' | '.join(map(str, parts))} | {left} |"


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two books whose text the toy model's tokenizer knows."""
    folder = tmp_path_factory.mktemp("books")
    for number in range(2):
        text = " ".join(f"The magic number for apple is: {n * 7919 + number}." for n in range(500))
        (folder / f"{number}.txt").write_text(text)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_the_same_command_ends_what_was_killed(
    brief_folder: Path,
    books: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    blank_pictures: None,
) -> None:
    monkeypatch.setenv("HARNESS_COMMIT", "0" * 12)  # git is asked once a process otherwise
    cases = [case for case in all_cases(brief_folder, books) if any(name in case.name for name in ONLY)]
    import_all()
    tallies = {case.name: Tally() for case in cases}
    for place, case in enumerate(cases):
        count = KILLS // len(cases) + (place < KILLS % len(cases))
        if count:
            kill_case(case, count, tmp_path / f"case{place}", tallies[case.name])
        with capsys.disabled():
            print(tallies[case.name].line(case.name), *tallies[case.name].failures, sep="\n", flush=True)
    assert not [failure for tally in tallies.values() for failure in tally.failures]
    assert sum(tally.kills for tally in tallies.values()) == KILLS


def import_all(modules: Iterable[str] = ()) -> None:
    """Import here, once, what the commands import, which are forked off this process. Nothing is run that starts threads."""
    for job in JOBS.values():
        job.load()
    for name in modules:
        with suppress(Exception):
            import_module(name)
    gc.collect()
    gc.freeze()  # a fork would copy all that is looked through for garbage


def kill_case(case: Case, count: int, folder: Path, tally: Tally) -> None:
    """Kill a command `count` times, each time in a folder of its own, run it again, and compare."""
    prepared, warm, whole = folder / "prepared", folder / "warm", folder / "whole"
    prepared.mkdir(parents=True)
    for command in case.before:
        assert run(case, command, prepared, processes=1).codes == [0], log_of(prepared)
    shutil.copytree(prepared, warm)
    import_all(run(case, case.command, warm).modules)
    shutil.copytree(prepared, whole)
    unharmed = run(case, case.command, whole)
    if set(unharmed.codes) != {0}:
        tally.failures.append(f"  {case.name}: fails unharmed\n{log_of(whole)[-1500:]}")
        return
    expected = snapshot(whole)
    rng = random.Random(f"{SEED} {case.name}")
    number = 0
    while tally.kills < count:
        number += 1
        trial = folder / f"trial{number}"
        shutil.copytree(prepared, trial)
        one_kill(case, trial, expected, unharmed, rng, number, tally)


def one_kill(
    case: Case, trial: Path, expected: dict[str, object], unharmed: Ended, rng: random.Random, number: int, tally: Tally
) -> None:
    death = draw_death(rng, case, unharmed, number)
    killed = run(case, case.command, trial, death)
    if -9 not in killed.codes:  # it was faster this time
        tally.late += 1
        assert tally.late < 100
        return
    tally.kills += 1
    again = run(case, case.command, trial)
    difference = compare(expected, snapshot(trial))
    tally.differences.append(difference)
    if set(again.codes) != {0} or not difference.clean:
        tally.failures.append(f"  {case.name}, killed {death}: exit codes {again.codes}, {difference}\n{log_of(trial)[-1500:]}")
        return
    shutil.rmtree(trial)


def log_of(folder: Path) -> str:
    """What the commands in a folder printed."""
    return (folder.parent / f"{folder.name}.log").read_text(errors="replace")
