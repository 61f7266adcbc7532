"""The paper's items: what is published, which rows are drawn and which are left out, the files, and the checklist."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.core.conf_files import groups
from harness.core.errors import UserError
from harness.report.figures.looks import Look
from harness.report.figures.paper import checklist, fig6, fig9, sheet, table1, table4
from harness.report.figures.paper.drawing import Drawing, named_apart, suffix_of, write_values
from harness.report.figures.paper.items import ITEMS
from harness.report.figures.paper.published import CERTAINTIES, published
from harness.report.figures.paper.recorded import Recorded, notices_of, timed_alike
from harness.report.perplexity_rows import perplexity_of
from harness.report.rows import Answer, Perplexity, Row
from harness.study.columns import PERPLEXITY
from harness.study.matching import Match
from harness.study.store import Record, Store
from tests.harness.report.support import TIMES, make_row

ROOT = Path(__file__).resolve().parents[3]
PAPER = ROOT / "results" / "paper"
FIG6 = ITEMS["fig6"]


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pixels, which take less time."""
    monkeypatch.setitem(sheet.RC, "savefig.dpi", 30)


class Fixed(Recorded):
    """Rows that are made up, in place of studies."""

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__([])
        self.rows = list(rows)

    def perplexity_rows(self) -> list[Row]:
        return self.rows

    def timed_rows(self) -> list[Row]:
        return self.rows

    def task_rows(self, tasks: Any) -> dict[str, list[Row]]:
        return {"mine": self.rows} if self.rows else {}


def timed(method: str, length: int, ms: float, *, sparsity: float = 0.9, match: Match | None = None, **fields: Any) -> Row:
    """A row whose prefill takes ms where one with dense attention takes 100."""
    row = make_row(method, 0.0 if method == "full" else sparsity, length, 0.5, arm=f"{method} {sparsity} {length}", **fields)
    return replace(row, match=match, times=replace(TIMES, ttft_ms=ms, dense_ttft_ms=100.0, density=1 - sparsity))


def judged(method: str, sparsity: float, length: int, value: float, density: float | None = None) -> Row:
    """A row of perplexity, on one document."""
    documents = {0: {"tokens": 10, "nll": 1.0, "read": 10, "seconds": 1.0, "density": density, "token_density": None}}
    row = make_row(method, sparsity, length, None, task=PERPLEXITY, haystack="pydoc", documents=documents, arm=method)
    row = replace(
        row,
        density=1 - sparsity if density is None else density,
        perplexity=Perplexity(1.0, value, 0.9 * value, 2 * value, 1.0),
    )
    return row


# -- what is published ---------------------------------------------------------------------------------------------------


def test_every_published_value_says_where_it_was_read_and_how() -> None:
    values = published()
    assert {value.item for value in values} <= set(ITEMS)
    assert all(value.source and value.unit and value.certainty in CERTAINTIES for value in values)
    keys = [(v.item, v.panel, v.series, v.x, v.unit) for v in values]
    assert len(set(keys)) == len(keys) > 200


def test_no_item_names_an_experiment_that_is_not_there() -> None:
    """Of an experiment that is still to come it says that no command makes the rows."""
    for item in ITEMS.values():
        known = item.experiment in groups()["experiment"]
        assert ("experiment=" in item.makes_rows) == known
        assert item.makes_rows or (item.needs and f"no command makes these rows yet ({item.needs})" in item.how_to_make)


@pytest.fixture(scope="module")
def empty() -> dict[str, Drawing]:
    """Every item, without a row."""
    drawings = {}
    for name, item in ITEMS.items():
        (drawings[name],) = item.draw(Fixed([]))
    return drawings


def test_without_rows_an_item_is_drawn_with_published_values_and_the_command(empty: dict[str, Drawing]) -> None:
    for name, drawing in empty.items():
        texts = " ".join(text.get_text() for text in drawing.figure.findobj(lambda a: hasattr(a, "get_text")))
        plain = " ".join(texts.split())
        assert drawing.status == "not measured" and not drawing.studies
        assert " ".join(ITEMS[name].how_to_make.split()[:6]) in plain, name
        assert drawing.figure.get_figwidth() in (sheet.COLUMN, sheet.PAGE)


# -- which rows are drawn ------------------------------------------------------------------------------------------------


def test_perplexity_off_its_density_is_hollow_and_a_thicket_is_cut() -> None:
    rows = [judged("full", 0.0, 8192, 10.0), judged("sieve", 0.8, 8192, 11.0), judged("sieve", 0.9, 8192, 12.0, density=0.3)]
    rows += [judged(f"other{number}", 0.9, 8192, 20.0 + number) for number in range(10)]
    (drawing,) = ITEMS["fig5"].draw(Fixed(rows))
    shown = {(value.series, value.x): value.shown for value in drawing.values}
    assert shown["sieve", 0.8] == "yes" and shown["sieve", 0.7] == "hollow"
    assert [value.shown for value in drawing.values].count("no") == 3, "eight lines of eleven"
    assert drawing.status == "measured but for 16k, 32k, 64k, 128k" and drawing.measured == ["8k"]


