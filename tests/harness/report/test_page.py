"""One page of all rows: what it is made of, what it says of damage, and that nothing recorded becomes markup or code."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from harness.report.leaderboard import leaderboard_rows
from harness.report.page import claims, html, pictures
from harness.report.page.html import inline_script, page_content, page_html
from harness.report.page.rows import DRAWN, SHOWN, page_rows
from harness.study.store import Store
from tests.harness.report.page_rows import HOSTILE, made_up_rows
from tests.harness.report.support import DENSE, SPARSE, record_cell, record_times

ROOT = Path(__file__).resolve().parents[3]
CLAIMS = f"""# Claims

## Speed {HOSTILE}

| no. | claim | published | here | verdict |
| --- | --- | --- | --- | --- |
| [1](#1-fast) | it is `fast` | 7.3 (F) | 8.9 | holds |
| 2 | {HOSTILE} | – | 3\\* | open |

| other | table |
| --- | --- |
| 1 | 2 |

### 1. Fast

A [study](one/README.md), [another claim](#2-slow), [the paper](https://example.org), [code](javascript:alert(1)). {HOSTILE}
"""


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pages without the libraries, which are megabytes."""
    file = html._file
    monkeypatch.setattr(
        html, "_file", lambda package, *parts: "/* it */" if package in ("plotly", "itables") else file(package, *parts)
    )
    yield


def study(name: str, results: Path = Path("results")) -> Store:
    """A study of dense attention and one method on two tasks, timed."""
    store = Store(results / name)
    for arm in (DENSE, SPARSE):
        for task in ("vt", "cwe"):
            record_cell(store, arm, task, [1.0, 0.0], density=0.1003)
    record_times(store, SPARSE)
    return store


def data_of(page: str) -> dict[str, Any]:
    """Return the data in a page."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return dict(json.loads(text))


def column(data: dict[str, Any], name: str) -> list[Any]:
    """Return a column of the rows in a page."""
    values, averages = data["rows"][name], data["rows"]["average"]
    listed = values if isinstance(values, list) else [None if code < 0 else values["values"][code] for code in values["codes"]]
    if name not in data["rows"]["shared"]:
        return listed
    own = dict(zip([i for i, average in enumerate(averages) if average is None], listed, strict=True))
    return [own[i if average is None else average] for i, average in enumerate(averages)]


@pytest.mark.usefixtures("light")
def test_a_page_of_all_studies_and_the_same_bytes_twice(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    maps = study("one").folder / "maps"
    study("two")
    maps.mkdir()
    Image.new("RGB", (3000, 40), "red").save(maps / "sieve_layer1.png")
    Path("results/CLAIMS.md").write_text(CLAIMS)
    assert command("job=page") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("12 rows, 0.") and said[1] == "wrote results/page.html"
    page = Path("results/page.html").read_bytes()
    assert command("job=page", "job.out=elsewhere/page.html") == 0
    assert (
        data_of(Path("elsewhere/page.html").read_text())["claims"]["stories"]["1"]["html"].count("../results/one/README.md")
        == 1
    )
    assert command("job=page") == 0
    assert Path("results/page.html").read_bytes() == page

    data = data_of(page.decode())
    assert data["count"] == 12 and set(data["rows"]) == {*SHOWN, *DRAWN, "shared"}
    averages = [i for i, kind in enumerate(column(data, "kind")) if kind == "average"]
    assert [column(data, "line")[i] for i in averages] == ["full", "sieve"] * 2
    assert [column(data, "average")[i] is None for i in range(12)] == [i in averages for i in range(12)]
    for i, average in enumerate(column(data, "average")):
        if average is not None:
            assert [column(data, name)[i] for name in ("study", "line")] == [
                column(data, name)[average] for name in ("study", "line")
            ]
            assert column(data, "settings")[average].startswith("model=hf model.path=tiny")
    assert {"total_ms", "device", "line"} < set(data["rows"]["shared"]) and "task" not in data["rows"]["shared"]
    assert column(data, "superseded_by").count(None) == 6
    assert set(data["looks"]) == {"full", "sieve"} and data["looks"]["sieve"]["light"].startswith("#")
    assert [entry["study"] for entry in data["versions"]] == ["one", "two"]
    assert (data["maps"][0]["study"], data["maps"][0]["image"][:23]) == ("one", "data:image/webp;base64,")


@pytest.mark.usefixtures("light")
def test_a_page_of_one_study(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    study("one"), study("two")
    assert command("job=page", "study=two") == 0
    assert capsys.readouterr().out.splitlines()[1] == "wrote results/two/page.html"
    page = Path("results/two/page.html").read_text()
    assert data_of(page)["count"] == 6 and "<h1>two: sparse attention, measured</h1>" in page


@pytest.mark.usefixtures("light")
def test_what_is_damaged_is_said_and_bad_input_is_one_line(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*arguments: str) -> str:
        assert command("job=page", *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "results=results: no study there has records" in said()
    good, damaged = study("good"), study("damaged")
    damaged.runs.path.write_text("{}\n")
    assert command("job=page") == 1
    assert "warning: study=damaged is left out: results/damaged/records/runs.jsonl:1: " in capsys.readouterr().err
    page = Path("results/page.html").read_bytes()
    shutil.rmtree(damaged.folder)
    assert "study=none: no records in results/none" in said("study=none")
    Path("results/steps/records").mkdir(parents=True)
    shutil.copy(good.runs.path, "results/steps/records")
    assert "study=steps: it has no rows of models; results/steps/page.html stays as it is" in said("study=steps")
    assert "out=results: a folder; name a file in it, such as results/page.html" in said("job.out=results")
    assert "takes the whole study, whatever method= says" in said("method=seer")
    Path("results/CLAIMS.md").write_bytes(b"\xff")
    assert "results/CLAIMS.md can't be read" in said()
    version = metadata.version
    missing = metadata.PackageNotFoundError()
    monkeypatch.setattr(
        metadata, "version", lambda name: version(name) if name != "itables" else (_ for _ in ()).throw(missing)
    )
    assert "job=page needs itables, which is not installed: pip install 'sparse-attention-harness[page]'" in said()
    assert Path("results/page.html").read_bytes() == page


@pytest.mark.usefixtures("light")
def test_nothing_recorded_becomes_markup() -> None:
    rows = made_up_rows(800)
    assert HOSTILE in {row["method"] for row in rows}
    versions = [{"study": HOSTILE, "device": HOSTILE, "packages": HOSTILE, "commits": [HOSTILE]}]
    page = page_html(page_content(rows, versions, None, [{"study": HOSTILE, "name": HOSTILE, "image": ""}], HOSTILE))
    assert HOSTILE in data_of(page)["looks"]
    assert page.count("<script") == page.count("</script>") == 4
    assert "<img src" not in page and "<b>bold" not in page


def test_libraries_stay_whole_within_html() -> None:
    code = 'a = "</script>"; b = /<!--/; c = "<script>"; d = "</SCRIPT>"; e = x < script1;'
    assert inline_script(code) == (
        'a = "\\x3c/script>"; b = /\\x3c!--/; c = "\\x3cscript>"; d = "\\x3c/SCRIPT>"; e = x < script1;'
    )


def test_claims_are_read_from_their_tables(tmp_path: Path) -> None:
    path = tmp_path / "CLAIMS.md"
    assert claims.read_claims(path) == {"claims": [], "stories": {}}
    path.write_text(CLAIMS)
    content = claims.read_claims(path, "..")
    first, second = content["claims"]
    assert first == {
        "part": f"Speed {HOSTILE}",
        "no.": "1",
        "claim": "it is fast",
        "published": "7.3 (F)",
        "here": "8.9",
        "verdict": "holds",
    }
    assert (second["claim"], second["here"]) == (HOSTILE, "3*")
    story = content["stories"]["1"]
    assert story["title"] == "Fast"
    links = re.findall(r'href="([^"]*)"', story["html"])
    assert links == ["../one/README.md", "#claim-2", "https://example.org"]
    assert "<script" not in story["html"] and "<img" not in story["html"]


def test_the_committed_claims_all_have_a_story() -> None:
    content = claims.read_claims(ROOT / "results" / "CLAIMS.md")
    assert len(content["claims"]) > 30
    assert {claim["no."] for claim in content["claims"]} == set(content["stories"])


def test_too_many_maps_are_named(tmp_path: Path) -> None:
    (tmp_path / "one" / "maps").mkdir(parents=True)
    for name in ("a", "b"):
        Image.effect_noise((200, 100), 90).save(tmp_path / "one" / "maps" / f"{name}.png")
    first, second = pictures.read_maps([tmp_path / "one"], [])
    limited = pictures.read_maps([tmp_path / "one"], [], most=len(first["image"]))
    assert [entry["image"] for entry in limited] == [first["image"], ""]
    assert second["image"] and [entry["name"] for entry in limited] == ["a", "b"]


def test_maps_of_heads_are_numbers(tmp_path: Path) -> None:
    maps = pictures.read_maps([ROOT / "results" / "gate_patterns"], [])
    assert len(maps) == 5 and {entry["image"] for entry in maps} == {""}
    assert [len(row) for row in maps[0]["rows"]] == list(range(1, len(maps[0]["rows"]) + 1))
    assert "python -m harness experiment=" in maps[0]["note"]
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "patterns_x.json").write_text("{}")
    (tmp_path / "maps" / "patterns_y.json").write_text("[")
    (tmp_path / "maps" / "none.png").write_text("")
    Image.new("1", (1, 17_000)).save(tmp_path / "maps" / "high.png")
    problems: list[str] = []
    assert pictures.read_maps([tmp_path, ROOT / "results" / "gate_patterns"], problems) == maps
    said = ("no record of head patterns", "no JSON", "is no picture", "is no picture")
    assert all(said in problem for said, problem in zip(said, problems, strict=True))


@pytest.mark.usefixtures("light")
def test_a_damaged_map_or_version_is_left_out(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    store, kernels = study("one"), Store(Path("results/two"))
    kernels.kernels.path.parent.mkdir(parents=True)
    for file in (kernels.kernels.path, kernels.runs.path):
        file.write_text("garbage\n")
    (store.folder / "maps").mkdir()
    (store.folder / "maps" / "a.png").write_text("")
    assert command("job=page") == 1
    said = capsys.readouterr().err
    assert "warning: left out: versions of study=two: " in said and "a.png is no picture that can be read" in said
    assert column(data_of(Path("results/page.html").read_text()), "study")


def test_methods_at_their_defaults_and_decoding_have_names(tmp_path: Path) -> None:
    """Rows of a study without sparsity, and of arms that decode sparsely after a dense prefill."""
    rows = page_rows(leaderboard_rows(study("one", tmp_path)))
    assert {row["line"] for row in rows} == {"full", "sieve"}
    assert {row["native"] for row in rows} == {False}
    assert {row["look"] for row in rows} == {"full", "sieve"}


def test_the_scripts_name_no_method() -> None:
    import methods
    import methods.decode

    text = " ".join(path.read_text() for path in sorted((ROOT / "harness/report/page/assets").iterdir()))
    names = {*methods.names(), *methods.decode.names()} - {"dense", "random"}
    assert not names & set(re.findall(r"[a-z_0-9]+", text))
