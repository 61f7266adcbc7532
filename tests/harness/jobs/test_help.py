"""The help: every setting with its comment, as the other arguments leave it, within a second."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from harness.core.conf_files import MAIN, conf_file, conf_lines, groups

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("torch", "transformers", "pandas", "matplotlib", "datasets", "lm_eval")
PROGRAM = """
import sys
from harness.__main__ import main
code = main(sys.argv[1:])
print("imported:", *(name for name in {heavy!r} if name in sys.modules))
sys.exit(code)
"""


def imported(folder: Path, *arguments: str, heavy: tuple[str, ...]) -> tuple[int, set[str], str]:
    """Exit code, which of `heavy` a command has imported, and its output, of a process of its own."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{PROGRAM.format(heavy=heavy)}"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=100
    )
    assert "imported:" in done.stdout, done.stderr
    text, _, names = done.stdout.rpartition("imported:")
    return done.returncode, set(names.split()), text + done.stderr


def test_the_help_needs_no_torch(tmp_path: Path) -> None:
    code, names, text = imported(tmp_path, "--help", heavy=(*HEAVY, "numpy", "rich.progress"))
    assert (code, names) == (0, set()) and "length: 4096" in text


@pytest.mark.parametrize("arguments", [("method=seerr",), ("job=report", "task=rular"), ("job=report", "study=none")])
def test_bad_input_needs_no_torch(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, names, text = imported(tmp_path, *arguments, heavy=HEAVY)
    assert (code, names) == (2, set()) and "error: " in text


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    """Its CSV and pictures are those of the records alone."""
    shutil.copytree(ROOT / "results" / "bundled_short" / "records", tmp_path / "results" / "bundled_short" / "records")
    code, names, text = imported(tmp_path, "job=report", "study=bundled_short", heavy=("torch", "transformers"))
    assert (code, names) == (0, set()) and "wrote results/bundled_short/leaderboard.csv" in text
    recorded = (ROOT / "results" / "bundled_short" / "leaderboard.csv").read_bytes()
    assert (tmp_path / "results" / "bundled_short" / "leaderboard.csv").read_bytes() == recorded


def test_help_names_groups_tasks_and_settings(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--help") == 0
    out = capsys.readouterr().out
    assert "python -m harness method=seer sparsity=0.9" in out and "length: 4096" in out
    for names in groups().values():
        assert all(name in out for name in names)
    assert all(name in out for name in ("niah_multivalue", "ruler_core", "longbench_repobench-p", "longbench_e_8k+"))


def test_help_has_every_line_of_the_settings_with_their_comments(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("-h", "job=distill", "method=minference", "decode=quest", "model=hf", "model.path=x") == 0
    out = capsys.readouterr().out
    files = [("", MAIN), ("job", "distill"), ("method", "minference"), ("decode", "quest")]
    for line in (line for file in files for line in conf_lines(conf_file(*file))[1:]):
        assert line.text in out


def test_help_shows_what_the_arguments_leave(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--help", "length=123456", "task=[vt,cwe]", "sparsity=null", "method.last=2", "-m", "samples=3,4") == 0
    out = capsys.readouterr().out
    assert "length: 123456      # tokens of prompt and answer together\n" in out
    assert "task: [vt, cwe]     # a task, a group of tasks, or a list" in out
    assert (
        "sparsity: null      # share of causal blocks left out" in out
        and "  last: 2           # query blocks at the end" in out
    )
    assert "samples: 4          # per task" in out, "a sweep has no one value to show"


def test_help_for_bad_arguments_is_one_line(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--help", "method=seerr") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: method=seerr is not known (did you mean seer?)")


@pytest.mark.parametrize("file", [("", MAIN), *((g, c) for g in groups() if g != "experiment" for c in groups()[g])])
def test_settings_stand_on_one_line(file: tuple[str, str]) -> None:
    """Else help, which reads conf/ by lines, would lose what is on the others."""
    path = conf_file(*file)
    lines = conf_lines(path)
    assert all(line.name or not line.text.strip() or line.text.lstrip().startswith("#") for line in lines)
    settings = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(settings, dict)
    for line in (line for line in lines if line.value):
        value: Any = settings
        for key in line.name.split("."):
            value = value[key]
        assert OmegaConf.to_container(OmegaConf.create(f"value: {line.value}")) == {"value": value}
