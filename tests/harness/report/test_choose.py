"""Which method to use under one bound: who is ranked, who is not shown, not told apart, not measured, and never chosen."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.core.errors import UserError
from harness.jobs.choose import run
from harness.jobs.command_state import CommandState
from harness.report.choose import Bound, Candidate, Choice, Verdict, choices
from harness.report.choose_csv import write_choices
from harness.report.choose_text import answer, elsewhere, points
from harness.report.csv_file import read_csv
from harness.report.recorded_rows import RecordedArm, recorded_arms
from harness.report.rows import Answer, Decode, Row, Times
from harness.report.terminal.choose_table import show_choice
from harness.study.identity import ArmIdentity
from harness.study.matching import Match
from harness.study.schema import Status
from harness.study.store import Store
from harness.study.verdict import Comparison
from tests.harness.report.support import DENSE, SPARSE, TIMES, make_row, record_cell, record_times
from tests.harness.settings import composed, with_options

LOSS = Bound("loss", 2.0)


def arm(
    method: str,
    loss: float | None,
    ms: float | None,
    *,
    wide: float = 1.0,
    device: str = "cpu (x)",
    scores: tuple[float, ...] = (1.0, 0.0),
    **fields: Any,
) -> RecordedArm:
    """An arm that loses points, with an interval so many points wide at either side, and takes ms where dense takes 10."""
    dense = method == "full"
    row = make_row(method, 0.0 if dense else 0.9, 4096, 0.5, device=device, total_ms=None, arm=f"{method} {fields}", **fields)
    if row.score is not None and loss is not None and not dense:
        compared = Comparison(0.5, 0.5, -loss / 100, -(loss + wide) / 100, -(loss - wide) / 100)
        row = replace(row, score=replace(row.score, comparison=compared))
    times = None if ms is None else replace(TIMES, total_ms=ms, dense_ms=10.0, total_low=ms * 0.98, total_high=ms * 1.02)
    answers = {index: Answer(score) for index, score in enumerate(scores)}
    task = replace(row, task="vt", samples_seen="same", answers=answers)
    return RecordedArm(row, (task,), times, row.study if times else "")


def only(arms: list[RecordedArm], bound: Bound = LOSS) -> Choice:
    """The answer for arms of one device and set of tasks."""
    (choice,) = choices(arms, bound)
    return choice


def names(candidates: Any) -> list[str]:
    """The methods of candidates."""
    return [candidate.row.method for candidate in candidates]


def of(choice: Choice, method: str) -> Candidate:
    """The candidate of a method."""
    return next(candidate for candidate in choice.candidates if candidate.row.method == method)


FULL = arm("full", None, 10.0)
FAST, SLOW = arm("fast", 0.5, 2.0), arm("slow", 0.1, 5.0)


def test_the_least_time_is_first_among_those_shown_within_the_bound() -> None:
    unsure, lossy = arm("unsure", 1.5, 1.0), arm("lossy", 9.0, 0.5)
    choice = only([FULL, SLOW, lossy, unsure, FAST])
    assert names(choice.ranked) == ["fast", "slow", "full"] and not choice.tied
    assert names(choice.not_shown) == ["unsure"], "its interval reaches 2.5"
    assert of(choice, "lossy").verdict == Verdict.OUTSIDE
    assert answer(choice) == (
        "Use fast at density 0.100: 80 % less attention time than dense attention, and at most 1.5 points lost (95 %)"
    )


def test_the_upper_limit_may_be_the_bound_itself() -> None:
    assert names(only([FULL, FAST], Bound("loss", 1.5)).ranked) == ["fast", "full"]
    assert names(only([FULL, FAST], Bound("loss", 1.49)).not_shown) == ["fast"]


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({"method": "oracle"}, Verdict.IS_BOUND),
        ({"decode": Decode("oracle", {})}, Verdict.IS_BOUND),
        ({"match": Match.OFF_DENSITY}, Verdict.OFF_DENSITY),
        ({"status": Status.GATED, "reason": "suspected bug"}, Verdict.HELD_BACK),
        ({"ms": None}, Verdict.NOT_MEASURED),
        ({"loss": None}, Verdict.NOT_MEASURED),
    ],
)
def test_the_best_numbers_do_not_win_that_no_one_can_use(fields: dict[str, Any], verdict: Verdict) -> None:
    best = arm(**{"method": "best", "loss": 0.0, "ms": 0.1} | fields)
    choice = only([FULL, FAST, best])
    assert names(choice.ranked) == ["fast", "full"] and choice.candidates[2].verdict == verdict
    for bound in (Bound("density", 0.5), Bound("ms", 11.0)):
        first = only([FULL, FAST, best], bound).ranked[0]
        assert "best" not in first.row.method or (bound.of == "density" and best.times is None), "no time is asked for"


def test_dense_attention_is_the_answer_where_nothing_within_the_bound_is_faster() -> None:
    slower = arm("slower", 0.1, 12.0)
    assert names(only([FULL, slower]).ranked) == ["full", "slower"]
    assert answer(only([FULL, slower])) == (
        "Use full attention: no method shown to lose at most 2 points (95 %) takes less attention time"
    )
    assert answer(only([FULL, arm("lossy", 9.0, 1.0)])) == (
        "Use full attention: no method that was timed is shown to lose at most 2 points (95 %)"
    )
    untimed = replace(FULL, times=None, times_study="")
    assert names(only([untimed, slower]).ranked) == ["full", "slower"], "timed beside the other"


def test_sparse_decoding_after_a_dense_prefill_saves_none_of_it() -> None:
    after = arm("full", None, 9.5, decode=Decode("quest", {"budget": 64}), block_size=None)
    compared = Comparison(0.5, 0.5, 0.0, -0.01, 0.01)
    row = after.row
    after = replace(after, row=replace(row, score=replace(row.scored, comparison=compared)))
    choice = only([after, FULL])
    assert [candidate.row.decode.method for candidate in choice.ranked] == [None, "quest"]
    assert answer(choice).startswith("Use full attention: no method shown to lose")


def test_times_whose_ranges_meet_are_not_told_apart() -> None:
    near = arm("near", 0.1, 2.05)
    assert names(only([FULL, FAST, near, SLOW]).tied) == ["near"]
    moved = [replace(one, times=replace(one.times, dense_ms=ms)) for one, ms in ((FAST, 10.0), (SLOW, 26.0)) if one.times]
    choice = only([FULL, *moved])
    assert names(choice.ranked) == ["slow", "fast", "full"], "as shares of the dense attention of their own rounds"
    assert names(choice.tied) == ["fast"], "dense attention's own time moved more than that between the rounds"
    close = only([FULL, arm("close", 0.1, 9.9)])
    assert names(close.ranked) == ["close", "full"]
    assert "1 % less attention time than dense attention (not told apart from it), and at most" in answer(close)


def test_the_best_arm_of_a_line_stands_for_it() -> None:
    at_half = replace(FAST, row=replace(FAST.row, arm="b", sparsity=0.5), times=replace(FAST.times or TIMES, total_ms=6.0))
    choice = only([FULL, FAST, at_half])
    assert names(choice.ranked) == ["fast", "full"] and choice.ranked[0].arm is FAST


def test_under_a_density_or_a_time_the_least_loss_is_first() -> None:
    other = arm("other", 0.4, 3.0, scores=(0.0, 1.0))
    untimed = arm("untimed", 0.2, None)
    choice = only([FULL, FAST, other, untimed], Bound("density", 0.2))
    assert names(choice.ranked) == ["untimed", "other", "fast"], "dense attention keeps more than that"
    assert names(choice.tied) == ["other", "fast"], "on the prompts that both have"
    assert choice.ranked[1].to_first is not None and choice.ranked[1].to_first.points == 0.0
    lost = "0.2 points lost (-0.8 to 1.2 at 95 %), the least at density 0.2 or less"
    assert answer(choice) == f"Use untimed at density 0.100: {lost}"
    within = only([FULL, FAST, other, untimed], Bound("ms", 2.02))
    assert names(within.not_shown) == ["fast"] and not within.ranked, "a tenth of its calls take longer"
    assert answer(within) == "No answer: nothing here is shown within 2.02 ms of attention time"
    too_much = only([FULL, FAST, other], Bound("ms", 0.1))
    assert answer(too_much).endswith("within 0.1 ms of attention time; the least is 2 ms, fast at density 0.100")
    assert answer(only([FULL, FAST], Bound("density", 0.05))).endswith("; the least is 0.1, fast at density 0.100")
    gain = arm("gain", -0.3, 4.0)
    assert names(only([FULL, gain, SLOW], Bound("ms", 20.0)).ranked) == ["gain", "full", "slow"], "a gain is no loss"


@pytest.mark.parametrize("sparsity", [0.7, 0.8, 0.9])
def test_a_row_at_the_density_that_it_was_asked_for_is_within_a_bound_of_that(sparsity: float) -> None:
    bound, request = Bound("density", round(1 - sparsity, 3)), 1 - sparsity
    best = arm("best", 0.1, None)
    for measured, match, within in (
        (request * 1.0013, Match.MATCHED, True),
        (request * 1.0013, Match.NEAREST, False),
        (request * 0.95, Match.NEAREST, True),
    ):
        near = replace(best, row=replace(best.row, density=measured, sparsity=sparsity, match=match))
        assert (of(only([FULL, SLOW, near], bound), "best").verdict == Verdict.WITHIN) == within
    native = replace(best, row=replace(best.row, density=request * 1.0013, sparsity=None))
    assert of(only([FULL, native], bound), "best").verdict == Verdict.OUTSIDE


def test_prefills_are_ranked_beside_dense_ones_of_their_rounds_or_their_study() -> None:
    def timed(one: RecordedArm, ttft: float, dense: float | None) -> RecordedArm:
        times: Times = replace(one.times or TIMES, ttft_ms=ttft, ttft_low=ttft, ttft_high=ttft, dense_ttft_ms=dense)
        return replace(one, times=times)

    arms = [timed(FULL, 100.0, None), timed(FAST, 90.0, 100.0), timed(SLOW, 80.0, None)]
    assert names(only(arms, Bound("loss", 2.0, "ttft")).ranked) == ["slow", "fast", "full"]
    alone = only(arms[1:], Bound("loss", 2.0, "ttft"))
    assert names(alone.ranked) == ["fast"] and of(alone, "slow").reason == "dense attention's time"


def test_devices_and_sets_of_tasks_are_never_compared() -> None:
    on_gpu = [arm("full", None, 1.0, device="gpu"), arm("fast", 0.1, 0.1, device="gpu"), arm("new", 0.1, 0.1, device="gpu")]
    other = [replace(one, tasks=(replace(one.tasks[0], task="qa"),)) for one in (FULL, FAST)]
    main, second, third = choices([FULL, FAST, *on_gpu, *other], LOSS)
    assert main.device == "gpu" and {second.device, third.device} == {"cpu (x)"}
    assert [len(choice.candidates) for choice in (main, second, third)] == [3, 2, 2]
    assert choices([FULL], LOSS) == [], "dense attention alone is no choice"
    alone, timed = arm("full", None, 1.0, device="alone"), replace(arm("fast", None, 1.0, device="timed"), tasks=())
    arms = [FULL, FAST, alone, timed]
    assert elsewhere(arms, choices(arms, LOSS)) == [
        *("alone: dense attention alone (mine)", "timed: times alone, no accuracy (mine)")
    ]


def test_the_terminal_loses_nothing_at_80_columns_and_the_csv_has_every_arm(tmp_path: Path) -> None:
    long = "a_method_whose_name_is_as_long_as_they_come"
    arms = [FULL, FAST, arm(long, 0.1, 3.0), arm("unsure", 1.5, 1.0), arm("oracle", 0.0, 0.1), arm("untimed", 0.1, None)]
    for bound in (LOSS, Bound("density", 0.5), Bound("ms", 5.0)):
        text = io.StringIO()
        choice = only(arms, bound)
        show_choice(Console(file=text, width=80), choice, [choice])
        shown = text.getvalue()
        assert bound.of != "density" or ("not" in shown.split() and "not\\n" not in shown), "two lines of a cell"
        assert "…" not in shown and long[:20] in shown and long[-8:] in shown, "wrapped, not cut"
        assert "no row at all: " in shown and "never chosen, as it looks at what no usable method can: oracle" in shown
    path = write_choices(tmp_path / "choose.csv", [only(arms)])
    rows = read_csv(path)
    assert [row["method"] for row in rows][:3] == ["fast", long, "full"] and len(rows) == len(arms)
    assert {row["method"]: row["verdict"] for row in rows}["oracle"] == "a bound"
    assert rows[0]["rank"] == "1" and rows[0]["loss_high"] == "1.5" and rows[0]["share"] == "0.2"


def test_points_are_told_from_the_bound() -> None:
    assert [points(2.04, 2.0), points(2.0, 2.0), points(1.9996, 2.0), points(1.24), points(-0.01)] == [
        *("2.04", "2.0", "2.000", "1.2", "0.0")
    ]


def test_an_arm_of_two_studies_counts_once_with_the_times_of_either(tmp_path: Path) -> None:
    timed, larger = Store(tmp_path / "timed"), Store(tmp_path / "larger")
    for store, count in ((timed, 1), (larger, 2)):
        for one in (DENSE, SPARSE):
            record_cell(store, one, "vt", [1.0] * count, density=0.1)
    record_times(timed, SPARSE)
    record_cell(timed, replace(SPARSE, setting=replace(SPARSE.setting, length=8192)), "vt", [1.0])
    rows: list[Row] = []
    for one in recorded_arms([timed, larger], ("tiny", 4096)):
        rows.append(one.row)
        if one.row.method == "sieve":
            assert (one.row.study, one.row.samples, one.times_study) == ("larger", 2, "timed")
            assert one.times is not None and (one.times.total_low, one.times.ttft_high) == (3.9, 910.0)
    assert sorted(row.method for row in rows) == ["full", "sieve"]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A folder of two studies of one model: dense attention beside a method, and a length that it has alone."""
    for study, length in (("one", 4096), ("two", 8192)):
        store = Store(tmp_path / "results" / study)
        setting = replace(SPARSE.setting, length=length)
        dense, sparse = ArmIdentity(setting, "full", 0.0), replace(SPARSE, setting=setting)
        record_cell(store, replace(dense, kernel=None), "vt", [1.0] * 4)
        record_cell(store, sparse, "vt", [1.0, 1.0, 0.0, 1.0], density=0.1)
        record_times(store, sparse)
    dense = replace(SPARSE, setting=replace(SPARSE.setting, length=2048), method="full", kernel=None, block_size=None)
    record_cell(Store(tmp_path / "results" / "two"), dense, "vt", [1.0])
    return tmp_path


