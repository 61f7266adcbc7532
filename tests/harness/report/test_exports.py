"""What a study measured in the formats of others: each file is read by the tool it is for, or held to its schema."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResultEntry, parse_eval_result_entries
from lm_eval.api.metrics import mean_stderr
from lm_eval.utils import get_file_datetime, get_results_filenames, make_table

from harness.report.exports.evaluations import safe_name
from harness.report.exports.table import FORMATS
from harness.stats.scores import mean_interval
from harness.study.schema import Status
from harness.study.store import Store
from tests.harness.report.support import DENSE, SPARSE, record_cell, record_documents, record_times

SCHEMAS = Path(__file__).parent / "every_eval_ever"
SCORES = [1.0, 0.25, 1.0, 0.0]


def exported(command: Callable[..., int], name: str, *arguments: str) -> list[Path]:
    """The files of an export of the study `mine`, by path."""
    assert command("job=export", "study=mine", f"format={name}", "to=out", *arguments) == 0
    return sorted(path for path in Path("out").rglob("*") if path.is_file())


@pytest.fixture
def mine(command: Callable[..., int]) -> Store:
    """A study of dense attention and one method on two tasks, the method timed, and its perplexity."""
    store = Store(Path("results/mine"))
    for arm, scores in ((DENSE, [1.0, 1.0, 1.0, 0.0]), (SPARSE, SCORES)):
        for task in ("vt", "cwe"):
            record_cell(store, arm, task, scores, density=0.1003)
    record_times(store, SPARSE)
    return store


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_records_give_the_same_bytes(
    name: str, mine: Store, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    first = {path: path.read_bytes() for path in exported(command, name)}
    count = 4 if name == "every_eval_ever" else 2
    assert capsys.readouterr().out == f"{count} files of 2 evaluations\nwrote out\n"
    assert {path: path.read_bytes() for path in exported(command, name)} == first
    assert len(first) == count


def aggregates(paths: list[Path]) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in paths if path.suffix == ".json"]


def validator(name: str) -> Any:
    """A validator of a schema of Every Eval Ever."""
    jsonschema = pytest.importorskip("jsonschema", reason="of the extra dev")
    schema = json.loads((SCHEMAS / name).read_text())
    return jsonschema.Draft7Validator(schema)


def test_every_eval_ever(mine: Store, command: Callable[..., int]) -> None:
    paths = exported(command, "every_eval_ever", "organization=Us", "url=https://example.org")
    whole, line = validator("eval.schema.json"), validator("instance_level_eval.schema.json")
    for path in paths:
        if path.suffix == ".json":
            assert [error.message for error in whole.iter_errors(json.loads(path.read_text()))] == []
        else:
            assert [e.message for text in path.read_text().splitlines() for e in line.iter_errors(json.loads(text))] == []
    (sparse,) = [log for log in aggregates(paths) if "density" in str(log) and "sieve" in str(log)]
    assert sparse["model_info"]["id"] == "tiny" and sparse["source_metadata"]["source_organization_name"] == "Us"
    results = {result["evaluation_name"]: result for result in sparse["evaluation_results"]}
    assert list(results) == ["cwe+vt", "cwe", "vt", "cwe+vt density", "cwe+vt ttft_ms", "cwe+vt total_ms"]
    assert results["cwe+vt"]["score_details"]["score"] == statistics.fmean(SCORES)
    assert results["cwe+vt"]["score_details"]["uncertainty"]["num_samples"] == 8
    assert results["cwe+vt ttft_ms"]["score_details"]["score"] == 900.0
    assert results["cwe+vt ttft_ms"]["metric_config"]["lower_is_better"] is True
    details = results["vt"]["generation_config"]["additional_details"]
    assert (details["method"], details["requested_density"], details["match"]) == ("sieve", "0.1", "matched")
    command_line = results["vt"]["generation_config"]["generation_args"]["execution_command"]
    assert command_line.startswith("python -m harness model=hf model.path=tiny")


def test_samples_of_every_eval_ever_belong_to_their_file(mine: Store, command: Callable[..., int]) -> None:
    for log in aggregates(exported(command, "every_eval_ever", "hub_model=owner/tiny")):
        detail = log["detailed_evaluation_results"]
        content = (Path("out") / detail["file_path"]).read_bytes()
        assert detail["file_path"].startswith("data/ruler/owner/tiny/")
        assert hashlib.sha256(content).hexdigest() == detail["checksum"]
        rows = [json.loads(line) for line in content.splitlines()]
        assert len(rows) == detail["total_rows"] == 8
        assert {(row["evaluation_id"], row["model_id"]) for row in rows} == {(log["evaluation_id"], "owner/tiny")}
        results = {result["evaluation_result_id"]: result["score_details"]["score"] for result in log["evaluation_results"]}
        for task in ("vt", "cwe"):
            scores = [row["evaluation"]["score"] for row in rows if row["evaluation_result_id"] == task]
            assert statistics.fmean(scores) == results[task]
    hashes = [row["sample_hash"] for row in rows]
    assert len(set(hashes)) == 8, "one a sample"


def test_its_own_validator_takes_every_eval_ever(mine: Store, command: Callable[..., int]) -> None:
    program = shutil.which("every_eval_ever")
    if program is None:
        pytest.skip("every_eval_ever 0.3.0 is not installed: it needs Python 3.12 and other releases of our dependencies")
    paths = [str(path.relative_to("out")) for path in exported(command, "every_eval_ever", "hub_model=owner/tiny")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run([program, "validate", *paths], cwd="out", env=environment, capture_output=True, text=True)
    assert ended.returncode == 0 and "0 warning-only, 0 failed" in ended.stdout, ended.stdout + ended.stderr


def test_eval_results_are_read_by_the_hub(mine: Store, command: Callable[..., int]) -> None:
    paths = exported(command, "eval_results", "dataset=owner/ruler", "url=https://example.org")
    assert {path.parent for path in paths} == {Path("out/tiny/.eval_results")}
    (sparse,) = [path for path in paths if "sieve" in path.name]
    one = " to ".join(f"{100 * end:.1f}" for end in mean_interval(SCORES))
    assert parse_eval_result_entries(yaml.safe_load(sparse.read_text())) == [
        EvalResultEntry(
            dataset_id="owner/ruler",
            task_id=f"{task}_4096",
            value=56.25,
            date="2026-01-01T00:00:00+00:00",
            source_url="https://example.org",
            notes=f"sieve attention (width=3), density 0.100, 4096 tokens, 95 % interval {interval}, {count} samples, cpu (x)",
        )
        for task, count, interval in (("cwe+vt", 8, "29.4 to 78.7"), ("cwe", 4, one), ("vt", 4, one))
    ]


def test_a_placeholder_is_said(mine: Store, command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    (path, _) = exported(command, "eval_results")
    assert yaml.safe_load(path.read_text())[0]["dataset"]["id"] == "OWNER/ruler"
    assert capsys.readouterr().err == "dataset.id is OWNER/BENCHMARK: give dataset=, its id on the hub\n"


def test_lm_eval_makes_its_tables_of_its_results(mine: Store, command: Callable[..., int]) -> None:
    paths = exported(command, "lm_eval")
    assert get_results_filenames([str(path) for path in paths]) == [str(path) for path in paths]
    (path,) = [path for path in paths if "sieve" in path.parent.name]
    assert get_file_datetime(path.name) == "2026-01-01T00-00-00.json", "lm-eval leaves that on"
    results = json.loads(path.read_text())
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in make_table(results).splitlines()[2:]]
    assert ["cwe+vt", "1", "none", "", "density", "↓", "0.1003", "", ""] in cells
    assert ["", "", "none", "0", "score", "↑", "0.5625", "±", f"{mean_stderr(SCORES):.4f}"] in cells
    assert "cwe+vt" in make_table(results, "groups")
    assert results["group_subtasks"] == {"cwe+vt": ["cwe", "vt"]}
    assert results["n-samples"]["vt"] == {"original": 4, "effective": 4}


def test_perplexities_are_exported_too(command: Callable[..., int]) -> None:
    store = Store(Path("results/mine"))
    record_documents(store, DENSE, [200.0, 210.0])
    record_documents(store, SPARSE, [220.0, 230.0])
    schema = validator("eval.schema.json")
    logs = aggregates(exported(command, "every_eval_ever"))
    assert len(logs) == 2 and all(schema.is_valid(log) and "detailed_evaluation_results" not in log for log in logs)
    assert {log["evaluation_results"][0]["metric_config"]["lower_is_better"] for log in logs} == {True}
    shutil.rmtree("out")
    for path in exported(command, "eval_results"):
        (entry,) = parse_eval_result_entries(yaml.safe_load(path.read_text()))
        assert entry.task_id == "perplexity_4096" and 3 < entry.value < 5
    shutil.rmtree("out")
    assert all("perplexity" in make_table(json.loads(path.read_text())) for path in exported(command, "lm_eval"))


def test_what_may_not_be_shown_is_left_out(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(Path("results/mine"))
    record_cell(store, DENSE, "vt", [1.0, 1.0])
    record_cell(store, SPARSE, "vt", [1.0, 1.0], sample_status=Status.GATED, sample_reason="two BOS")
    assert len(exported(command, "lm_eval")) == 1
    assert capsys.readouterr().out.startswith("1 file of 1 evaluation; 1 failed, held back or infinite, left out\n")


def test_an_infinite_perplexity_is_left_out(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """JSON has no infinity, and eval_results would have a word in its place."""
    store = Store(Path("results/mine"))
    record_documents(store, DENSE, [200.0, 1.5e5])
    record_documents(store, SPARSE, [220.0, 1e17])
    schema = validator("eval.schema.json")
    for name in FORMATS:
        (path,) = exported(command, name)
        assert capsys.readouterr().out.startswith("1 file of 1 evaluation; 1 failed, held back or infinite, left out\n")
        if name == "every_eval_ever":
            log = json.loads(path.read_text())
            assert schema.is_valid(log)
            assert "confidence_interval" not in log["evaluation_results"][0]["score_details"]["uncertainty"]
        shutil.rmtree("out")


def test_bad_input_is_one_line(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> str:
        assert command("job=export", "study=mine", *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    store = Store(Path("results/mine"))
    assert "no records in results/mine" in said("format=lm_eval")
    record_cell(store, DENSE, "vt", [1.0])
    assert "format=lmeval: must be one of tasks, every_eval_ever, eval_results, lm_eval (did you mean lm_eval?)" in said(
        "format=lmeval"
    )
    assert "hub_model=tiny: must be an id of the hub, OWNER/NAME" in said("format=lm_eval", "hub_model=tiny")
    assert "out=x: the folder of format=tasks; that of results is to=" in said("format=lm_eval", "out=x")
    assert "takes the whole study, whatever method= says" in said("format=lm_eval", "method=seer")
    Path("file").touch()
    assert "to=file: file can't be written to (it is no folder)" in said("format=lm_eval", "to=file")
    assert "to=, url=: of results, with format=; tasks, as here, go to out=" in said("to=x", "url=y", "length=1024")


def test_an_average_of_one_task_is_that_task(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    record_cell(Store(Path("results/mine")), DENSE, "vt", [1.0, 0.0])
    (log,) = aggregates(exported(command, "every_eval_ever", "dataset=owner/ruler"))
    assert [result["evaluation_result_id"] for result in log["evaluation_results"]] == ["vt", "vt density"]
    assert "format=every_eval_ever does not read dataset=: it does the same without" in capsys.readouterr().err
    shutil.rmtree("out")
    (path,) = exported(command, "lm_eval")
    assert list(json.loads(path.read_text())["results"]) == ["vt"]
    shutil.rmtree("out")
    (path,) = exported(command, "eval_results")
    assert len(yaml.safe_load(path.read_text())) == 1


def test_names_of_files_hold_what_every_system_takes() -> None:
    names = {"owner/na:me": "owner_na_me", "..": "_", "a b?": "a_b", "Qwen2.5-0.5B": "Qwen2.5-0.5B"}
    assert {text: safe_name(text) for text in names} == names
