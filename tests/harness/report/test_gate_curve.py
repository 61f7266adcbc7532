"""The curve of trainings: which rows belong to which training, and the picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from harness.report.figures import gate_curve as picture
from harness.report.figures import labels
from harness.report.figures.looks import method_look
from harness.report.gate_curve import curve_points, trainings, write_points
from harness.report.rows import Origin, Row
from harness.study.columns import AVERAGE
from harness.study.matching import Match
from harness.study.schema import GateStepRecord
from harness.study.store import Store
from harness.study.verdict import Score

ABOUT = {"model": "toy", "lr": 3e-3, "rows": "mixture", "seed": 0, "text": "8dea8ed4071b8912"}


def record_training(store: Store, name: str, tokens: int, *, steps: int, recorded: int | None = None) -> None:
    for step in range(recorded or steps):
        about = ABOUT | {"training_name": name, "steps": steps} if step == 0 else None
        store.gate_steps.append(
            GateStepRecord(
                training=f"id-{name}",
                run="run",
                step=step,
                loss=1.0 / (step + 1),
                recall=0.5,
                lr=1e-3,
                tokens=tokens * (step + 1) // steps,
                grad_norm=1.0,
                seconds=0.1,
                about=about,
                date="2026-11-30",
            )
        )


def average(name: str | None, accuracy: float) -> Row:
    origin = Origin("card", None, None, None, None, None, "2026-11-30")
    return Row(
        study="curve",
        arm=f"arm-{name}",
        model="toy",
        method="seer",
        knobs={"gates": name},
        sparsity=0.9,
        length=4096,
        seed=0,
        dtype="float32",
        block_size=64,
        task=AVERAGE,
        samples=32,
        origin=origin,
        score=Score(accuracy, accuracy - 0.1, accuracy + 0.1),
    )


def test_points_are_the_trainings_that_ended_with_the_rows_of_their_weights(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record_training(store, "short", 1000, steps=2)
    record_training(store, "long", 4000, steps=20)
    record_training(store, "killed", 9000, steps=3, recorded=2)
    assert [(training.name, training.tokens) for training in trainings(store)] == [("short", 1000), ("long", 4000)]
    assert trainings(store)[1].loss == (1 / 19 + 1 / 20) / 2  # the last tenth
    rows = [average("long", 0.8), average("short", 0.6), average("killed", 0.7), average(None, 0.5)]
    rows += [replace(rows[0], task="vt"), replace(rows[0], model="another")]
    points = curve_points(store, rows)
    assert [(point.training, point.tokens, point.accuracy) for point in points] == [("short", 1000, 0.6), ("long", 4000, 0.8)]
    assert write_points(tmp_path / "gate_curve.csv", points).read_text().count("\n") == 3
    assert [path.name for path in picture.write(points, rows, tmp_path)] == ["gate_curve.png"]
    assert picture.write(points[:1], rows, tmp_path) == []  # one length of training is no curve


def test_trainings_on_other_files_are_another_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    record_training(store, "short", 1000, steps=2)
    record_training(store, "long", 4000, steps=20)
    points = curve_points(store, rows := [average("long", 0.8), average("short", 0.6)])
    names: list[str] = []
    draw = picture._draw_recipe
    monkeypatch.setattr(picture, "_draw_recipe", lambda *drawn: (names.append(drawn[-1]), draw(*drawn)))
    picture.write(points, rows, tmp_path)
    picture.write([points[0], replace(points[1], text_id="0f3b5a")], rows, tmp_path)
    assert names == [
        "mixture, learning rate 0.003",
        "mixture (0f3b5a), learning rate 0.003",
        "mixture (8dea8e), learning rate 0.003",
    ]


def test_a_picture_is_of_one_sparsity_and_leaves_out_what_is_off_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    for name, tokens in (("short", 1000), ("middle", 2000), ("long", 4000)):
        record_training(store, name, tokens, steps=2)
    rows = [average("long", 0.8), average("middle", 0.5), average("short", 0.6), average(None, 0.4)]
    rows[1] = replace(rows[1], match=Match.OFF_DENSITY)
    rows += [replace(row, arm=f"{row.arm}-half", sparsity=0.5, match=None) for row in rows]
    rows.append(replace(average(None, 0.3), arm="arm-off", method="block_topk", match=Match.OFF_DENSITY))
    drawn: list[tuple[list[float], list[str], list[str]]] = []
    draw = picture._draw
    monkeypatch.setattr(
        picture,
        "_draw",
        lambda panel, points, beside, left_out, path: (
            drawn.append(([p.accuracy for p in points], [row.arm for row in beside], [p.training for p in left_out])),
            draw(panel, points, beside, left_out, path),
        )[1],
    )
    names = [path.name for path in picture.write(curve_points(store, rows), rows, tmp_path)]
    assert names == ["gate_curve_0.png", "gate_curve_1.png"]
    assert drawn == [
        ([0.6, 0.5, 0.8], ["arm-None-half"], []),
        ([0.6, 0.8], ["arm-None"], ["middle"]),
    ]


def test_names_beside_the_curve_stand_apart_and_keep_their_colours(tmp_path: Path) -> None:
    dense = replace(average(None, 0.9), method="dense", knobs={}, sparsity=None)
    others = [replace(average(None, 0.3), arm=name, method=name, knobs={}) for name in ("oracle", "block_topk")]
    colours = []
    for beside in ([dense, *others], [replace(others[1], score=Score(0.31, 0.2, 0.4)), others[0], dense]):
        lines = picture._lines_beside(beside, {"seer"})
        colours.append({line.name: line.look.colour for line in lines})
    assert colours[0] == colours[1] == {name: method_look(name).colour for name in ("dense", "oracle", "block_topk")}
    axes = Figure().add_subplot()
    axes.set_ylim(0, 100)
    ends = [labels.End(line.name, 1.0, line.percent, line.look.colour, line.look.marker) for line in lines]
    labels.write_names(axes, ends, (6.0, 4.0), (0.0, 1.0))
    places = {note.get_text(): note.xy for note in axes.texts if isinstance(note, Annotation)}
    assert all(x > 1 for x, _ in places.values()), "names must not lie on the points"
    assert abs(places["oracle"][1] - places["block_topk"][1]) > 4
