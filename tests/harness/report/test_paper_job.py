"""``job=paper`` as a command: its items, what it writes and removes, and bad input."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.core.errors import UserError
from harness.jobs.command_state import CommandState
from harness.jobs.paper import items_of, run
from harness.report.csv_file import read_csv
from harness.report.figures.paper import checklist, sheet
from harness.report.figures.paper.items import ITEMS
from harness.report.figures.paper.trainings import base_of, read_trainings, training_text
from harness.study.schema import FinetuneStepRecord
from harness.study.store import Store
from tests.harness.report.support import DENSE, SPARSE, record_cell, record_times
from tests.harness.settings import composed, with_options

ROOT = Path(__file__).resolve().parents[3]
PAPER = ROOT / "results" / "paper"


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pixels, which take less time."""
    monkeypatch.setitem(sheet.RC, "savefig.dpi", 30)


def command_in(results: Path, *given: str, **options: Any) -> tuple[int, str]:
    """Run the job on a folder of studies. Returns its code and what it printed."""
    settings = with_options(composed("job=paper"), **options)
    settings = replace(settings, results=results, given=frozenset(given))
    console = Console(file=io.StringIO(), width=200)
    command = CommandState(console=console)
    code = run(settings, command.open_study(settings), command)
    return code, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with one study, of dense attention and a method with times."""
    store = Store(tmp_path / "results" / "mine")
    record_cell(store, DENSE, "vt", [1.0, 1.0])
    record_cell(store, SPARSE, "vt", [1.0, 0.0])
    record_times(store, SPARSE)
    return tmp_path / "results"


def test_an_item_that_there_is_not_lists_them() -> None:
    with pytest.raises(UserError, match=r"^item=fig66 is not known \(did you mean fig6\?\); choose one of: all, fig2, "):
        items_of("fig66")
    for wrong in (None, 6, ["fig6"], ""):
        with pytest.raises(UserError, match=r"is not known.*; choose one of: all, fig2, .*table4$"):
            items_of(wrong)
    assert items_of("all") == list(ITEMS) and items_of("fig6") == ["fig6"]


def test_an_item_again_is_the_same_and_the_other_entries_stay(results: Path) -> None:
    folder = results / "paper"
    assert command_in(results, item="table2")[0] == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"table2.png", "table2.pdf", "table2.csv", "checklist.csv", "README.md"}
    assert b"CreationDate" not in before["table2.pdf"]
    (entry,) = checklist.read_entries(folder)
    gone = [replace(entry, file=name) for name in ("table2_gone", "../table2", "table2_folder")]
    checklist.write_entries(folder, {"table2": [entry, *gone]})
    (folder / "table2_gone.png").write_bytes(b"of a model that is gone")
    (folder / "table2_folder.pdf").mkdir()
    of_user = [folder / name for name in ("table2_mine.txt", "table2_mine.csv", "table2_draft.png", "../table2.csv")]
    for path in of_user:
        path.write_text("of the user")
    code, said = command_in(results, item="table2")
    assert code == 0 and f"wrote {folder / 'table2.pdf'}" in said
    assert {path.read_text() for path in of_user} == {"of the user"}
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path not in of_user} == before
    command_in(results, item="fig12")
    assert [entry.item for entry in checklist.read_entries(folder)] == ["fig12", "table2"]
    rows = read_csv(folder / "table2.csv")
    assert {row["origin"] for row in rows} == {"ours", "published"} and {row["study"] for row in rows if row["study"]} == {
        "mine"
    }


def test_losses_of_fine_tuning_are_named_by_their_arm(results: Path) -> None:
    store = Store(results / "finetune")
    step: dict[str, Any] = {
        "run": "r",
        "gate_loss": None,
        "recall": None,
        "density": 1.0,
        "lr": 1e-4,
        "tokens": 64,
        "grad_norm": 1.0,
    }
    step |= {"gate_grad_norm": None, "seconds": 1.0, "date": "2026-12-01T00:00:00+00:00"}
    about = {"method": "toy", "sparsity": 0.5, "seed": 3}
    for number, loss in enumerate((2.5, 2.25)):
        store.finetune_steps.append(
            FinetuneStepRecord(training="abc", step=number, loss=loss, about=None if number else about, **step)
        )
    assert command_in(results, item="fig12")[0] == 0
    rows = [row for row in read_csv(results / "paper" / "fig12.csv") if row["origin"] == "ours"]
    assert [(row["series"], float(row["y"])) for row in rows] == [("toy 0.5, seed 3", 2.5), ("toy 0.5, seed 3", 2.25)]


def test_trainings_say_what_each_model_was_made_of() -> None:
    def first(out: str, model: str, method: str, sparsity: float, **others: Any) -> dict[str, Any]:
        return {"about": {"out": out, "model": model, "method": method, "sparsity": sparsity, "seed": 0, **others}}

    steps = [first("d", "m", "dense", 0.0), first("g", "d", "seer", 0.0, gates_only=True), first("s", "m", "seer", 0.9)]
    trainings = read_trainings([*steps, {"about": None}, {"about": {"method": "of before"}}])
    assert {name: base_of(name, trainings) for name in (*trainings, "m")} == dict.fromkeys((*"dgs", "m"), "m")
    texts = ["trained with dense", "dense, gates after", "trained with seer 0.9", ""]
    assert [training_text(name, trainings) for name in (*"dgs", "m")] == texts
    assert base_of("a", read_trainings([first("a", "b", "dense", 0.0), first("b", "a", "dense", 0.0)])) in ("a", "b")


@pytest.mark.parametrize(
    ("given", "options", "line"),
    [
        (("study",), {}, r"^study=.*: job=paper reads all studies in results=: leave study= out$"),
        ((), {"page": "none.md"}, r"^page=none.md: no such file"),
        ((), {"page": 3}, r"^page=3"),
    ],
)
def test_bad_input_is_one_line(results: Path, given: tuple[str, ...], options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        command_in(results, *given, **({"item": "fig12"} | options))
    assert not (results / "paper").exists()


def test_without_studies_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no study there has records; measure something first"):
        command_in(tmp_path, item="fig12")
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_cannot_be_read_is_said_and_left_out(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = results / "broken" / "records"
    broken.mkdir(parents=True)
    (broken / "cells.jsonl").write_text("{no json}\n")
    (results / "mine" / "maps").mkdir()
    (results / "mine" / "maps" / "patterns_x.json").write_text('{"schema": 1}')
    (results / "mine" / "lm_eval" / "m").mkdir(parents=True)
    (results / "mine" / "lm_eval" / "m" / "results_x.json").write_text('{"config": {"sparse_attention": {}}}')
    for name, line in (
        ("table2", "study=broken is left out"),
        ("fig8", "no record of head patterns"),
        ("table3", "is left out"),
    ):
        assert command_in(results, item=name)[0] == 1, "cells that are missing make the command fail, as everywhere"
        assert f"{line}" in (said := capsys.readouterr().err) and said.startswith("warning: "), name
    assert "table2" in {entry.item for entry in checklist.read_entries(results / "paper")}


def test_short_tasks_come_from_lm_evals_files(results: Path) -> None:
    folder = results / "mine" / "lm_eval" / "m"
    folder.mkdir(parents=True)
    ran = {"model": "m", "method": "sieve", "sparsity": 0.5, "tasks": {}}
    ran["tasks"] = {
        "arc_challenge": {"prompts": 4, "mean": 100.0, "density": 0.6},
        "mmlu_law": {"prompts": 1, "mean": 10.0, "density": 1.0},
        "mmlu_art": {"prompts": 3, "mean": 30.0, "density": 0.8},
    }
    scores = {"arc_challenge": {"acc,none": 0.1, "acc_norm,none": 0.25}, "mmlu": {"acc,none": 0.5}}
    import json

    (folder / "results_1.json").write_text(json.dumps({"results": scores, "config": {"sparse_attention": ran}}))
    command_in(results, item="table3")
    rows = {(row["x"], row["panel"]): float(row["y"]) for row in read_csv(results / "paper" / "table3.csv") if row["study"]}
    assert rows["arc_challenge", "accuracy"] == 25.0 and rows["mmlu", "accuracy"] == 50.0
    assert rows["mmlu", "sparsity"] == pytest.approx(0.15) and rows["mmlu", "mean length"] == 25.0
    assert checklist.read_entries(results / "paper")[0].status == "measured but for hellaswag, gsm8k"


@pytest.mark.slow
def test_the_whole_job_writes_what_is_committed(tmp_path: Path) -> None:
    for study in (ROOT / "results").iterdir():
        if study.is_dir() and study != PAPER:
            (tmp_path / study.name).symlink_to(study)
    command_in(tmp_path)
    for path in sorted(PAPER.glob("*.csv")):
        assert (tmp_path / "paper" / path.name).read_bytes() == path.read_bytes(), path.name
