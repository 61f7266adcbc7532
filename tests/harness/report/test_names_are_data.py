"""Names are data: whatever a record calls a model, a method or a study, tables, pictures and CSVs show it as it is."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import matplotlib
import pytest
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from rich.progress import Progress

from harness.core.errors import UserError
from harness.core.printable import cut, printable
from harness.core.progress import progress_bar
from harness.core.settings import read_settings
from harness.core.terminal import Terminal, error_line
from harness.report.csv_file import cell, read_csv, write_csv
from harness.report.figures import pareto, style
from harness.report.lines import LONGEST, rows_by_line
from harness.report.terminal.accuracy_table import show_rows
from harness.report.terminal.formats import PlainTable
from tests.harness.report.support import make_row
from tests.harness.settings import CONF

MARKUP, MATHS, ESCAPE, FORMULA = "[/x] [red]a:fire:", r"$\frac{1}$ $_x", "b\x1b[31m\x9b2J\u202ec\nd", "=cmd|' /C calc'!A0"
NAMES = (MARKUP, MATHS, ESCAPE, FORMULA, "'quoted", "@a", "+b", "-c", "\td", "\re", "f|g", "_h", "字", "\ud800", "x" * 9999)


def terminal() -> Terminal:
    """A terminal of 200 columns that keeps what it is shown."""
    console = Terminal()
    console.file, console.width = io.StringIO(), 200
    return console


def shown(console: Terminal) -> str:
    """What the terminal was shown."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_name_as_text_that_can_be_shown() -> None:
    assert printable("Qwen/Qwen3-0.6B 字") == "Qwen/Qwen3-0.6B 字"
    assert printable(ESCAPE) == r"b\x1b[31m\x9b2J\u202ec\nd" and printable("a\nb\t", keep="\n") == "a\nb\\t"
    assert cut("abcdefgh", 4) == "ab…h" and cut("abcd", 4) == "abcd"
    assert error_line(UserError(f"model={ESCAPE}: no")) == r"error: model=b\x1b[31m\x9b2J\u202ec\nd: no"
    assert len(error_line("x" * 100_000)) < 10_000


@pytest.mark.parametrize("name", NAMES[:-1])
def test_the_terminal_shows_a_name_as_it_is(name: str) -> None:
    console = terminal()
    rows = [make_row("full", 0.0, 4096, 0.9, model=name), make_row(name, 0.9, 4096, 0.5, model=name)]
    failed = make_row("sieve", 0.9, 4096, None, model=name, task="vt", status="failed", reason=name)
    show_rows(console, [*rows, failed], set())
    console.print(f"wrote {name}")
    table, written = shown(console), printable(name)
    assert f"{written} on cpu (x)" in table and f"wrote {written}" in table and f"vt: {written}" in table
    assert table.replace("\n", "").isprintable() and len(table.splitlines()) == 9


def test_a_bar_shows_a_name_as_it_is() -> None:
    bar: Progress = progress_bar(terminal(), show=True)
    bar.add_task(MARKUP + ESCAPE, total=1)
    console = terminal()
    console.print(bar.get_renderable())
    assert shown(console).startswith(MARKUP + "b\\x1b[31m")


def test_a_picture_of_any_names(tmp_path: Path) -> None:
    models = [make_row(method, 0.5, 4096, 0.5, model=MATHS + MARKUP) for method in NAMES]
    paths = pareto.write([make_row("full", 0.0, 4096, 0.9, model=MATHS + MARKUP), *models], tmp_path)
    assert [path.name for path in paths] == ["pareto.png"]


def test_pictures_of_models_whose_names_differ_in_a_bracket_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    names = ("a-b", "a b", "a b (c)", "x" * 300, "/")
    rows = [
        make_row("sieve", sparsity, 4096, 0.5, model=name, group=f"{name} {sparsity}")
        for name in names
        for sparsity in (0.5, 0.9)
    ]
    paths = [path.stem.removesuffix("_cpu").removeprefix("pareto_") for path in pareto.write(rows, tmp_path)]
    assert paths == ["a-b", "a-b_cpu-2", "a-b_cpu-3", "x" * 60, "unnamed"]


