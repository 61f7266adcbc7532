"""What a reader can trust in every picture: one look a method, no thicket, the front, bars, signs that are explained, names
apart, letters that can be read, and no picture of what is gone."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from attention_kernels.block_sparse import table
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from harness.report.figures import accuracy, kernel_lines, looks, pareto, perplexity, signs, style, trend, ttft, write_figures
from harness.report.figures.by_length import LENGTHS
from harness.report.figures.few import MOST
from harness.report.figures.looks import method_look
from harness.report.front import front_rows
from harness.report.rows import Perplexity, Row
from harness.report.stale import BEFORE_MARKS, COMPARED, KERNELS, ROWS, remove_stale
from harness.study.columns import PERPLEXITY
from harness.study.matching import Match
from harness.study.schema import Status
from tests.harness.report.support import TIMES, make_row, row

METHODS = ("seer", "oracle", "blasst", "random")
"""Of several, a bound among them."""


def small_print(figure: Figure) -> str:
    """The small print of a figure in one line."""
    return figure.get_supxlabel().replace("\n", " ")


def measured(methods: tuple[str, ...], lengths: tuple[int, ...] = (4096, 8192), **more: Any) -> list[Row]:
    """Rows of dense attention and of methods at two densities, the first of them the best."""
    rows = [row("full", 0.0, length, 0.95) for length in lengths]
    return rows + [
        row(name, sparsity, length, 0.9 - i / 50 - sparsity / 10, **more)
        for i, name in enumerate(methods)
        for sparsity in (0.5, 0.9)
        for length in lengths
    ]


def timed(rows: list[Row]) -> list[Row]:
    """Rows with the times of whole prefills."""
    times = replace(TIMES, dense_ttft_ms=200.0, no_attention_ttft_ms=50.0)
    return [replace(r, times=times, arm=r.group) for r in rows]


def perplexities(rows: list[Row]) -> list[Row]:
    """Rows of perplexities instead of accuracies."""
    measured_perplexity = Perplexity(2.0, 7.4, 7.0, 7.9, 1.0)
    return [replace(r, task=PERPLEXITY, score=None, perplexity=measured_perplexity, haystack="books") for r in rows]


DRAWN: dict[str, Callable[[list[Row]], Figure]] = {
    "pareto": lambda rows: pareto.draw(rows, [4096, 8192], "tiny", "cpu"),
    "trend": lambda rows: trend.draw([r for r in rows if r.sparsity != 0.5], LENGTHS, "title", "cpu"),
    "perplexity": lambda rows: perplexity.draw(perplexities([r for r in rows if r.sparsity != 0.5])),
    "perplexity by density": lambda rows: perplexity.draw(perplexities([r for r in rows if r.length == 4096])),
    "ttft": lambda rows: ttft.draw(ttft.picture_of(ttft.timed_points(timed([r for r in rows if r.sparsity != 0.5]))), "title"),
}
"""Pictures of lines, by what they are."""


def coloured(figure: Figure) -> list[set[str]]:
    """The colours of the lines of every panel, but for pale ones and what is no line of rows."""
    named = [
        {to_hex(line.get_color()) for line in axes.lines if line.get_marker() != "None" or len(line.get_xdata()) > 1}
        for axes in figure.axes
    ]
    return [{c.upper() for c in colours} - {signs.PALE.upper(), looks.INK, looks.GREY.upper()} for colours in named]


@pytest.mark.parametrize("kind", DRAWN)
def test_a_method_has_its_colour_and_marker_in_every_picture_of_lines(kind: str) -> None:
    figure = DRAWN[kind](measured(METHODS))
    for colours in coloured(figure):
        assert colours == {method_look(name).colour.upper() for name in METHODS}
    for name in METHODS:
        look = method_look(name)
        points = [line for axes in figure.axes for line in axes.lines if to_hex(line.get_color()) == look.colour.lower()]
        assert {line.get_marker() for line in points} - {"None"} - set("|_") == {look.marker}, "but for the ends of bars"


@pytest.mark.parametrize("kind", DRAWN)
def test_more_than_ten_lines_are_no_thicket(kind: str) -> None:
    """The others are pale, and the small print says which and why."""
    methods = tuple(f"method_{i:02}" for i in range(16))
    figure = DRAWN[kind](measured(methods))
    assert all(len(colours) < MOST for colours in coloured(figure))
    text = small_print(figure)
    assert "Pale, without bars, as too many to tell apart: " in text
    if kind in ("pareto", "trend"):
        assert "method_15" in text.split("in colour")[0] and "method_00" not in text.split("in colour")[0]


def test_pictures_are_narrow_enough_for_a_column_of_text() -> None:
    """Twice as wide, letters of nine points are four high on a page."""
    rows = [
        make_row(f"method_{i}", sparsity, length, 0.5)
        for i in range(16)
        for sparsity in (0.7, 0.8, 0.9)
        for length in (4096, 8192, 16384)
    ]
    rows += [row("full", 0.0, length, 0.9) for length in (4096, 8192, 16384)]
    for figure in (accuracy.draw(rows, "tiny", "cpu"), pareto.draw(rows, [4096, 8192, 16384], "tiny", "cpu")):
        assert figure.get_figwidth() <= style.WIDEST_PAGE + 0.5


def test_the_front_is_of_what_is_usable() -> None:
    """Neither the bound, nor what is off its density, nor what a check holds back is on it; dense attention is."""
    good, better = row("a", 0.9, 4096, 0.6), row("b", 0.8, 4096, 0.7)
    bound, off = row("oracle", 0.9, 4096, 0.9), replace(row("c", 0.95, 4096, 0.8), match=Match.OFF_DENSITY)
    gated, beaten = row("d", 0.95, 4096, 0.9, status=Status.GATED), row("e", 0.7, 4096, 0.65)
    dense = row("full", 0.0, 4096, 0.9, density=1.0)
    rows = [beaten, dense, bound, off, gated, better, good]
    assert front_rows(rows, lambda r: r.density) == [good, better, dense]
    figure = pareto.draw(rows, [4096], "tiny", "cpu")
    steps = [line for line in figure.axes[0].lines if line.get_drawstyle() == "steps-post"]
    assert [list(line.get_ydata())[:2] for line in steps] == [[60.0, 70.0]]
    text = small_print(figure)
    for sign in (looks.FRONT_SIGN, looks.BOUND_SIGN, looks.OFF_DENSITY_SIGN, looks.GATED_SIGN, looks.DENSE_SIGN):
        assert sign in text
    assert looks.NATIVE_SIGN not in text, "of signs that are not there nothing is said"
    assert "oracle, a bound" in [t.get_text() for t in figure.legends[0].get_texts()]
    assert not front_rows([bound, off, gated], lambda r: r.density)


@pytest.mark.parametrize("count", [2, 8])
def test_every_coloured_point_of_accuracy_has_its_bar(count: int) -> None:
    """They were left out without a word where names stood in a legend."""
    rows = measured(tuple(f"method_{i}" for i in range(count)), lengths=(4096,))
    figure = pareto.draw(rows, [4096], "tiny", "cpu")
    bars = [len(collection.get_segments()) for collection in figure.axes[0].collections if hasattr(collection, "get_segments")]
    assert sum(bars) == 2 * count and "bars and band: 95 % interval" in small_print(figure)


def test_times_without_a_spread_say_so() -> None:
    rows = timed(measured(("seer",)))
    points = ttft.timed_points([r for r in rows if r.sparsity != 0.5])
    assert "without bars: their spread was not recorded" in ttft._note(ttft.picture_of(points))


@pytest.mark.parametrize("kind", ["trend", "perplexity"])
def test_names_beside_lines_do_not_overlap(kind: str) -> None:
    """Nine lines of one height, their names of any length."""
    rows = [replace(r, score=replace(r.scored, accuracy=0.5)) for r in measured(METHODS + tuple("abcd"))]
    rows = [replace(r, method="a name that is far too long to stand in one line") if r.method == "a" else r for r in rows]
    figure = DRAWN[kind](rows)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts if isinstance(text, Annotation)]
    assert len(boxes) == 9 and not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)


def test_the_accuracy_axis_is_where_the_data_are_and_says_where_it_begins() -> None:
    axes = Figure().add_subplot()
    style.percent_axis(axes, [63.0, 88.0])
    assert axes.get_ylim()[0] == 60 and axes.get_ylabel() == "accuracy (%), from 60"
    style.percent_axis(axes, [0.0, 100.0])
    assert axes.get_ylim() == (-4, 104) and axes.get_ylabel() == "accuracy (%)"


def test_sparse_kernels_keep_their_looks_and_are_no_methods() -> None:
    assert set(table.BACKENDS) <= set(kernel_lines.SPARSE_KERNELS)
    whole, alone = kernel_lines.kernel_looks(table.BACKENDS), kernel_lines.kernel_looks(["flex"])
    assert alone["flex"] == whole["flex"] and len(set(whole.values())) == len(whole)
    assert "one_of_later" in kernel_lines.kernel_looks(["one_of_later", "flex"])


def test_many_kernels_are_no_thicket_and_the_fastest_dense_one_stays() -> None:
    lines = [
        kernel_lines.Line(f"k{i}", looks.line_look(looks.SERIES[0]), [(1.0, 1.0), (2.0, 1.0 + i)], [None, None])
        for i in range(12)
    ]
    dense = kernel_lines.Line("dense", looks.LineLook(looks.INK, "o", looks.DENSE_DASH), [(1.0, 50.0), (2.0, 99.0)], [None] * 2)
    axes = Figure().add_subplot()
    pale = kernel_lines.draw_lines(axes, [*lines, dense], (6.0, 4.0), best=lambda ms: ms)
    assert pale == ["k9", "k10", "k11"] and len(axes.texts) == MOST


def test_pictures_of_arms_and_lengths_that_are_gone_are_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rendering them would take seconds: a file holds its mark alone."""

    def save_mark(_: Figure, file: BinaryIO, metadata: dict[str, str], **__: Any) -> None:
        for text in map("\0".join, metadata.items()):
            file.write(len(text).to_bytes(4) + f"tEXt{text}".encode())

    monkeypatch.setattr(Figure, "savefig", save_mark)
    rows = measured(("seer", "random"))
    two = [*rows, *(replace(r, model="another", group=f"another {r.group}") for r in rows)]
    first = {path.name for path in write_figures(two, tmp_path)}
    assert "pareto_another_cpu_8192.png" in first and "lengths_1.png" in first
    others = {"pareto_of_mine.png", "gate_curve.png", "pareto_4096.png"}
    for name in others:
        (tmp_path / name).write_bytes(b"of somebody else")
    second = {path.name for path in write_figures([r for r in rows if r.length == 4096], tmp_path)}
    assert second == {"pareto.png"} and {path.name for path in tmp_path.iterdir()} == second | others
    remove_stale(tmp_path, KERNELS, [])
    assert (tmp_path / "pareto.png").exists(), "each who draws removes its own"
    (tmp_path / "lengths.png").write_bytes(BEFORE_MARKS)
    remove_stale(tmp_path, ROWS, [])
    assert {path.name for path in tmp_path.iterdir()} == others, "also what is from before there were marks"


def test_a_mark_that_begins_as_another_and_a_copy_are_not_removed(tmp_path: Path) -> None:
    """Comparisons beside `a` are not those beside `a-b`, and a copy that has another name is whoever's made it."""
    for mark, names in ((f"{COMPARED} a", ("compare_a", "before")), (f"{COMPARED} a-b", ("compare_a-b",)), (ROWS, ("old",))):
        for name in names:
            style.save(style.new_figure(1, 1), tmp_path / f"{name}.png", mark=mark)
    for mark in (f"{COMPARED} a", ROWS):
        remove_stale(tmp_path, mark, [], re.compile("none"))
    assert {path.stem for path in tmp_path.iterdir()} == {"before", "compare_a-b", "old"}
