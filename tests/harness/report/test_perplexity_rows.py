"""Rows of perplexity from records: pairing, intervals, gates; their picture and table."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.report.common_documents import on_common_documents
from harness.report.common_tasks import comparable
from harness.report.figures import PICTURES, write_figures
from harness.report.figures import perplexity as figure
from harness.report.leaderboard import leaderboard_rows
from harness.report.leaderboard_csv import row_columns, write_leaderboard
from harness.report.rows import Row
from harness.report.terminal.perplexity_table import show_perplexities
from harness.study.identity import ArmIdentity, Setting
from harness.study.schema import Status
from harness.study.store import Store
from tests.harness.report.support import record_documents


def arm(method: str, sparsity: float = 0.9, length: int = 4096) -> ArmIdentity:
    setting = Setting("tiny", "abc", length, 0, "float32", "cpu", "sdpa")
    return (
        ArmIdentity(setting, "full", 0.0) if method == "full" else ArmIdentity(setting, method, sparsity, {}, 64, "reference")
    )


def rows(store: Store) -> dict[tuple[str, int], dict[str, Any]]:
    """The columns of every row, by method and length."""
    return {(r.method, r.length): row_columns(r) for r in leaderboard_rows(store)}


def test_perplexity_weighs_tokens_and_pairs_documents(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    record_documents(store, arm("full"), [200.0, 500.0, 210.0])
    record_documents(store, arm("sieve"), [220.0, 540.0])
    by_arm = rows(store)
    assert set(by_arm) == {("full", 4096), ("sieve", 4096)}, "no average over tasks"
    dense, sparse = by_arm["full", 4096], by_arm["sieve", 4096]
    assert dense["perplexity"] == pytest.approx(math.exp(910 / 400)) and dense["samples"] == 3
    assert sparse["perplexity"] == pytest.approx(math.exp(760 / 300))
    assert sparse["dense_perplexity"] == pytest.approx(math.exp(700 / 300)), "on the documents that both have"
    assert sparse["perplexity_ratio"] == pytest.approx(math.exp(60 / 300))
    assert sparse["perplexity_ratio_low"] == pytest.approx(math.exp(20 / 100))
    assert sparse["perplexity_ratio_high"] == pytest.approx(math.exp(40 / 200))
    assert (sparse["density"], sparse["status"], sparse["accuracy"]) == (0.1, "ok", None)
    assert dense["tokens_s"] == pytest.approx(100 / 1.5), "the median document"
    assert comparable(leaderboard_rows(store)) == ([], [])


def test_an_infinite_perplexity_is_no_crash(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    record_documents(store, arm("full"), [1e6, 1e6, 1e6])
    assert rows(store)["full", 4096]["perplexity"] == math.inf
    write_leaderboard(store)


def test_below_dense_by_more_than_noise_is_gated(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    record_documents(store, arm("full"), [300.0 + i for i in range(10)])
    record_documents(store, arm("sieve"), [290.0 + i for i in range(10)])
    record_documents(store, arm("net"), [300.0 + i + (-1) ** i * 5 for i in range(10)])
    by_arm = rows(store)
    assert by_arm["sieve", 4096]["status"] == "gated" and "below dense" in by_arm["sieve", 4096]["reason"]
    assert by_arm["net", 4096]["status"] == "ok"


def test_a_failed_cell_has_a_row_without_numbers(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    record_documents(store, arm("sieve"), [290.0], status=Status.FAILED)
    row = rows(store)["sieve", 4096]
    assert (row["status"], row["reason"], row["perplexity"]) == ("failed", "why", None)


def study(tmp_path: Path, lengths: list[int]) -> list[Row]:
    store = Store(tmp_path / "mine")
    for length in lengths:
        record_documents(store, arm("full", length=length), [230.0, 480.0, 235.0])
        for sparsity in (0.5, 0.9):
            record_documents(store, arm("sieve", sparsity, length), [230 + 20 * sparsity, 480 + 60 * sparsity, 240.0])
    return leaderboard_rows(store)


def test_a_picture_by_length_and_one_of_a_single_length(tmp_path: Path) -> None:
    table = study(tmp_path, [4096, 8192])
    assert [p.name for p in write_figures(table, tmp_path)] == ["perplexity.png"]
    (axes,) = figure.draw([r for r in table if r.perplexity]).axes
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "length (tokens), log scale")
    assert {"full", "sieve"} <= {t.get_text() for t in axes.texts}
    (single,) = figure.draw([r for r in table if r.length == 4096]).axes
    assert single.get_xlabel().startswith("density")


def test_a_picture_has_one_set_of_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense attention's line is of the documents of its points; what has few of them stands in a picture of its own."""
    store = Store(tmp_path / "mine")
    record_documents(store, arm("full"), [200.0, 500.0, 210.0, 470.0])
    for method, count in (("sieve", 4), ("net", 3), ("comb", 3), ("window", 1)):
        record_documents(store, arm(method), [220.0, 540.0, 230.0, 520.0][:count])
    sets: dict[str, dict[str, Row]] = {}
    for row in on_common_documents(leaderboard_rows(store)):
        sets.setdefault(row.prompt_set, {})[row.method] = row
    assert {title: {row.samples for row in members.values()} for title, members in sets.items()} == {
        "": {3},
        "1 document": {1},
    }
    assert set(sets[""]) == {"full", "sieve", "net", "comb"} and set(sets["1 document"]) == {"full", "window"}
    dense = sets[""]["full"].perplexity
    assert dense is not None and dense.perplexity == pytest.approx(math.exp(910 / 400))
    monkeypatch.setattr(figure, "draw", lambda rows: None)
    monkeypatch.setattr(figure.style, "save", lambda _, path, mark: path)
    written = [path.name for path in figure.write(leaderboard_rows(store), tmp_path)]
    assert written == ["perplexity.png", "perplexity_1-document.png"] and all(map(PICTURES.fullmatch, written))


def test_a_line_that_ends_earlier_has_its_name_at_its_own_height(tmp_path: Path) -> None:
    store = Store(tmp_path / "mine")
    for length in (4096, 16384):
        record_documents(store, arm("full", length=length), [230.0, 480.0, 235.0])
        record_documents(store, arm("sieve", 0.9, length), [248.0, 534.0, 240.0])
    record_documents(store, arm("window", 0.9, 4096), [248.0, 534.0, 240.1])
    (axes,) = figure.draw([r for r in leaderboard_rows(store) if r.perplexity]).axes
    point = rows(store)["window", 4096]["perplexity"]
    (name,) = (t for t in axes.texts if t.get_text() == "window")
    assert abs(name.xy[1] / point - 1) < 0.02  # type: ignore[attr-defined]


def test_the_table_has_a_line_an_arm(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=100)
    show_perplexities(console, study(tmp_path, [4096]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "perplexity of tiny on books" in text and text.count("sieve") == 2 and "÷ dense" in text
    assert text.count("0.100≠") == 1 and "≠ more than 2 % off" in text, "half of the blocks were asked for in one of the rows"
    show_perplexities(console, [])
    assert console.file.getvalue() == text  # type: ignore[attr-defined]
    show_perplexities(console, [replace(row, model=model) for model in ("tiny", "small") for row in study(tmp_path, [4096])])
    assert "perplexity of small on books" in console.file.getvalue()  # type: ignore[attr-defined]