def test_every_text_of_a_picture_is_shown_as_written() -> None:
    figure = style.new_figure(100_000, 3)
    with matplotlib.rc_context(style.RC):
        axes = figure.add_subplot()
        axes.plot([1, 10], [1, 1000], label=MATHS)
        axes.set_yscale("log")  # its numbers are formulas
        axes.set_xticks([1, 10], [MATHS, ESCAPE])
        axes.legend()
        axes.annotate(MATHS, (1, 1))
        style.set_title(figure, MATHS + "y" * 10_000)
    style.show_as_written(figure)
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == [MATHS, r"b\x1b[31m\x9b2J\u202ec" + "\nd"]
    texts = [*axes.get_xticklabels(), *axes.texts, *axes.get_legend().get_texts(), figure._suptitle]
    assert len(texts) == 5 and not any(text.get_parse_math() for text in texts)
    assert all(label.get_parse_math() for label in axes.get_yticklabels())
    assert len(figure._suptitle.get_text()) < 500 and figure.get_figwidth() == style.WIDEST


def test_line_names_that_are_too_long_stay_apart() -> None:
    lines = rows_by_line([make_row(name, 0.5, 4096, 0.5) for name in ("x" * 1000, "x" * 999 + "y", "z")])
    assert len(lines) == 3 and {len(name) for name in lines} == {1, LONGEST}


def test_a_spreadsheet_runs_no_cell_and_each_is_read_back_as_it_was(tmp_path: Path) -> None:
    names = [name for name in NAMES if name != "\ud800"]
    path = write_csv(tmp_path / "names.csv", ["model", "number", "none"], [[name, -1.5, None] for name in names])
    with path.open(newline="", encoding="utf-8") as file:
        raw = [row["model"] for row in csv.DictReader(file)]
    assert not [text for text in raw if text.startswith(tuple("=+-@\t\r"))]
    assert read_csv(path) == [{"model": name, "number": "-1.5", "none": ""} for name in names]


def test_what_is_no_formula_stays_as_it_is() -> None:
    assert [cell(value) for value in (-0.25, "-0.25", -3, "a=b", "", None)] == ["-0.25", "-0.25", "-3", "a=b", "", ""]
    assert cell("－1+1") == "'－1+1" and cell("-1+1") == "'-1+1" and cell("- 1") == "'- 1"


UNSAFE = ("../x", ".", "..", "a/b", "/tmp", "-m", ".a", " a", "a b", " ", "a\0", "a\n", "é", "[/x]", "=a", "x" * 300)


def test_a_study_is_called_by_a_safe_name() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("config")
    for name in ("mine", "pareto_Qwen2.5-Coder-0.5B-Q4_K_M", "2026-01-01", "_a+b", "x" * 128):
        cfg.study = name
        assert read_settings(cfg).study == name
    for name in UNSAFE:
        cfg.study = name
        with pytest.raises(UserError, match=r"(?s)^study=.*(must be|may have)") as error:
            read_settings(cfg)
        assert len(error_line(error.value)) < 500


def test_a_table_loses_nothing_on_a_narrow_terminal() -> None:
    console = terminal()
    console.width = 10
    table = PlainTable("above")
    for heading in ("method", "ms", "points"):
        table.add_column(heading, no_wrap=heading != "method")
    table.add_row("a_long_name_of_a_method", "1234.5", "12.3 to 45.6")
    table.show(console)
    lines = shown(console).splitlines()[2:]
    assert "1234.5 12.3 to 45.6" in lines[0], "no number loses digits"
    assert "".join(line[:12] for line in lines).strip() == "a_long_name_of_a_method"
