"""Arms that are taken out of a study by the command: chosen, shown, asked for, and brought back."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.core.errors import UserError
from harness.jobs import compare
from harness.jobs.command_state import CommandState
from harness.jobs.prune import run
from harness.report import study_report
from harness.report.compare import comparisons
from harness.report.csv_file import read_csv
from harness.report.leaderboard_csv import write_leaderboard
from harness.report.study_report import report_study
from harness.report.terminal.prune_table import show_selection
from harness.study.identity import ArmIdentity, Decoding
from harness.study.pruning import Removed, take_out, taken_out
from harness.study.schema import CalibrationRecord
from harness.study.selection import Selector, select, selectors
from harness.study.store import Store
from tests.harness.report.support import DATE, DENSE, SETTING, record_cell
from tests.harness.settings import composed, with_options
from tests.harness.study.whole_study import record_kernels

NET = ArmIdentity(SETTING, "net", 0.9, {"width": 2}, 64, "reference")
ARMS = {
    "sieve 2": ArmIdentity(SETTING, "sieve", 0.9, {"width": 2, "rule": "top"}, 64, "reference"),
    "sieve 3": ArmIdentity(SETTING, "sieve", 0.9, {"width": 3, "rule": "top"}, 64, "reference"),
    "sieve half": ArmIdentity(SETTING, "sieve", 0.5, {"width": 9, "rule": "top"}, 64, "reference"),
    "longer": replace(NET, setting=replace(SETTING, length=8192)),
    "net": NET,
    "decoding": replace(NET, decode=Decoding("quest", {"budget": 64}, "reference")),
}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A study of several arms on two tasks."""
    monkeypatch.setattr("os.fsync", lambda fd: None)
    store = Store(tmp_path / "results" / "one")
    for arm in (DENSE, *ARMS.values()):
        for task in ("vt", "cwe"):
            record_cell(store, arm, task, [1.0, 0.0], density=1 - (arm.sparsity or 0.0))
    identity = ARMS["sieve 2"].as_dict() | {"knobs": {"width": 7, "rule": "top"}, "tasks": ["vt"]}
    store.calibrations.append(CalibrationRecord("b", "r1", identity, "width", 2.0, 0.1, 0.1, [0.1], 4, DATE))
    return store


def chosen(store: Store, given: dict[str, Any]) -> Removed:
    """What settings choose; those with a dot are of groups."""
    settings = composed("job=prune")
    options = {name: given[name] for name in given.keys() & settings.options.keys()}
    knobs = {name.partition(".")[2]: value for name, value in given.items() if name.startswith("method.")}
    decode = {name.partition(".")[2]: value for name, value in given.items() if name.startswith("decode.")}
    fields = {"task": "tasks", "dtype": "dtype_choice"}
    others = {fields.get(name, name): value for name, value in given.items() if "." not in name and name not in options}
    settings = replace(with_options(settings, **options), **others, given=frozenset(given))
    settings = replace(settings, method_knobs=knobs, decode_knobs=decode)
    return select(store, list(selectors(settings))).removed


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"method": "sieve"}, ["sieve 2", "sieve 3", "sieve half"]),
        ({"method": "sieve", "sparsity": 0.9}, ["sieve 2", "sieve 3"]),
        ({"method": "sieve", "method.width": 3}, ["sieve 3"]),
        ({"length": 8192}, ["longer"]),
        ({"method": "net", "decode": "quest", "decode.budget": 64}, ["decoding"]),
        ({"method": "net", "decode": "dense", "length": 4096}, ["net"]),
        ({"arm": ARMS["net"].id[:8]}, ["net"]),
        ({"method": "net", "question": "after"}, []),
        ({"method": "net", "seed": 1}, []),
        ({"method": "net", "block_size": 64, "dtype": "float32"}, ["longer", "net", "decoding"]),
    ],
)
def test_what_is_given_chooses(study: Store, given: dict[str, Any], names: list[str]) -> None:
    assert chosen(study, given).arms == {ARMS[name].id for name in names}


def test_what_chooses_is_said_as_the_command_line_has_it() -> None:
    settings = replace(composed("job=prune"), method_knobs={"last": None}, decode_knobs={"shared": True})
    texts = [selector.text for selector in selectors(replace(settings, given=frozenset({"method.last", "decode.shared"})))]
    assert texts == ["method.last=null", "decode.shared=true"]


def test_a_calibration_goes_with_the_last_arm_that_has_its_value(study: Store) -> None:
    assert not chosen(study, {"method": "sieve", "method.width": 3}).calibrations, "two whole numbers share it"
    assert chosen(study, {"method": "sieve", "sparsity": 0.9}).calibrations == {"b"}


def test_single_cells_leave_what_else_is_known_of_their_arm(study: Store) -> None:
    some = chosen(study, {"method": "sieve", "task": ("vt",)})
    assert len(some.cells) == 3 and not some.arms
    all_of_it = chosen(study, {"method": "sieve", "task": ("vt", "cwe")})
    assert len(all_of_it.cells) == 6 and len(all_of_it.arms) == 3