def ask(asked: dict[str, Any]) -> None:
    """Run the job in the folder of the results, with settings and those of the job; given: others that count as given."""
    settings = composed("job=choose")
    options = {name: asked[name] for name in asked.keys() & settings.options.keys()}
    others = {name: asked[name] for name in asked.keys() - options.keys() - {"given"}}
    given = frozenset([*asked.get("given", []), *others])
    settings, command = replace(with_options(settings, **options), **others, given=given), CommandState()
    assert run(settings, command.open_study(settings), command) == 0


def test_the_command_answers_and_changes_no_study(
    recorded: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in (recorded / "results").rglob("*") if path.is_file()}
    assert command("job=choose", "model=tin", "length=4096", "max_loss=90", "out=answer.csv") == 0
    out = capsys.readouterr().out
    assert out.startswith("Use sieve at density 0.100: 75 % less attention time than dense attention, and at most ")
    assert "wrote answer.csv" in out and len(read_csv(recorded / "answer.csv")) == 2
    ask({"model": "tiny", "length": 8192, "by": "ttft", "max_loss": 90})
    assert "dense attention's time not measured: sieve" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (recorded / "results").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({}, "no bound; one of max_loss=2"),
        ({"max_loss": 2, "max_ms": 3}, "max_loss=2 and max_ms=3: give one bound"),
        ({"max_loss": -1}, "max_loss=-1: must be at least 0"),
        ({"max_loss": "much"}, "max_loss=much: must be a finite number"),
        ({"max_density": 1.5}, "max_density=1.5: must be at most 1"),
        ({"max_ms": 0}, "max_ms=0: must be above 0"),
        ({"max_loss": 2, "by": "time"}, "by=time: must be one of attention, ttft"),
        ({"max_loss": 2, "model": "huge"}, "model=huge: no model of that name is recorded; name one of: tiny"),
        ({"max_loss": 2, "given": ["model"]}, "model=bundled: nothing is recorded of it"),
        ({"max_loss": 2}, "no length; it was measured at 2048, 4096, 8192"),
        (
            {"max_loss": 2, "length": 1024},
            "length=1024: nothing is recorded of tiny there; it was measured at 2048, 4096, 8192",
        ),
        ({"max_loss": 2, "length": 4096, "question": "after"}, "tiny at 4k: nothing is recorded with question=after; there is"),
        ({"max_loss": 2, "length": 4096, "measured_on": "H100"}, "measured_on=H100: nothing was measured on such a device"),
        ({"max_loss": 2, "length": 2048}, "tiny at 2k: only dense attention was measured there"),
        ({"max_loss": 2, "study": "none"}, "study=none: no records"),
        ({"max_loss": 2, "results": Path("nowhere")}, "results=nowhere: no study there has records"),
        ({"max_loss": 2, "out": "results"}, "out=results: a folder"),
    ],
)
def test_bad_input_is_one_line(recorded: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], error: str) -> None:
    monkeypatch.chdir(recorded)
    with pytest.raises(UserError) as raised:
        ask(asked)
    assert str(raised.value).startswith(error) and "\n" not in str(raised.value)


def test_a_study_that_cannot_be_read_is_said_and_left_out(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(recorded)
    (recorded / "results" / "two" / "records" / "cells.jsonl").write_text("no record\n")
    ask({"max_loss": 90})  # the other one has one model and one length
    assert "warning: study=two is left out: " in capsys.readouterr().err


def test_a_terminal_shows_that_records_are_read(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Many studies take seconds. A pipe gets the answer alone."""
    monkeypatch.chdir(recorded)
    ask({"max_loss": 90, "length": 4096})
    piped = capsys.readouterr()
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    ask({"max_loss": 90, "length": 4096})
    assert "reading the records of 2 studies" in capsys.readouterr().out
    assert "reading" not in piped.out + piped.err
