"""What stands beside each other is on the same prompts, and at the density asked for, in tables, pictures and comparisons."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from math import exp
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from harness.core.errors import UserError
from harness.report.at_request import at_request, is_interpolated
from harness.report.common_tasks import comparable, compared_rows
from harness.report.compare import comparisons
from harness.report.figures import accuracy, methods_by_task, pareto, trend, write_figures
from harness.report.figures.by_length import LENGTHS
from harness.report.leaderboard import leaderboard_rows
from harness.report.lines import rows_by_line
from harness.report.prompt_sets import prompt_sets
from harness.report.rows import Perplexity, Row
from harness.report.terminal.accuracy_table import show_rows
from harness.stats.paired import mean_difference
from harness.study.columns import PERPLEXITY
from harness.study.identity import ArmIdentity
from harness.study.matching import Match
from harness.study.store import Store
from tests.harness.report.support import DENSE, SETTING, record_cell, row

EASY, HARD = [1.0] * 4, [0.0] * 12


def arm(method: str, sparsity: float = 0.9, k: int | None = None) -> ArmIdentity:
    return ArmIdentity(SETTING, method, sparsity, {} if k is None else {"k": k}, 64, "reference")


def mixed(folder: Path) -> Store:
    """Dense attention and two methods on sixteen prompts a task, the first four of them easy; three methods on these alone."""
    store = Store(folder / "study")
    for task in ("one", "two"):
        record_cell(store, DENSE, task, EASY + HARD)
        for method in ("long", "longer"):
            record_cell(store, arm(method), task, [1.0, 1.0, 1.0, 0.0, *HARD])
        for method in ("a", "b", "c"):
            record_cell(store, arm(method), task, [1.0, 1.0, 1.0, 0.0])
    return store


def shown(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    show_rows(Console(file=text, width=120), rows, set())
    return text.getvalue()


def neighbours(store: Store) -> None:
    """Record a method whose knob can't come to 0.1: two arms, at 0.08 and 0.13, right on other prompts."""
    for k, density, scores in ((8, 0.08, [1.0, 0.0, 0.0, 0.0]), (13, 0.13, [1.0, 1.0, 1.0, 0.0])):
        for task in ("one", "two"):
            record_cell(store, arm("whole", k=k), task, scores, density=density, neighbour=True)