@pytest.mark.parametrize("name", ["fig2", "fig4", "table4"])
def test_an_ablation_is_drawn_from_the_study_of_its_experiment(name: str) -> None:
    """Of what no command makes yet: rows of a study that is called so fill the item, others don't."""
    rows = [judged("full", 0.0, length, 10.0) for length in (8192, 16384)]
    rows += [judged("sieve", sparsity, length, 12.0) for length in (8192, 16384) for sparsity in (0.8, 0.9)]
    own = [replace(row, study=ITEMS[name].experiment) for row in rows]
    (drawing,) = ITEMS[name].draw(Fixed([*rows, *own]))
    assert drawing.studies == [ITEMS[name].experiment] and drawing.status == "measured"
    assert {value.series for value in drawing.values} == {"full", "sieve"}
    assert ITEMS[name].draw(Fixed(rows))[0].status == "not measured"


def test_fine_tuned_models_stand_beside_the_one_trained_densely() -> None:
    def trained(out: str, method: str, sparsity: float, seed: int) -> Record:
        return {"about": {"out": out, "model": "toy", "method": method, "sparsity": sparsity, "seed": seed}, "loss": 2.0}

    def of_model(model: str, row: Row, losses: Sequence[float]) -> Row:
        usual: dict[str, Any] = {
            "tokens": 100,
            "read": 100,
            "seconds": 1.0,
            "density": row.density,
            "token_density": row.density,
        }
        by_index = {index: {**usual, "index": index, "nll": 100 * loss} for index, loss in enumerate(losses)}
        perplexity = perplexity_of(list(by_index.values()), [], 0)
        return replace(row, study="finetune", model=model, documents=by_index, perplexity=perplexity)

    dense, sparse = judged("full", 0.0, 8192, 10.0), judged("sieve", 0.9, 8192, 12.0)
    rows, steps = [of_model("toy", dense, [4.0, 4.0, 4.0])], []
    for seed, loss in enumerate((2.0, 2.2)):
        rows.append(of_model(f"d{seed}", dense, [loss, loss + 0.1, loss + 0.2]))
        rows.append(of_model(f"s{seed}", sparse, [loss + 0.01, loss + 0.11, loss + 0.21]))
        steps += [trained(f"d{seed}", "full", 0.0, seed), trained(f"s{seed}", "sieve", 0.9, seed)]
    store: Any = SimpleNamespace(folder=Path("finetune"), finetune_steps=SimpleNamespace(read=lambda: steps))
    recorded = Fixed(rows)
    recorded.stores = [store]
    (drawing,) = ITEMS["table4"].draw(recorded)
    values = {(value.panel, value.series): value for value in drawing.values if value.panel == table4.RATIO}
    ratio = values[table4.RATIO, "trained with sieve 0.9: sieve"]
    assert len(values) == 1 and ratio.y == pytest.approx(math.exp(0.01)) and ratio.high == pytest.approx(math.exp(0.01))
    texts = [text.get_text() for text in drawing.figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    assert "1.010✓" in texts and "not fine-tuned: full" in texts and "trained with full: full" in texts
    assert drawing.model == "toy" and drawing.status == "measured"


def test_times_of_a_length_come_from_one_study() -> None:
    rows = [
        timed("sieve", 8192, 50.0, study="old"),
        timed("sieve", 8192, 40.0, study="new"),
        timed("comb", 8192, 30.0, study="new"),
    ]
    assert {row.study for row in timed_alike(rows)} == {"new"}, "the one with most methods"
    chunked = timed("sieve", 4096, 50.0, prefill_chunk=512)
    assert timed_alike([chunked]) == []


def test_a_bar_of_prefills_leaves_out_what_is_off_and_takes_the_nearer_neighbour() -> None:
    near = timed("comb", 8192, 25.0, match=Match.NEAREST, density=0.11, block_size=64, knobs={"width": 3})
    far = replace(near, arm="far", density=0.07, times=replace(TIMES, ttft_ms=20.0, dense_ttft_ms=100.0))
    off = timed("loose", 8192, 10.0, match=Match.OFF_DENSITY)
    rows = [timed("full", 8192, 100.0), timed("sieve", 8192, 50.0, match=Match.MATCHED), near, far, off]
    lines, left_out = fig9.lines_at(fig9.prefills(rows), 0.9)
    speedups = {name.split(" ")[0]: line[8192].speedup for name, line in lines.items()}
    assert speedups == {"sieve": 2.0, "comb": 4.0} and [row.method for row in left_out] == ["loose"]


def test_a_prefill_without_dense_in_its_rounds_stands_beside_that_of_its_study() -> None:
    alone = replace(timed("sieve", 8192, 50.0), times=replace(TIMES, ttft_ms=50.0))
    dense = replace(timed("full", 8192, 80.0), times=replace(TIMES, ttft_ms=80.0))
    assert [(one.speedup, one.paired) for one in fig9.prefills([dense, alone])] == [(1.6, False)]
    assert fig9.prefills([alone]) == [], "nothing to compare with"


def test_what_all_timings_assume_is_said_and_the_reasons_of_accuracies_are_not() -> None:
    alone = [timed("sieve", n, 50.0, task="", reason=f"random weights (seed 0); of {n}") for n in (4096, 8192)]
    assert notices_of(alone) == "Random weights (seed 0). "
    assert notices_of([*alone, timed("comb", 8192, 50.0, reason="random weights (seed 0)")]) == "" == notices_of([])


def test_buckets_are_those_of_the_task_or_else_of_the_prompt() -> None:
    row = make_row("sieve", 0.8, 8192, 0.5, task="longbench_e_qasper_4-8k")
    assert table1._place(row, 100) == ("qasper", "4-8k")
    assert [table1._place(replace(row, task="longbench_lcc"), n)[1] for n in (3999, 4000, 8000)] == ["0-4k", "4-8k", "8k+"]


def test_a_bucket_is_the_mean_over_its_data_sets() -> None:
    answers = {"0-4k": {"lcc": [Answer(1.0, 0.2), Answer(0.0, 0.2)], "trec": [Answer(1.0, 0.5)]}, "4-8k": {}}
    line = table1.Line(make_row("sieve", 0.8, 8192, 0.5), answers, by_words=False)
    assert line.score("0-4k") == 75.0 and line.score("4-8k") is None and line.mean is None and line.prompts("0-4k") == 3
    assert line.sparsity == pytest.approx(0.7)


def test_the_kernel_that_is_stacked_is_on_a_methods_blocks_as_the_paper_has_them() -> None:
    """From the committed records, and the values come out again byte by byte."""
    recorded = Recorded([Store(ROOT / "results" / "kernel_speed")])
    rows = recorded.kernel_rows("prefill")
    line = fig6.stacked_line(rows)
    assert {(row.block_size, row.shared, row.full_rows) for row in line} == {(64, False, None)}
    assert fig6.stacked_line([]) == [] and {row.length for row in line} >= {8192, 32768, 131072}


@pytest.mark.parametrize("name", ["fig6", "fig11"])
def test_values_come_out_of_the_records_again(name: str, tmp_path: Path) -> None:
    (drawing,) = ITEMS[name].draw(Recorded([Store(ROOT / "results" / "kernel_speed")]))
    assert write_values(tmp_path / "x.csv", drawing).read_bytes() == (PAPER / f"{name}.csv").read_bytes()


def test_models_have_files_of_their_own_whatever_they_are_called() -> None:
    names = ["first", "a/b", "a-b", "模型", "x" * 300]
    suffixes = [suffix_of(number, name) for number, name in enumerate(names)]
    assert suffixes[:3] == ["", "_a-b", "_a-b"] and all(len(suffix) < 100 for suffix in suffixes)
    figure = sheet.new_sheet(sheet.COLUMN, 1.0, "x")
    apart = [drawing.suffix for drawing in named_apart([Drawing(figure, suffix=suffix) for suffix in suffixes])]
    assert apart[:3] == ["", "_a-b", "_a-b-2"] and len(set(apart)) == len(names)


def test_long_names_make_a_legend_of_fewer_columns_and_a_higher_title() -> None:
    short, long = (sheet.new_sheet(sheet.PAGE, 2.0, "a " * words) for words in (3, 90))
    assert long.get_figheight() > short.get_figheight()
    for figure, letters in ((short, 3), (long, 110)):
        look = Look("#000000", "o")
        sheet.finish(figure, "note", [sheet.line_key(look, f"{number}" * letters) for number in range(6)], 6)
    assert [legend._ncols for figure in (short, long) for legend in figure.legends] == [6, 1]


# -- the checklist -------------------------------------------------------------------------------------------------------


def test_the_documents_have_the_checklist_that_the_job_wrote() -> None:
    entries = checklist.read_entries(PAPER)
    assert list(dict.fromkeys(entry.item for entry in entries)) == list(ITEMS)
    assert (PAPER / checklist.PAGE).read_text() == checklist.page(entries, PAPER)
    text = (ROOT / "docs" / "figures.md").read_text()
    block = text.partition(checklist.BEGIN)[2].partition(checklist.END)[0]
    assert block.strip() == checklist.checklist(entries, PAPER, ROOT / "docs")
    files = {f"{entry.file}.{ending}" for entry in entries for ending in ("png", "pdf", "csv")}
    assert {path.name for path in PAPER.iterdir()} == files | {checklist.FILE, checklist.PAGE}


def test_a_page_without_its_lines_is_refused_and_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for text in ("nothing", f"{checklist.END}\n{checklist.BEGIN}", f"{checklist.BEGIN}\n{checklist.BEGIN}\n{checklist.END}"):
        page.write_text(text)
        with pytest.raises(UserError, match="each once: the checklist goes between"):
            checklist.write_page(page, [], tmp_path)
        assert page.read_text() == text
