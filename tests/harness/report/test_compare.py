"""Methods of a study beside one of them: pairs on the same samples, one family of p-values, clear errors."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from harness.core.errors import UserError
from harness.jobs.compare import write_again
from harness.report.compare import COLUMNS, compare_lines
from harness.report.figures import compare as figure
from harness.report.terminal.comparison_table import show_pairs
from harness.stats import scores
from harness.stats.paired import difference_interval
from harness.study.identity import ArmIdentity, Cell, Decoding, Samples
from harness.study.store import Store
from tests.harness.report.support import DENSE, SETTING, record_cell

SIEVE = {s: ArmIdentity(SETTING, "sieve", s, {"width": 3}, 64, "reference") for s in (0.5, 0.9)}
NET = {s: ArmIdentity(SETTING, "net", s, {}, 64, "reference") for s in (0.5, 0.9)}
ONLY = ArmIdentity(SETTING, "only", 0.7, {}, 64, "reference")
GOOD, BAD = [1.0, 1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0, 1.0]


def study(folder: Path) -> Store:
    """Dense, two methods at two sparsities and two tasks, and one at a sparsity that nobody else has."""
    store = Store(folder / "study")
    for task in ("first", "second"):
        record_cell(store, DENSE, task, [1.0] * 5)
        record_cell(store, ONLY, task, GOOD, density=0.3)
        for sparsity, sieve_scores, net_scores in ((0.5, GOOD, GOOD), (0.9, BAD, GOOD if task == "first" else GOOD[:4])):
            record_cell(store, SIEVE[sparsity], task, sieve_scores, density=1 - sparsity)
            record_cell(store, NET[sparsity], task, net_scores, density=1 - sparsity)
    return store


def test_pairs_are_of_the_samples_that_both_ran(tmp_path: Path) -> None:
    even, lower = compare_lines(study(tmp_path), "net")
    assert (even.line, even.sparsity, even.beside) == ("sieve", 0.5, "net")
    assert even.difference == 0 and even.p_value == 1 and even.difference_low < 0 < even.difference_high
    assert lower.samples == 9  # the second task's fifth has no partner
    assert lower.accuracy == pytest.approx((2 / 5 + 1 / 4) / 2)
    assert lower.beside_accuracy == pytest.approx((4 / 5 + 3 / 4) / 2)
    assert lower.difference == pytest.approx((-2 / 5 - 2 / 4) / 2)
    pairs = [BAD, BAD[:4]], [GOOD, GOOD[:4]]
    assert (lower.difference_low, lower.difference_high) == difference_interval(*pairs)
    assert lower.p_value == scores.average_p(*pairs)
    assert [even.p_holm, lower.p_holm] == scores.holm_adjusted([1.0, lower.p_value])


def test_the_other_way_round_is_the_opposite(tmp_path: Path) -> None:
    store = study(tmp_path)
    forth, back = compare_lines(store, "net")[1], compare_lines(store, "sieve")[1]
    assert back.line == "net" and back.difference == -forth.difference
    assert back.p_value == forth.p_value


def test_samples_of_another_seed_are_no_partners(tmp_path: Path) -> None:
    store = Store(tmp_path / "study")
    for method, seed in (("sieve", 0), ("net", 1)):
        setting = replace(SETTING, seed=seed)
        record_cell(store, ArmIdentity(setting, "full", 0.0), "first", [1.0] * 5)
        record_cell(store, ArmIdentity(setting, method, 0.5, {}, 64, "reference"), "first", GOOD)
    with pytest.raises(UserError, match="no other line has accuracies of the same samples at a sparsity of net"):
        compare_lines(store, "net")


def test_weights_that_no_column_tells_apart_are_not_chosen_between(tmp_path: Path) -> None:
    store = study(tmp_path)
    record_cell(store, replace(NET[0.5], weights_hash="other"), "first", BAD)
    record_cell(store, replace(NET[0.5], weights_hash="other"), "second", BAD)
    with pytest.raises(UserError, match=r"net has two rows at sparsity 0\.5 and length 4096, of other weights or prompts"):
        compare_lines(store, "net")
    assert len([row for row in compare_lines(store, "sieve") if row.line == "net" and row.sparsity == 0.5]) == 2


def test_a_threshold_that_the_question_moves_does_not_split_a_line(tmp_path: Path) -> None:
    store = Store(tmp_path / "study")
    for question, width in (("after", 3), ("reread", 4)):
        for arm in (DENSE, NET[0.5], replace(SIEVE[0.5], knobs={"width": width})):
            cell = Cell(arm, Samples("first", "1", {"haystack": None}, False, question=question))
            record_cell(store, arm, "first", GOOD, cell=cell)
    assert {(r.line, r.question) for r in compare_lines(store, "net")} == {("sieve", "after"), ("sieve", "reread")}


def test_a_study_without_accuracies_is_one_clear_line(tmp_path: Path) -> None:
    store = Store(tmp_path / "study")
    record_cell(store, DENSE, "first", [1.0] * 5)
    with pytest.raises(UserError, match="study=study: it has no accuracies of methods: nothing to compare"):
        compare_lines(store, "net")


def test_a_part_of_a_name_will_do(tmp_path: Path) -> None:
    assert compare_lines(study(tmp_path), "siev") == compare_lines(study(tmp_path), "sieve")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("what", "job.to=what: the study has no such line; name one of: net, only, sieve"),
        ("e", "job.to=e: 2 lines have that in their names; name one of: net, sieve"),
        ("only", "job.to=only: no other line has accuracies of the same samples at a sparsity of only: nothing to compare"),
    ],
)
def test_what_can_not_be_compared_is_one_clear_line(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        compare_lines(study(tmp_path), name)


def test_the_command_writes_table_and_picture(command: Callable[..., int], toy: list[str], tmp_path: Path) -> None:
    assert command(*toy, "method=block_topk", "report=false") == 0
    assert command(*toy, "method=random", "report=false") == 0
    stale, other = tmp_path / "results/toy/compare_random_2.png", tmp_path / "results/toy/compare_random_x.png"
    stale.touch()
    other.touch()
    assert command("job=compare", "study=toy", "method=random") == 0
    assert (stale.exists(), other.exists()) == (False, True), "an earlier picture of the same line goes, no other"
    with open(tmp_path / "results/toy/compare_random.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert tuple(row) == COLUMNS
    assert (row["line"], row["beside"], row["samples"]) == ("block_topk", "random", "2")
    assert (tmp_path / "results/toy/compare_random.png").stat().st_size > 10_000
    assert not (tmp_path / "results/toy/leaderboard.csv").exists()  # a comparison reads, and leaves what there is


def test_without_records_the_command_says_so(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("job=compare", "study=none") != 0
    assert "study=none: no records in" in capsys.readouterr().err


def test_densities_of_decoding_are_told_and_not_matched(tmp_path: Path) -> None:
    """They differ at one budget too, so that no text may say that all densities are within 2 %."""
    store = Store(tmp_path / "study")
    record_cell(store, DENSE, "first", GOOD)
    for name, density in (("quest", 0.4), ("streaming", 0.3)):
        arm = replace(DENSE, decode=Decoding(name, {"budget": 256}, "reference"))
        record_cell(store, arm, "first", GOOD, decode_density=density)
    (pair,) = compare_lines(store, "streaming")
    assert (pair.decode_density, pair.beside_decode_density) == (pytest.approx(0.4), pytest.approx(0.3))
    console = Console(file=io.StringIO(), width=200)
    show_pairs(console, [pair])
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "decode" in text and "0.400" in text and "0.300; nothing matches those" in text
    assert "of prefill, within 2 % (those of decoding are not matched)" in figure.density_note([pair])
    assert figure.density_note(compare_lines(study(tmp_path / "prefill"), "net")) == ", within 2 %"


def test_files_of_somebody_else_are_no_stale_comparisons(tmp_path: Path) -> None:
    store = study(tmp_path)
    (store.folder / "compare_of_mine.csv").write_text("a,b\n1,2\n")
    (store.folder / "compare_gone.csv").write_text("line,beside,difference\nnet,gone,0.5\n")
    for name in ("compare_gone.png", "compare_gone_2.png", "compare_gone_2_of_mine.png"):
        (store.folder / name).touch()
    written, stale = write_again(store)
    assert (written, {path.name for path in stale}) == ([], {"compare_gone.csv", "compare_gone.png", "compare_gone_2.png"})