def test_cases_of_kernels_are_chosen_too(tmp_path: Path) -> None:
    store = record_kernels(tmp_path / "kernels")
    assert chosen(store, {"method": "uniform", "sparsity": 0.9}).cases == {"c"}
    assert not chosen(store, {"method": "uniform", "sparsity": 0.5}).cases


def prune(store: Store, given: dict[str, Any] | None = None, **options: Any) -> None:
    """Run the job, from the folder of the results."""
    settings = replace(with_options(composed("job=prune"), **options), study=store.folder.name, **(given or {}))
    command = CommandState()
    assert run(replace(settings, given=frozenset(given or {})), command.open_study(settings), command) == 0


def test_it_shows_asks_takes_out_and_brings_back(
    study: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(pairs: object, folder: Path, name: str, left_out: object) -> list[Path]:
        (folder / f"compare_{name}.png").write_bytes(b"picture")
        return [folder / f"compare_{name}.png"]

    monkeypatch.chdir(study.folder.parents[1])
    monkeypatch.setattr(study_report, "_figures", lambda rows, folder: [])
    monkeypatch.setattr(compare.figure, "write", draw)
    compare.write(comparisons(study, "sieve (width 3)"), study.folder)
    write_leaderboard(study)
    before = {path: path.read_bytes() for path in study.folder.rglob("*") if path.is_file()}
    given = {"method": "sieve", "sparsity": 0.9}
    with pytest.raises(UserError, match="job=prune asks first, and there is no terminal to ask at: ask=false"):
        prune(study, given)
    assert "5 of 7 arms stay" in capsys.readouterr().out
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for answer in ("", "n", EOFError):

        def reply(prompt: str, answer: Any = answer) -> str:
            assert prompt == "take these 2 out? [y/N] "
            if answer is EOFError:
                raise EOFError
            return str(answer)

        monkeypatch.setattr("builtins.input", reply)
        prune(study, given)
        assert "nothing was changed" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in study.folder.rglob("*") if path.is_file()} == before
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    prune(study, given)
    out = capsys.readouterr().out
    assert "bring it back: python -m harness job=prune study=one undo=1" in out
    assert "removed results/one/compare_sieve-width-3.csv: its line is gone" in out
    rows = read_csv(study.folder / "leaderboard.csv")
    assert {row["sparsity"] for row in rows if row["method"] == "sieve"} == {"0.5"} and len(rows) == 15
    assert not list(study.folder.glob("compare_*"))
    prune(study, undo=1)
    assert {path: path.read_bytes() for path in study.folder.rglob("*") if path.is_file()} == before


def test_an_arm_that_loses_single_cells_stays(study: Store) -> None:
    text = io.StringIO()
    selection = select(study, [Selector("task=vt", lambda record: record["identity"].get("task") == "vt", True)])
    show_selection(Console(file=text, width=80), selection, study)
    assert "7 of 7 arms stay, 7 of them without these cells" in text.getvalue()


@pytest.mark.parametrize(
    ("options", "given", "error"),
    [
        ({}, {}, "nothing says what to take out: give method="),
        ({"method": "gone"}, {}, "method=gone: study=one has no such arm; it has "),
        ({}, {"seed": 0}, "seed=0: that is all of study=one: move its folder away instead"),
        ({"undo": 1}, {}, "undo=1: there is no such number; nothing is out of this study"),
        ({"undo": "last"}, {}, "undo=last: must be a whole number of at least 1"),
        ({"undo": 1}, {"method": "net"}, "undo=1: brings back all that went under this number, not only method=net: leave"),
    ],
)
def test_bad_input_is_one_line(
    study: Store, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], given: dict[str, Any], error: str
) -> None:
    monkeypatch.chdir(study.folder.parents[1])
    with pytest.raises(UserError) as raised:
        prune(study, given, **options)
    assert str(raised.value).startswith(error) and "\n" not in str(raised.value) and not taken_out(study)


def test_the_same_command_goes_on_where_its_process_died(
    study: Store, command: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    removed = chosen(study, {"method": "net"})
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("harness.study.pruning._replace_all", die)
        take_out(study, removed, "method=net")
    with pytest.raises(UserError, match="nothing is lost, the same command goes on, and this brings them back"):
        report_study(study, Console(quiet=True))
    assert command("job=prune", "study=one", "method=net", "ask=false", "report=false") == 0
    assert "bring it back: python -m harness job=prune study=one undo=1" in capsys.readouterr().out
    prune(study, {"method": "net", "report": False})
    assert "bring it back: python -m harness job=prune study=one undo=1" in capsys.readouterr().out, "it is done already"
    assert list(taken_out(Store(study.folder))) == [1]
    assert "net" not in {record["identity"]["method"] for record in Store(study.folder).cells.read()}
