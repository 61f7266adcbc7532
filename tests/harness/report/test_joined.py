"""One leaderboard of all studies: its rows and their types, what it does with damage, its columns, and the file of results/."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import UserError
from harness.report import joined_columns
from harness.report.joined import in_order, read_joined, study_rows, write_joined
from harness.report.joined_columns import COLUMNS, SECTIONS
from harness.report.leaderboard_csv import write_leaderboard
from harness.report.recorded_rows import studies_in
from harness.study.identity import ArmIdentity, digest
from harness.study.store import Store
from harness.tasks.names import GROUPS, TASKS, benchmark_of, group_of
from tests.harness.report.support import DATE, DENSE, SETTING, SPARSE, record_cell, record_times

ROOT = Path(__file__).resolve().parents[3]
COMMITTED = ROOT / "results" / "leaderboard.csv"
TIMED = replace(SPARSE, sparsity=0.8)


def study(name: str, scores: list[float], results: Path = Path("results")) -> Store:
    """A study of dense attention and one method on two tasks, with these scores each."""
    store = Store(results / name)
    for arm in (DENSE, SPARSE):
        for task in ("vt", "cwe"):
            record_cell(store, arm, task, scores, density=0.1003)
    return store


def joined(path: str = "results/leaderboard.csv") -> list[dict[str, Any]]:
    return read_joined(Path(path))


def test_all_studies_in_one_file_and_the_same_bytes_twice(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    record_times(study("one", [1.0, 0.0]), TIMED)
    study("two", [1.0, 0.0, 1.0, 1.0])
    assert command("job=leaderboard") == 0
    first = Path("results/leaderboard.csv").read_bytes()
    assert capsys.readouterr().out == ("13 rows of 2 studies: 4 average, 1 times, 8 cell\nwrote results/leaderboard.csv\n")
    assert command("job=leaderboard", "job.out=again.csv") == 0
    assert Path("again.csv").read_bytes() == first
    assert first.decode().splitlines()[0] == ",".join(COLUMNS)

    rows = joined()
    assert all(row[name] is not None for row in rows for name, column in COLUMNS.items() if column.always)
    (average,) = [row for row in rows if (row["study"], row["kind"], row["method"]) == ("two", "average", "sieve")]
    assert {name: average[name] for name in ("knobs", "benchmark", "task", "task_set", "tasks", "samples", "accuracy")} == {
        "knobs": "width=3",
        "benchmark": "ruler",
        "task": "avg",
        "task_set": "cwe+vt",
        "tasks": 2,
        "samples": 8,
        "accuracy": 0.75,
    }
    assert (average["requested_density"], average["density"], average["effective_density"]) == (0.1, 0.1003, 0.1)
    assert (average["match"], average["rankable"], average["is_bound"], average["is_dense"]) == ("matched", True, False, False)
    assert average["settings"].startswith("model=hf model.path=tiny model.name=tiny method=sieve")
    cells = [row for row in rows if row["kind"] == "cell" and row["group"] == average["group"] and row["study"] == "two"]
    assert [(row["task"], row["settings"], row["samples"]) for row in cells] == [("cwe", None, 4), ("vt", None, 4)]
    (times,) = [row for row in rows if row["kind"] == "times"]
    assert (times["total_ms"], times["total_low"], times["speedup"], times["rankable"]) == (4.0, 3.9, 4.0, False)
    assert times["settings"] and times["benchmark"] is None


def test_of_the_same_cell_in_two_studies_one_counts(tmp_path: Path) -> None:
    stores = [study("one", [1.0, 0.0], tmp_path), study("two", [1.0, 0.0, 1.0], tmp_path)]
    rows = in_order(row for store in stores for row in study_rows(store))
    assert Counter((row["study"], row["superseded_by"]) for row in rows) == {("one", "two"): 6, ("two", None): 6}
    assert in_order(reversed([dict(row) for row in rows]))[0]["study"] == "one", "whatever order they come in"


def test_what_may_not_win_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "held")
    bound = ArmIdentity(SETTING, "oracle", 0.9, {}, 64, "reference")
    record_cell(store, DENSE, "vt", [1.0, 1.0])
    record_cell(store, bound, "vt", [1.0, 1.0])
    record_cell(store, SPARSE, "vt", [1.0, 1.0], density=0.2)
    record_cell(store, TIMED, "vt", [1.0, 1.0], sample_status="gated", sample_reason="two BOS")
    rows = {row["method"] + str(row["requested_density"]): row for row in study_rows(store) if row["kind"] == "cell"}
    assert {name: row["rankable"] for name, row in rows.items()} == {
        "fullNone": True,
        "oracle0.1": False,
        "sieve0.1": False,
        "sieve0.2": False,
    }
    assert rows["oracle0.1"]["is_bound"] and rows["fullNone"]["is_dense"]
    assert (rows["sieve0.1"]["match"], rows["sieve0.1"]["effective_density"]) == ("off_density", 0.2)
    assert "two BOS" in rows["sieve0.2"]["reason"]


def test_a_damaged_study_is_named_and_the_others_stay(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    study("good", [1.0, 0.0])
    damaged = study("damaged", [1.0, 0.0])
    damaged.cells.path.write_text("{}\n")
    begun, lost = study("begun", [1.0]), study("lost", [1.0, 0.0])
    begun.cells.path.write_text(begun.cells.path.read_text().replace('"status":"ok"', '"status":"running"'))
    write_leaderboard(begun)  # of no row as yet, which is no fault
    write_leaderboard(lost)
    for file in lost.files():
        file.path.unlink(missing_ok=True)
    lost.cells.path.parent.rmdir()
    Path("results/notes").mkdir()
    capsys.readouterr()
    assert command("job=leaderboard") == 1
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert first.startswith("warning: study=damaged is left out: results/damaged/records/cells.jsonl:1: ")
    assert second == "warning: study=lost is left out: it has a leaderboard, and no records to make it of"
    assert out.startswith("6 rows of 1 study: ")
    assert {row["study"] for row in joined()} == {"good"}


def test_bad_input_is_one_line(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> str:
        assert command("job=leaderboard", *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "results=results: no study there has records" in said()
    Path("afile").touch()
    assert "error: results=afile: no study there has records" in said("results=afile")
    damaged = study("damaged", [1.0])
    damaged.cells.path.write_text("{}\n")
    assert command("job=leaderboard") == 2
    assert "none of its studies can be read; results/leaderboard.csv stays as it is" in capsys.readouterr().err
    assert not Path("results/leaderboard.csv").exists()
    assert "study=damaged: job=leaderboard joins every study of results=" in said("study=damaged")
    assert "takes the whole study, whatever method= says" in said("method=seer")
    assert "out=results: a folder; name a file in it, such as results/leaderboard.csv" in said("job.out=results")
    Path("file").touch()
    assert "out=file/below.csv: file can't be written to (it is no folder)" in said("job.out=file/below.csv")


def test_a_file_that_is_no_joined_leaderboard(tmp_path: Path) -> None:
    path = tmp_path / "leaderboard.csv"
    with pytest.raises(UserError, match=r"can't be read \(No such file"):
        read_joined(path)
    path.write_text("study,model\n")
    with pytest.raises(UserError, match="has no column kind: make it again with job=leaderboard"):
        read_joined(path)
    line = {name: "" for name in COLUMNS} | {"version": "9"}
    for change, said in (
        ({}, "row 2: columns of version 9, and this reads version 1"),
        ({"version": "1", "is_bound": "yes"}, "'yes' is neither True nor False"),
        ({"version": "1", "length": "long"}, "row 2: invalid literal"),
    ):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([list(COLUMNS), list((line | change).values())])
        with pytest.raises(UserError, match=said):
            read_joined(path)


def test_the_columns_have_a_version() -> None:
    """Columns of a version stay: one that goes, moves to another type or is renamed raises it, and this with it."""
    first = {"version": 1, "columns": 75, "digest": "35448f37b54692a1"}
    held = [(column.name, column.type) for column in list(COLUMNS.values())]
    assert (joined_columns.VERSION, len(held), digest(held)) == tuple(first.values())
    assert sum(map(len, SECTIONS.values())) == len(COLUMNS), "no column twice"


def test_the_document_of_the_columns_is_made_of_them() -> None:
    assert (ROOT / "docs" / "columns.md").read_text() == joined_columns.document()


def test_tasks_have_a_benchmark_and_sets_a_name() -> None:
    assert all(benchmark_of(task) for task in TASKS)
    assert benchmark_of("gone") == ""
    assert group_of(list(reversed(GROUPS["ruler"]))) == "ruler"
    assert group_of(["vt", "cwe"]) == "cwe+vt"


def columns_of(path: Path, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Some columns of a CSV, a row each."""
    with path.open(newline="") as file:
        reader = csv.reader(file)
        yield from map(itemgetter(*map(next(reader).index, names)), reader)


