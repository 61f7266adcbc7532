"""What ends a command beside bad input: Ctrl-C, an output that nobody reads, and faults of this program."""

from __future__ import annotations

import errno
import io
import os
import sys
import types
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.core.errors import UserError
from harness.core.letters import take_all_letters
from harness.jobs import command
from harness.jobs.flags import flags_first
from harness.report.leaderboard_csv import write_leaderboard
from harness.study.store import Store


def test_ctrl_c_while_libraries_are_imported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Slow(types.ModuleType):
        def __getattr__(self, name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "harness.jobs.command", Slow("harness.jobs.command"))
    assert main(["length=64"]) == 130
    assert capsys.readouterr().err == "interrupted: what is finished is recorded, the same command carries on\n"


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: the output can't be written (No space left on device); "),
        (PermissionError(errno.EACCES, "Permission denied", "there/file"), 2, "error: there/file: Permission denied\n"),
    ],
)
def test_what_is_no_bad_input(
    error: Exception,
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(_: list[str]) -> int:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_run", fails)
    assert main([]) == code
    err = capsys.readouterr().err
    assert says in err and len(err.splitlines()) == bool(says) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["job=report"], ["-m", "job=report", "seed=0,1"]])
def test_a_full_disk_behind_the_output_of_a_job_is_one_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs: list[object] = []

    def fails(*job: object) -> int:
        jobs.append(job)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "run_job", fails)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()  # none of Hydra's
    assert line.startswith("error: the output can't be written (No space left on device); ")
    assert len(jobs) == 1, "the jobs after it would work for nobody"


def test_a_fault_is_one_line_and_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_run", {}.__getitem__)  # no line of a test's is on the way
    assert main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: TypeError: unhashable type: 'list' (harness/jobs/command.py:")
    assert line.endswith("a fault of this program, not of your input; its traceback is in .cache/traceback.txt")
    assert (tmp_path / ".cache" / "traceback.txt").read_text().startswith("Traceback")
    assert main(["debug=true"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_console_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich raises SystemExit(1), which would mean that cells failed."""

    def fails(_: list[str]) -> int:
        try:
            raise BrokenPipeError
        except BrokenPipeError:
            raise SystemExit(1)  # noqa: B904

    monkeypatch.setattr(command, "_run", fails)
    assert main([]) == 141


def test_an_output_of_ascii_alone() -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    take_all_letters(stream)
    print("Δ dense 78–100 ✓ ÷ 中", file=stream, flush=True)
    assert written.getvalue() == b"d dense 78-100 + / ?\n"


def test_flags_stand_anywhere() -> None:
    assert flags_first(["study=x", "-m", "method=a,b"]) == ["-m", "study=x", "method=a,b"]
    assert flags_first(["a=1", "--cfg", "job", "b=2", "--info", "-h"]) == ["--cfg", "job", "--info=all", "-h", "a=1", "b=2"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--foo"], "unknown flag '--foo'"),
        (["--hlep"], "did you mean --help?"),
        (["-x", "length=1"], "unknown flag '-x'"),
        (["--config-name", "x"], "unknown flag '--config-name'"),
        (["--help=yes"], "unknown flag '--help=yes'"),
        (["--cfg"], "--cfg needs a value: job, hydra, all"),
        (["--cfg=jobs"], "--cfg jobs: must be one of job, hydra, all"),
        (["--package"], "--package needs a value"),
        (["--config-dir", "nowhere"], "--config-dir=nowhere: no such folder"),
    ],
)
def test_wrong_flags(arguments: list[str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        flags_first(arguments)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_full_disk_at_the_leaderboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaderboard.csv").write_text("the old one\n")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"leaderboard.csv can't be written \(No space left on device\): make room"):
        write_leaderboard(Store(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["leaderboard.csv"]
    assert (tmp_path / "leaderboard.csv").read_text() == "the old one\n"
