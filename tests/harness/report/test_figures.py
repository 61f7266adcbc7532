"""Figures are written, readable and honest about what is missing."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text
from rich.console import Console

from harness.report import study_report
from harness.report.figures import (
    accuracy,
    by_block_size,
    dense_by_task,
    gate_curve,
    kept_mass,
    kernel_speed,
    labels,
    looks,
    methods_by_task,
    pareto,
    picture_rows,
    trend,
    write_figures,
)
from harness.report.figures.by_length import LENGTHS
from harness.report.figures.pareto import draw
from harness.report.rows import Row
from harness.report.stale import HEAD, ROWS
from harness.study.store import Store
from tests.harness.report.support import DENSE, TIMES, decoded, record_cell, row


def study(lengths: list[int]) -> list[Row]:
    rows = [row("full", 0.0, n, 0.95) for n in lengths]
    return rows + [row(m, s, n, 0.9 - s / 3) for m in ("a", "b") for s in (0.5, 0.9) for n in lengths]


def test_one_length(tmp_path: Path) -> None:
    paths = write_figures(study([4096]), tmp_path)
    assert [p.name for p in paths] == ["pareto.png"]
    height, width = imread(paths[0]).shape[:2]
    assert width > height > 500
    assert ROWS.encode() in paths[0].read_bytes()[:HEAD], "the report knows it again when it is gone"


def test_several_lengths(tmp_path: Path) -> None:
    names = {p.name for p in write_figures(study([4096, 8192]), tmp_path)}
    assert names == {"pareto.png", "pareto_4096.png", "pareto_8192.png", "lengths.png"}
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")], "no temporary file stays"


def test_a_log_axis_says_so() -> None:
    density, time = draw(study([4096]), [4096], "tiny", "cpu").axes
    assert (density.get_xscale(), time.get_xscale()) == ("linear", "log")
    assert "log scale" in time.get_xlabel() and "log" not in density.get_xlabel()


def test_times_that_go_together_are_drawn_as_the_rows_say_them() -> None:
    """Two rows that were timed while the machine was fast and slow, at a speed-up of 2 both: they stand at one place."""
    fast, slow = ((10.0, 5.0), (40.0, 20.0))
    rows = [
        replace(row(m, s, 4096, 0.9), times=replace(TIMES, dense_ms=dense, total_ms=total, paired=True))
        for m, s, (dense, total) in (("full", 0.0, (fast[0], fast[0])), ("a", 0.5, fast), ("b", 0.5, slow))
    ]
    time = draw(rows, [4096], "tiny", "cpu").axes[1]
    assert {float(x) for line in time.lines if line.get_marker() != "None" for x in line.get_xdata()} == {0.5, 1.0}
    assert "÷ dense" in time.get_xlabel()
    mixed = [replace(r, times=replace(r.times, paired=r.method != "b")) for r in rows]
    assert "(ms), log scale" in draw(mixed, [4096], "tiny", "cpu").axes[1].get_xlabel()


def test_gated_points_are_crossed_out_and_failed_rows_absent() -> None:
    rows = [row("full", 0.0, 4096, 0.9), row("a", 0.5, 4096, 0.99, status="gated"), row("b", 0.5, 4096, None)]
    rows = [r for r in rows if r.score is not None]
    figure = draw(rows, [4096], "tiny", "cpu")
    (cross,) = (line for line in figure.axes[0].lines if line.get_marker() == "x")
    assert (list(cross.get_xdata()), list(cross.get_ydata())) == ([0.5], [99.0])
    assert looks.GATED_SIGN in small_print(figure)
    assert "b" not in {t.get_text() for t in figure.legends[0].get_texts()}


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert write_figures([row("full", 0.0, n, 0.9) for n in (1024, 2048)], tmp_path) == [], "nothing to compare"
    assert write_figures([row("a", 0.5, 4096, None)], tmp_path) == []


def test_without_times_there_is_no_panel_of_time() -> None:
    rows = [row(m, s, 4096, 0.5, total_ms=None) for m, s in (("full", 0.0), ("a", 0.5))]
    (axes,) = draw(rows, [4096], "tiny", "cpu").axes
    assert axes.get_xlabel().startswith("density")


def test_a_length_without_times_says_so() -> None:
    rows = study([4096]) + [row(m, s, 8192, 0.5, total_ms=None) for m, s in (("full", 0.0), ("a", 0.5))]
    texts = {t.get_text() for t in draw(rows, [4096, 8192], "tiny", "cpu").axes[3].texts}
    assert "not measured" in texts


def small_print(figure: Figure) -> str:
    """The small print of a figure in one line."""
    return figure.get_supxlabel().replace("\n", " ")


def many(**more: Any) -> list[Row]:
    """More methods than lines can tell apart, at one length and density."""
    return [row("full", 0.0, 4096, 0.9), *(row(f"method_{i}", 0.9, 4096, 0.5 + i / 30, **more) for i in range(12))]


@pytest.mark.parametrize("model", ["tiny", "A-model-with-a-long-name-0.5B-Instruct-Q4_K_M-of-unknown-origin"])
@pytest.mark.parametrize("painter", [accuracy.draw, lambda rows, model, device: draw(rows, [4096], model, device)])
def test_titles_and_notes_stay_inside_and_off_the_legend(painter: Any, model: str) -> None:
    figure = painter(many(total_ms=None), model, "a device with quite a long name, 80 GB of it and more (driver 123.45.67)")
    figure.draw_without_rendering()
    frame = figure.bbox
    texts = [t for t in figure.texts if t.get_text()]
    assert len(texts) == 2
    boxes = [t.get_window_extent() for t in texts]
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
    for legend in figure.legends:
        assert not any(legend.get_window_extent().overlaps(box) for box in boxes)


def test_titles_of_narrow_tables_stand_apart() -> None:
    rows = [row("full", 0.0, n, 0.9) for n in (4096, 8192, 16384, 32768)]
    rows += [row(f"method_{i}", s, n, 0.5) for i in range(12) for s in (0.8, 0.9) for n in (4096, 8192, 16384, 32768)]
    figure = accuracy.draw(rows, "tiny", "cpu")
    figure.draw_without_rendering()
    boxes = [axes.title.get_window_extent() for axes in figure.axes] + [
        axes._left_title.get_window_extent() for axes in figure.axes
    ]  # type: ignore[attr-defined]
    boxes = sorted((box for box in boxes if box.width > 1), key=lambda box: box.x0)
    assert len(boxes) == 4 and boxes[-1].x1 <= figure.bbox.x1
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))


def test_the_table_of_accuracy_has_native_columns_only_where_there_are_natives() -> None:
    headings = {t.get_text() for t in accuracy.draw(many(), "tiny", "cpu").axes[0].texts}
    assert not headings & {"native", "density"}
    native = replace(row("method_3", 0.75, 4096, 0.77, status="gated"), sparsity=None)
    rows = [*many(), native]
    texts = {t.get_text() for t in accuracy.draw(rows, "tiny", "cpu").axes[0].texts}
    assert {"native", "density", "(77)", ".25"} <= texts, "a row held back stands in brackets"


def test_the_table_of_accuracy_brackets_what_is_held_back() -> None:
    rows = many()
    rows[3] = replace(rows[3], status="gated")
    figure = accuracy.draw(rows, "tiny", "cpu")
    inside = [t.get_text() for t in figure.axes[0].texts]
    assert [t for t in inside if "(" in t] == [f"({rows[3].scored.percent:.0f})"]
    assert "in brackets: held back" in " ".join(t.get_text() for t in figure.texts)


def test_dense_is_whole_where_a_method_comes_near_it() -> None:
    rows = [row("full", 0.0, 4096, 0.9), *(row("a", s, 4096, 0.8) for s in (0.1, 0.9))]
    density = draw(rows, [4096], "tiny", "cpu").axes[0]
    assert density.get_xlim()[1] > 1.02


@pytest.mark.parametrize("positions", [[50.0, 50.0, 50.0], [0.0, 1.0, 99.0], [10.0, 90.0], [100.0, 100.0]])
def test_names_never_overlap(positions: list[float]) -> None:
    placed = sorted(labels.spread(positions, 7.0, 0.0, 100.0))
    assert all(b - a >= 7.0 - 1e-9 for a, b in pairwise(placed))
    assert placed[0] >= -1e-9 and placed[-1] <= 100 + 1e-9


def test_block_sizes_at_one_sparsity_get_their_own_picture(tmp_path: Path) -> None:
    rows = [row("full", 0.0, 4096, 0.95)]
    rows += [row(m, 0.9, 4096, 0.9 - b / 400, block_size=b) for m in ("a", "b") for b in (16, 64, 128)]
    assert [p.name for p in write_figures(rows, tmp_path)] == ["blocks_4096_0.9.png"]
    figure = trend.draw(rows, by_block_size.BLOCKS, "title", "cpu")
    axes = figure.axes[0]
    assert {"a", "b", "full"} <= {t.get_text() for t in axes.texts}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["16", "64", "128"]
    dense = next(line for line in axes.lines if list(line.get_ydata()) == [95.0] * 3)
    assert list(dense.get_xdata()) == [16, 64, 128]


def test_block_sizes_at_two_sparsities_keep_the_pareto_picture(tmp_path: Path) -> None:
    rows = [row("full", 0.0, 4096, 0.95)]
    rows += [row("a", s, 4096, 0.9 - s / 4, block_size=b) for s in (0.5, 0.9) for b in (16, 64)]
    names = {p.name for p in write_figures(rows, tmp_path)}
    assert names == {"pareto.png", "blocks_4096_0.5.png", "blocks_4096_0.9.png"}


def test_a_method_at_one_length_is_no_line() -> None:
    rows = [row("full", 0.0, n, 0.95) for n in (4096, 8192)] + [row("a", 0.9, n, 0.8) for n in (4096, 8192)]
    figure = trend.draw([*rows, row("b", 0.9, 4096, 0.5)], LENGTHS, "title", "device")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["a", "full"]
    assert any("with a single point: 1" in text.get_text() for text in figure.findobj(Text))
    assert trend.draw([row("a", 0.9, 4096, 0.8), row("b", 0.9, 8192, 0.8)], LENGTHS, "title", "device"), "no line at all"


def test_long_names_stand_in_a_legend() -> None:
    long, short = {"pool": "one_of_many_long_words"}, {"pool": "short", "last": 0}
    rows = [row("full", 0.0, 4096, 0.95)]
    rows += [row("a", s, 4096, 0.8, knobs=long | {"last": n}) for s in (0.8, 0.9) for n in (0, 2)]
    rows += [row("a", s, 4096, 0.7, knobs=short) for s in (0.8, 0.9)]
    figure = pareto.draw(rows, [4096], "model", "device")
    assert figure.legends and not [t for t in figure.axes[0].texts if "long" in t.get_text()]


def test_many_methods_have_a_legend_with_every_line_and_ringed_point() -> None:
    """A variant has one name and one style of line at all lengths, also where it is alone; its method's points beside."""
    many = [row(m, 0.5, n, 0.8) for m in "abcdef" for n in (4096, 8192)]
    rules = [row("s", 0.5, n, 0.8, knobs={"selection": rule}) for rule in ("x", "y") for n in (4096, 8192)][:-1]
    native = replace(row("own", 0.0, 4096, 0.8), sparsity=None)
    dense = [row("full", 0.0, n, 0.9) for n in (4096, 8192)]
    figure = pareto.draw([*dense, *many, *rules, native], [4096, 8192], "tiny", "cpu (x)")
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert sorted(names) == sorted([*"abcdef", "s (selection x)", "s (selection y)", "own", "full", "front"])
    dashes = {name: line.get_linestyle() for name, line in zip(names, legend.get_lines(), strict=True)}
    assert (dashes["a"], dashes["s (selection x)"], dashes["own"]) == ("-", "-", "None")
    assert dashes["s (selection y)"] == "--", "the second rule of a method has another dash"
    lines = dict(zip(names, legend.get_lines(), strict=True))
    one, other = lines["s (selection x)"], lines["s (selection y)"]
    assert (one.get_color(), one.get_marker()) == (other.get_color(), other.get_marker()), "one look a method"
    assert one.get_fillstyle() != other.get_fillstyle(), "a line of one point shows no dash"


