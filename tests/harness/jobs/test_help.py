"""The help: every setting with its comment, as the other arguments leave it, within a second."""

from __future__ import annotations

import json
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
COMMANDS = {
    "help": ("--help",),
    "method": ("method=seerr",),
    "task": ("job=report", "task=rular"),
    "study": ("job=report", "study=none"),
    "report": ("job=report", "study=bundled_short"),
    "status": ("job=status", "results=../report/results", "study=bundled_short"),
}
"""Arguments of commands that need no torch, by the folder that each runs in."""
REPORTED = Path("report", "results", "bundled_short")

# Runs each command in a process of its own, forked from one that has imported what every command begins with, in the folder of
# its name. Its exit code, and which modules there are at its end, go into the file `code`, what it says into `said`.
PROGRAM = """
import contextlib, json, os, sys
import harness.jobs.command
from harness.__main__ import main

for name, arguments in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        os.chdir(name)
        with open("said", "w") as said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main(arguments)
        with open("code", "w") as file:
            print(code, *(module for module in json.loads(sys.argv[2]) if module in sys.modules), file=file)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of COMMANDS, the last of which finds the records of a study."""
    folder = tmp_path_factory.mktemp("commands")
    for name in COMMANDS:
        (folder / name).mkdir()
    shutil.copytree(ROOT / "results" / "bundled_short" / "records", folder / REPORTED / "records")
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, tuple[int, set[str], str]]:
    """Of each of COMMANDS: its exit code, which modules that take long are imported at its end, and what it said."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{PROGRAM}"
    names = (*HEAVY, "numpy", "rich.progress")
    command = [sys.executable, "-c", program, json.dumps(COMMANDS), json.dumps(names)]
    subprocess.run(command, cwd=folder, check=True, timeout=100)
    answers = {}
    for name in COMMANDS:
        code, *imported = (folder / name / "code").read_text().split()
        answers[name] = int(code), set(imported), (folder / name / "said").read_text()
    return answers


def test_the_help_needs_no_torch(told: dict[str, tuple[int, set[str], str]]) -> None:
    code, imported, text = told["help"]
    assert (code, imported) == (0, set()) and "length: 4096" in text


@pytest.mark.parametrize("command", ["method", "task", "study"])
def test_bad_input_needs_no_torch(told: dict[str, tuple[int, set[str], str]], command: str) -> None:
    code, imported, text = told[command]
    assert (code, imported & set(HEAVY)) == (2, set()) and "error: " in text


def test_a_report_needs_no_torch(told: dict[str, tuple[int, set[str], str]], folder: Path) -> None:
    """Its CSV and pictures are those of the records alone."""
    code, imported, text = told["report"]
    assert (code, imported & {"torch", "transformers"}) == (0, set())
    assert "wrote results/bundled_short/leaderboard.csv" in text
    recorded = (ROOT / "results" / "bundled_short" / "leaderboard.csv").read_bytes()
    assert (folder / REPORTED / "leaderboard.csv").read_bytes() == recorded


def test_the_status_of_a_study_needs_no_torch(told: dict[str, tuple[int, set[str], str]]) -> None:
    code, imported, text = told["status"]
    assert (code, imported & set(HEAVY)) == (0, set())
    assert text == "study=bundled_short: nothing runs\n22 of 22 cells done, 1,100 of 1,100 samples\n"


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
