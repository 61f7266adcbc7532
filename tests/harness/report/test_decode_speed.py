"""Decoding speeds in reports: the picture, the table in the terminal, and pictures of prefills, which leave decoding out."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.report.density_match import with_matches
from harness.report.figures import PICTURES, decode_speed, ttft
from harness.report.leaderboard_csv import row_columns
from harness.report.rows import Decode, DecodeSpeed, Row
from harness.report.terminal.decode_table import show_decoding
from harness.report.terminal.match_marks import marked_density
from tests.harness.report.support import TIMES, make_row


def timed(method: str, decode: str | None, length: int, speeds: dict[int, float], **fields: Any) -> Row:
    """A row that was timed alone, decoding twice as fast as dense attention, which is at 50 tokens a second a sequence."""
    times = replace(
        TIMES,
        dense_ttft_ms=200.0,
        no_attention_ttft_ms=50.0,
        decode={batch: DecodeSpeed(speed, speed, speed, 50.0 * batch, "events", 10.0) for batch, speed in speeds.items()},
        decode_failed={64: "out of memory"},
    )
    how = Decode() if decode is None else Decode(decode, {"sparsity": 0.9})
    known = {"task": "", "samples": None, "tasks": None, "arm": f"{method} {decode} {length}", "decode": how}
    known |= {"decode_density": None if decode is None else 0.4}
    return replace(make_row(method, 0.0 if method == "full" else 0.9, length, None, **known | fields), times=times)


def rows() -> list[Row]:
    """Dense attention, dense attention with two methods of decoding, and a method of prefill with both."""
    kinds = [("full", None), ("full", "pages"), ("sieve", "gate"), ("sieve", "pages")]
    every = [timed(method, decode, length, {1: 100.0, 16: 1200.0}) for length in (4096, 8192) for method, decode in kinds]
    return with_matches(every)


@pytest.mark.usefixtures("blank_pictures")
def test_a_picture_of_each_way_of_timing(tmp_path: Path) -> None:
    graphs = [
        replace(row, times=replace(row.times, decode={1: replace(row.times.decode[1], timing="graph")}), arm=f"{row.arm} graph")
        for row in rows()
        if row.times is not None
    ]
    assert [path.name for path in decode_speed.write(rows() + graphs, tmp_path)] == ["decode_speed.png", "decode_speed_1.png"]
    assert all(PICTURES.fullmatch(name) for name in ("decode_speed.png", "decode_speed_1.png"))
    densely = [row for row in rows() if row.decode.method is None]
    assert (
        decode_speed.write(densely, tmp_path) == decode_speed.write([replace(r, times=TIMES) for r in rows()], tmp_path) == []
    )
    points = decode_speed.timed_points(rows())
    figure = decode_speed.draw(points, ("tiny", "cpu (x)", "events"))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["1 sequence", "16 sequences", "", ""]
    legend = [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()]
    assert legend[0] == "dense attention" and "sieve (gate): density 0.400" in legend and len(legend) == 4
    dense, line = figure.axes[1].lines[0], figure.axes[1].lines[1]
    assert (list(dense.get_ydata()), list(line.get_ydata())) == ([800.0, 800.0], [1200.0, 1200.0])
    assert list(figure.axes[3].lines[1].get_ydata()) == [1.5, 1.5]
    assert "Timed step by step" in figure._supxlabel.get_text().replace("\n", " ")


def test_a_single_length_stands_in_the_middle_of_every_panel() -> None:
    """Its points were outside all of them."""
    points = [point for point in decode_speed.timed_points(rows()) if point.row.length == 4096]
    figure = decode_speed.draw(points, ("tiny", "cpu (x)", "events"))
    assert {axes.get_xlim() for axes in figure.axes} == {(4096 / 1.5, 4096 * 1.5)}


def test_a_prefill_is_drawn_once_and_judged_by_itself() -> None:
    """Its line stood there once for each method of decoding, and was left out where that was off the density asked of it."""
    shown = ttft.timed_points(rows())
    assert [(point.row.method, point.row.length) for point in shown] == [
        ("full", 4096),
        ("full", 8192),
        ("sieve", 4096),
        ("sieve", 8192),
    ]
    assert {row.match for row in rows() if row.decode.method} == {"off_density"}
    assert {point.row.match for point in shown if point.row.method == "sieve"} == {"matched"}
    plain = with_matches([*rows(), timed("sieve", None, 4096, {}, arm="plain")])
    assert [point.row.arm for point in ttft.timed_points(plain) if point.row.length == 4096] == ["full None 4096", "plain"]


def test_the_table_and_the_columns() -> None:
    text = io.StringIO()
    show_decoding(Console(file=text, width=80), rows())
    lines = [line.split() for line in text.getvalue().splitlines()]
    assert ["sieve", "(gate)", "gate", "4k", "0.400≠", "100", "2.00×", "1,200", "1.50×", "✗"] in lines
    assert ["full", "(full)", "full", "4k", "100", "1,200", "✗"] in lines
    assert all(len(line) <= 80 for line in text.getvalue().splitlines())
    assert [marked_density(row) for row in rows()[-2:]] == ["0.100", "0.100"], "of the prefill, which is as asked"
    columns = row_columns(rows()[-1])
    assert columns["decode_tokens_s"] == "1=100;16=1200" and columns["dense_decode_tokens_s"] == "1=50;16=800"
    assert (columns["decode_speedup"], columns["decode_peak_mib"]) == ("1=2;16=1.5", "1=10;16=10")
    assert (columns["decode_failed"], columns["decode_timing"]) == ("64=out of memory", "1=events;16=events")
    older = row_columns(replace(rows()[0], times=TIMES))
    assert {older[name] for name in columns if name.startswith(("decode_", "dense_decode")) and name != "decode_density"} == {
        ""
    }
    show_decoding(Console(file=text, width=80), [replace(rows()[0], times=TIMES)])