def test_a_study_of_decoding_is_drawn_by_density_at_decode(tmp_path: Path) -> None:
    rows = [row("full", 0.0, 4096, 0.95)]
    rows += [decoded(name, budget, 0.9) for name in ("net", "rod") for budget in (256, 1024)]
    (axes,) = draw(rows, [4096], "tiny", "cpu").axes
    colours = {line.get_color() for line in axes.lines if len(line.get_xdata()) == 2}
    assert len(colours) >= 2, "a colour each, though one prefill"
    assert axes.get_xlabel().startswith("density at decode")
    assert [p.name for p in write_figures(rows, tmp_path)] == ["pareto.png"]
    assert picture_rows.note(rows, "cpu").split("\n")[1].startswith("Dense prefill, sparse decode.")


def test_dense_attention_alone_is_drawn_by_task(tmp_path: Path) -> None:
    """A panel per model, a column per length and data, an average over fewer tasks is named; sparse rows end it."""
    rows = []
    for model, lengths in (("small-model", (2048, 4096)), ("large", (2048,))):
        for length in lengths:
            names = ["vt", "cwe", "qa_1"] if length == 2048 else ["vt"]
            of = {"model": model, "group": f"{model}{length}"}
            rows += [row("full", 0.0, length, 0.25, **of, task=name) for name in names]
            rows.append(row("full", 0.0, length, 0.5, **of, task="avg", tasks=len(names)))
    panels = dense_by_task.draw(rows).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["large", "small-model"]
    assert [t.get_text() for t in panels[1].get_xticklabels()] == ["2k\n3 tasks", "4k\n1 task"]
    assert [t.get_text() for t in panels[0].get_yticklabels()] == ["cwe", "qa_1", "vt", "avg"]
    assert sorted(t.get_text() for t in panels[1].texts) == sorted(["25"] * 4 + ["50"] * 2)
    assert [p.name for p in dense_by_task.write(rows, tmp_path)] == ["tasks.png"]
    assert dense_by_task.write([*rows, row("a", 0.5, 2048, 0.4, task="vt")], tmp_path) == []