def test_the_committed_file_holds_what_the_studies_hold() -> None:
    """Where this fails: `python -m harness job=leaderboard`."""
    shared = ("study", "method", "task", "length", "samples", "accuracy", "density", "perplexity", "difference_low", "ttft_ms")
    own: Counter[tuple[str, ...]] = Counter()
    for path in sorted(ROOT.glob("results/*/leaderboard.csv")):
        if not Store(path.parent).kernels.exists() and path.parent.name != "demo":  # which git ignores
            own.update(columns_of(path, shared))
    assert Counter(columns_of(COMMITTED, shared)) == own


@pytest.mark.slow
def test_the_committed_file_comes_out_of_the_records_again(tmp_path: Path) -> None:
    stores = (store for store in studies_in(ROOT / "results") if store.folder.name != "demo" and not store.kernels.exists())
    rows = in_order(row for store in stores for row in study_rows(store))
    assert write_joined(tmp_path / "leaderboard.csv", rows).read_bytes() == COMMITTED.read_bytes()


def test_the_code_of_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is run as it is printed, on the committed file. The question takes three lines, and prints what is below them."""
    text = (ROOT / "docs" / "leaderboard.md").read_text()
    question, reading = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (printed,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    assert question.partition("\n\n")[2].count("\n") == 3
    monkeypatch.chdir(ROOT)
    output = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(output):
        warnings.simplefilter("error")  # pandas warns of columns of two types
        exec(question, {})
    assert [line.rstrip() for line in output.getvalue().splitlines()] == printed.splitlines()
    names: dict[str, Any] = {}
    exec(reading, names)
    assert {"last": "2"}.items() <= next(knobs for knobs in names["knobs"] if knobs.get("last") == "2").items()


def test_a_day_is_all_of_a_date(tmp_path: Path) -> None:
    assert {row["date"] for row in study_rows(study("one", [1.0], tmp_path))} == {DATE[:10]}
