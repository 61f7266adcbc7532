"""The picture of the time to first token: what it shows of rows, and when there is none."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from harness.report.density_match import with_matches
from harness.report.figures import PICTURES, ttft
from harness.report.rows import Row
from harness.report.terminal.accuracy_table import HEADINGS
from tests.harness.report.support import TIMES, make_row

DENSE, LIMIT = 1000.0, 250.0
"""Milliseconds of a prefill of 4096 tokens with dense attention and with none."""
SPEEDUPS = {"sieve": 2.5, "steps": DENSE / 450}
"""Of the lines that are shown at a density of 0.1."""


def timed(method: str, sparsity: float | None, length: int, ttft_ms: float, drift: float = 1.0, **fields: Any) -> Row:
    """A row that was timed alone. drift: how much slower the machine was in its rounds."""
    longer = drift * length / 4096
    times = replace(
        TIMES,
        ttft_ms=ttft_ms * longer,
        dense_ttft_ms=DENSE * longer,
        no_attention_ttft_ms=LIMIT * longer,
        attention_layers=2,
    )
    fields = {"task": "", "samples": None, "tasks": None, "arm": f"{method} {sparsity} {length} {fields}"} | fields
    return replace(make_row(method, sparsity, length, None, **fields), times=times)


def rows() -> list[Row]:
    """Dense attention, and methods that are matched, off the density, between two whole knobs, and as released."""
    timed_rows = []
    for length in (4096, 8192):
        timed_rows += [
            timed("full", 0.0, length, DENSE),
            timed("sieve", 0.9, length, 400.0, drift=2.0),
            timed("sieve", 0.9, length, 300.0, density=0.15, knobs={"width": 3}),
            timed("sieve", None, length, 500.0, density=0.3, knobs={"as_released": True}),
            timed("steps", 0.9, length, 450.0, density=0.09, knobs={"steps": 1}, neighbour=True),
            timed("steps", 0.9, length, 480.0, density=0.12, knobs={"steps": 2}, neighbour=True),
        ]
    return with_matches(timed_rows)


def test_ratios_are_of_a_rows_own_rounds() -> None:
    times = timed("sieve", 0.9, 4096, 400.0, drift=3.0).times
    assert times is not None
    assert (times.ttft_speedup, times.ttft_limit) == (pytest.approx(2.5), 4.0)
    assert times.rest_ms == pytest.approx(3 * 400 - 2 * TIMES.total_ms)
    older = replace(times, no_attention_ttft_ms=None, attention_layers=None)
    assert (older.ttft_limit, older.rest_ms) == (None, None)


def test_lines_and_limit() -> None:
    points = [point for point in ttft.timed_points(rows()) if point.row.sparsity is not None]
    picture = ttft.picture_of(points)
    shown = {name: [(point.row.length, point.speedup) for point in line] for name, line in picture.lines.items()}
    assert shown == {name: [(length, pytest.approx(speedup)) for length in (4096, 8192)] for name, speedup in SPEEDUPS.items()}
    assert picture.limit == {4096: (4, 4, 4), 8192: (4, 4, 4)}
    assert picture.dense_ms[4096] == (DENSE, DENSE, 2 * DENSE) and picture.limit_ms[8192] == (2 * LIMIT, 2 * LIMIT, 4 * LIMIT)
    assert [row.density for row in picture.nearer] == [0.09, 0.09] and [row.density for row in picture.left_out] == [0.15, 0.15]
    assert "Left out, more than 2 % off" in ttft._note(picture) and "The nearer of two whole knobs: steps." in ttft._note(
        picture
    )


@pytest.mark.usefixtures("blank_pictures")
def test_a_picture_for_the_request_and_one_for_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, draw = {}, ttft.draw

    def noted(picture: ttft.Picture, title: str) -> Any:
        drawn[title] = figure = draw(picture, title)
        return figure

    monkeypatch.setattr(ttft, "draw", noted)
    notices = [replace(row, reason=f"random weights; of {row.method}") for row in rows()]
    assert [path.name for path in ttft.write(notices, tmp_path)] == ["ttft.png", "ttft_native.png"]
    assert all(PICTURES.fullmatch(name) for name in ("ttft.png", "ttft_native.png", "ttft_1.png", "ttft_native_1.png"))
    matched, native = (drawn[f"tiny: time to first token {at}"] for at in ("at density 0.1", "at each method's own settings"))
    legends = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in (matched, native)]
    assert legends[0][:2] == ["dense attention", ttft.LIMIT] and "steps" in legends[0]
    assert legends[1][2:] == ["sieve (as released)"]
    lines = [[line for line in figure.axes[1].lines if line.get_label().startswith("sieve")] for figure in (matched, native)]
    colours = [{line.get_color() for line in members} for members in lines]
    assert colours[0] == colours[1] and len(colours[0]) == 1, "a method looks the same in both"
    assert matched._supxlabel.get_text().startswith("Random weights. Measured densities: 0.090–0.100.")


def test_rows_without_a_limit_have_no_picture(tmp_path: Path) -> None:
    older = [replace(row, times=TIMES) for row in rows()]
    assert ttft.write(older, tmp_path) == ttft.write([row for row in rows() if row.length == 4096], tmp_path) == []
    assert "limit" in HEADINGS


@pytest.mark.usefixtures("blank_pictures")
def test_a_request_that_no_method_has_is_no_picture(tmp_path: Path) -> None:
    """One was drawn of dense attention and its limit alone, at a density of 0.1 that nobody asked for."""
    native = [row for row in rows() if row.is_baseline or row.sparsity is None]
    assert [path.name for path in ttft.write(native, tmp_path)] == ["ttft_native.png"]
    assert ttft.write([row for row in native if row.is_baseline], tmp_path) == []


def test_a_long_title_leaves_the_legend_its_place() -> None:
    """Dense attention's line in the legend was under it."""
    picture = ttft.picture_of([point for point in ttft.timed_points(rows()) if point.row.sparsity is not None])
    figure = ttft.draw(picture, "shape/llama3_8b (num_hidden_layers=2): " + 6 * "long words ")
    figure.draw_without_rendering()
    boxes = [artist.get_window_extent() for artist in (figure._suptitle, figure.legends[0], figure._supxlabel)]
    boxes += [axes.get_tightbbox() for axes in figure.axes]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