def test_methods_at_one_sparsity_are_drawn_by_task(tmp_path: Path) -> None:
    """Dense first, the others by their average, a gated number in brackets; a second sparsity ends it."""
    rows = []
    for method, sparsity, mean in (("full", 0.0, 0.5), ("a", 0.8, 0.2), ("b", 0.8, 0.3)):
        rows += [row(method, sparsity, 2048, mean - 0.1, task=name) for name in ("vt", "cwe", "qa_1")]
        rows.append(row(method, sparsity, 2048, mean, tasks=3, status="gated" if method == "b" else "ok"))
    assert [p.name for p in methods_by_task.write(rows, tmp_path)] == ["by_task.png"]
    figure = methods_by_task.draw(rows, "tiny", "cpu (x)")
    assert "In brackets: held back" in " ".join(t.get_text() for t in figure.texts)
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["full", "b", "a"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["cwe", "qa_1", "vt", "avg"]
    assert sorted(t.get_text() for t in axes.texts) == sorted(["40"] * 3 + ["50"] + ["20"] * 3 + ["(30)"] + ["10"] * 3 + ["20"])
    sparser = [row("a", 0.9, 2048, 0.1, task=name) for name in ("vt", "cwe", "qa_1", "avg")]
    assert methods_by_task.write([*rows, *sparser], tmp_path) == []


def test_dense_attention_asked_in_another_way_has_a_panel_of_its_own() -> None:
    rows = [
        row("full", 0.0, 2048, 0.5, task=task, tasks=1, question=question, group=question)
        for question in ("seen", "after", "reread")
        for task in ("vt", "avg")
    ]
    titles = [axes.get_title(loc="left").replace("\n", "") for axes in dense_by_task.draw(rows).axes]
    assert titles == ["tiny", "tiny, question after the context", "tiny, question read again"]


def test_pictures_and_tables_of_rows_that_are_gone_go(tmp_path: Path) -> None:
    names = ["kept_mass.png", "kept_mass_native_1_12-prompts.png", "gate_curve_0.png", "decode.png", "share_of_ideal_1.png"]
    for name in (*names, "kept_mass_of_mine.png"):
        (tmp_path / name).touch()
    assert [*kept_mass.write([], tmp_path), *gate_curve.write([], [], tmp_path), *kernel_speed.write([], tmp_path)] == []
    assert [path.name for path in tmp_path.iterdir()] == ["kept_mass_of_mine.png"], "a name that no report gives"


def test_a_report_without_masses_or_trainings_leaves_none_of_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_report, "_figures", lambda rows, folder: [])
    store = Store(tmp_path / "study")
    record_cell(store, DENSE, "vt", [1.0])
    for name in ("kept_mass.csv", "kept_mass_1.png", "gate_curve.csv", "gate_curve.png"):
        (store.folder / name).touch()
    study_report.report_study(store, Console(quiet=True))
    assert sorted(path.name for path in store.folder.iterdir()) == ["leaderboard.csv", "records"]