@pytest.fixture(scope="module")
def rows_of_mixed(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return leaderboard_rows(mixed(tmp_path_factory.mktemp("mixed")))


def test_arms_on_more_prompts_are_scored_on_the_common_ones(rows_of_mixed: list[Row]) -> None:
    compared, left_out = comparable(rows_of_mixed)
    main = {r.method: r for r in compared if not r.prompt_set}
    assert {name: (r.samples, r.scored.accuracy) for name, r in main.items()} == {
        "full": (8, 1.0),
        **{name: (8, 0.75) for name in ("long", "longer", "a", "b", "c")},
    }, "nothing is above dense"
    apart = {r.method: r for r in compared if r.prompt_set == "32 prompts"}
    assert {name: (r.samples, r.scored.accuracy) for name, r in apart.items()} == {
        "full": (32, 0.25),
        "long": (32, 0.1875),
        "longer": (32, 0.1875),
    }
    assert not left_out and len(compared) == 9


def test_pictures_and_tables_keep_sets_of_prompts_apart(
    rows_of_mixed: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    assert [p.name for p in pareto.write(rows_of_mixed, tmp_path)] == ["pareto.png", "pareto_32-prompts.png"]
    text = shown(rows_of_mixed)
    assert text.count(", 8 prompts") == text.count(", 32 prompts") == 1
    small, large = text.split(", 32 prompts")
    (line,) = (line for line in small.splitlines() if line.startswith("long "))
    assert "75.0" in line and "-25.0" in line, "compared with dense attention on these prompts again"
    assert "18.8" in large and "a " not in [line[:2] for line in large.splitlines()]


def test_densities_are_judged_on_the_prompts_that_are_compared(tmp_path: Path) -> None:
    """An arm is at the density asked for over its own prompts, and at another one on those in common."""
    store = Store(tmp_path / "study")
    record_cell(store, DENSE, "one", EASY)
    for method in ("a", "b"):
        record_cell(store, arm(method), "one", EASY)
    record_cell(store, arm("wide"), "one", EASY, density=0.08)
    record_cell(store, arm("wide"), "two", EASY, density=0.12)
    rows = leaderboard_rows(store)
    assert {r.match for r in rows if r.method == "wide"} == {Match.MATCHED}
    (wide,) = (r for r in comparable(rows)[0] if r.method == "wide")
    assert (wide.density, wide.match) == (pytest.approx(0.08), Match.OFF_DENSITY)


def test_a_few_prompts_do_not_decide_for_all() -> None:
    usual, few = frozenset(("t", i) for i in range(64)), frozenset(("t", i) for i in range(4))
    nearly, other = usual - {("t", 63)}, frozenset(("u", i) for i in range(64))
    main, apart = prompt_sets({"a": usual, "b": usual, "quick": few}, {"dense": usual})
    assert (main.prompts, set(main.arms)) == (usual, {"a", "b", "dense"})
    assert (apart.prompts, set(apart.arms)) == (few, {"quick", "dense"})
    (only,) = prompt_sets({"a": usual, "b": usual, "c": nearly}, {"dense": usual})
    assert only.prompts == nearly, "what all have in common is enough"
    main, apart = prompt_sets({"a": usual, "b": other}, {"dense": usual, "dense of the other seed": other})
    assert {main.arms, apart.arms} == {("a", "dense"), ("b", "dense of the other seed")}
    (without,) = prompt_sets({"a": usual}, {"dense": few})
    assert without.arms == ("a",), "no line of dense attention on other prompts than the points"


def test_neighbours_are_interpolated_sample_by_sample(tmp_path: Path) -> None:
    store = Store(tmp_path / "study")
    for task in ("one", "two"):
        record_cell(store, DENSE, task, EASY)
        record_cell(store, arm("even"), task, [1.0, 0.0, 1.0, 1.0])
    neighbours(store)
    compared = compared_rows(leaderboard_rows(store))
    pair = [r for r in compared.averages if r.method == "whole"]
    assert [r.match for r in pair] == [Match.NEAREST] * 2
    assert {name: len(members) for name, members in rows_by_line(pair).items()} == {"whole": 2}, "one line"
    between = [r for r in at_request(compared.averages, compared.tasks).averages if r.method == "whole"]
    assert [(r.density, r.scored.accuracy) for r in between] == [(pytest.approx(0.1), pytest.approx(0.6 * 0.25 + 0.4 * 0.75))]
    assert is_interpolated(between[0]) and not between[0].times
    (result,) = comparisons(store, "even").pairs
    assert (result.line, result.interpolated, result.density) == ("whole", "line", pytest.approx(0.1))
    scores = [[1.0, 0.4, 0.4, 0.0]] * 2
    assert result.difference == pytest.approx(mean_difference(scores, [[1.0, 0.0, 1.0, 1.0]] * 2))
    figure = pareto.draw(pair, [4096], "tiny", "cpu")
    (line,) = (line for line in figure.axes[0].lines if len(line.get_xdata()) == 2 and line.get_linestyle() != "None")
    assert list(line.get_xdata()) == pytest.approx([0.08, 0.13]), "drawn where they were measured, and joined"


def test_rows_off_the_density_are_compared_with_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "study")
    for method, density in (("a", 0.1), ("b", 0.1), ("off", 0.12)):
        record_cell(store, arm(method), "one", EASY, density=density)
    record_cell(store, DENSE, "one", EASY)
    assert {pair.line for pair in comparisons(store, "a").pairs} == {"b"}
    assert [average.line for average in comparisons(store, "a").left_out] == ["off"]
    with pytest.raises(UserError, match="rows of off are off the density asked for and compare with nothing; name one of"):
        comparisons(store, "off")
    table = shown(leaderboard_rows(store))
    assert "0.120≠" in table and "≠ more than 2 % off" in table


def test_pictures_at_a_request_leave_out_what_is_off_it_and_say_so(tmp_path: Path) -> None:
    rows = [row("full", 0.0, n, 0.95) for n in (4096, 8192)]
    rows += [row(m, s, n, 0.6) for m in ("a", "b") for s in (0.8, 0.9) for n in (4096, 8192)]
    off = [replace(r, method="c", density=0.15, match=Match.OFF_DENSITY, group=f"c{r.group}") for r in rows if r.method == "a"]
    rows += off
    for figure in (trend.draw(rows, LENGTHS, "title", "cpu"), accuracy.draw(rows, "tiny", "cpu")):
        texts = " ".join(t.get_text() for t in figure.texts)
        assert f"2 % off the density asked for: {len(off)} of c." in texts.replace("\n", " ")
        assert "c" not in {t.get_text() for axes in figure.axes for t in [*axes.texts, *axes.get_yticklabels()]}
    density = pareto.draw(rows, [4096], "tiny", "cpu").axes[0]
    hollow = [line for line in density.lines if line.get_markerfacecolor() == "none"]
    assert [list(line.get_xdata()) for line in hollow] == [[0.15]] * 2, "at the measured density"
    joined = [line for line in density.lines if line.get_linestyle() != "None"]
    assert joined and all(0.15 not in line.get_xdata() for line in joined), "and off the line"
    alone = [r for r in rows if r.method in ("full", "c")]
    stale, other = tmp_path / "lengths.png", tmp_path / "lengths_mine.png"
    stale.touch()
    other.touch()
    assert "lengths.png" not in [p.name for p in write_figures(alone[:2], tmp_path)]
    assert (stale.exists(), other.exists()) == (False, True), "a picture of what doesn't compare any longer goes"


def test_a_picture_by_task_leaves_out_what_is_off(tmp_path: Path) -> None:
    rows = []
    for method, density in (("full", 1.0), ("a", 0.2), ("b", 0.2), ("off", 0.3)):
        match = Match.OFF_DENSITY if method == "off" else None
        of = {"density": density, "match": match}
        rows += [row(method, 0.0 if method == "full" else 0.8, 2048, 0.4, task=t, **of) for t in ("vt", "cwe", "qa_1", "avg")]
    (axes,) = methods_by_task.draw(rows, "tiny", "cpu (x)").axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["full", "a", "b"]


def test_perplexities_of_neighbours_are_interpolated_in_their_losses() -> None:
    rows = [
        row(
            "whole",
            0.9,
            4096,
            None,
            task=PERPLEXITY,
            density=density,
            match=Match.NEAREST,
            knobs={"k": k},
            perplexity=Perplexity(loss, exp(loss), exp(loss - 1), None, 1.0),
        )
        for k, (density, loss) in enumerate(((0.08, 3.0), (0.13, 2.0)))
    ]
    (between,) = at_request(rows).averages
    measured = between.perplexity
    assert measured is not None and between.score is None and measured.perplexity_high is None
    assert [measured.perplexity, measured.perplexity_low] == pytest.approx([exp(2.6), exp(1.6)])
