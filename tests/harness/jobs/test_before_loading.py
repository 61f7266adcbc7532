"""What needs no weights is said before they are read; what a job does not read is said too; a folder's place is in no row."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.core.conf_files import MAIN, groups, setting_names
from harness.core.model_name import name_of_path
from harness.jobs.arguments import given_names
from harness.jobs.table import ALWAYS_READ, JOBS, find_job, unread
from harness.measure import sweep
from harness.measure.cells import with_distinct_name
from harness.models import loading
from harness.study.schema import CellRecord
from harness.study.store import Store
from tests.harness import tiny

Command = Callable[..., int]
RESULTS = Path(__file__).resolve().parents[3] / "results"
DATED = "{% for m in messages %}[{{ strftime_now('%d %b %Y %f') }}] {{ m['content'] }}{% endfor %}[model]"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["job=latency", "model.chat_template=true"], "this model's tokenizer has no chat template"),
        (["model.chat_template=true"], "this model's tokenizer has no chat template"),
        (["job=kept_mass", "length=100"], "length=100 is too short for niah_single_1"),
        (["job=latency", "length=4096"], "length=4096: toy has a context of 2048 tokens"),
        (["job=latency", "method=seer"], "no weights of seer for toy at block size 64"),
        (["job=latency", "kernel=triton", "block_size=80"], "kernel=triton"),
        (["job=perplexity", "data.text_dir=nowhere"], "data.text_dir=nowhere: no such folder"),
        (["job=maps", "method=seer"], "no weights of seer for toy"),
        (["job=search_heads", "method=minference", "length=4096"], "toy has a context of 2048 tokens"),
        (["job=distill", "method=seer", "data.text_dir=nowhere", "job.lengths=[256]"], "data.text_dir=nowhere: no such folder"),
        (["job=distill", "method=seer", "job.rows=books", "job.lengths=[256]"], "job.rows=books needs text"),
        (["job=gate_recall", "method=seer", "job.lengths=[256]"], "no gates to measure"),
    ],
)
def test_what_needs_no_weights_is_said_before_they_are_read(
    command: Command,
    toy: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    def load(config: loading.ModelConfig) -> None:
        raise AssertionError(f"{config.path}: its weights are read")

    monkeypatch.setattr(sweep, "load_quietly", load)
    assert command(*toy, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line


def test_a_length_past_the_windows_of_all_layers_leaves_a_method_nothing_to_choose(
    command: Command, toy: list[str], brief_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(brief_folder, tmp_path / "local")
    config = json.loads((folder / "config.json").read_text())
    window = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 256}
    (folder / "config.json").write_text(json.dumps(config | window))
    assert command(*toy, f"model.path={folder}", "model.name=local", "length=300") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "error: length=300: no layer of local looks back more than 256 tokens, and no method chooses past a window; "
        "choose length=256 or less"
    )


@pytest.mark.usefixtures("blank_pictures")
def test_a_folder_is_called_by_its_name_and_a_dated_template_by_its_date(
    command: Command, toy: list[str], brief_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two folders of one name are two models, and no row says where they lie."""
    arguments = [a for a in toy if not a.startswith("model.")]
    for place, weights in (("a", brief_folder), ("b", brief_folder)):
        folder = tmp_path / place / "same"
        shutil.copytree(weights, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5 if place == "a" else 1e-4}))
        (folder / "chat_template.jinja").write_text(DATED)
        assert command(*arguments, f"model.path={folder}", "samples=1", "checks=false", "data.text_dir=x") == 0
    err = capsys.readouterr().err
    assert "job=evaluate does not read data.text_dir=: it does the same without" in err
    cells = [json.loads(line) for line in (tmp_path / "results/toy/records/cells.jsonl").read_text().splitlines()]
    assert {cell["identity"]["data"]["date"] for cell in cells} == {"2024-07-26"}
    with open(tmp_path / "results/toy/leaderboard.csv", newline="") as file:
        names = {row["model"] for row in csv.DictReader(file)}
    first, second = sorted(names)
    hashes = {cell["identity"]["model"]: cell["identity"]["model_hash"] for cell in cells}
    assert (first, second) == ("same", f"same@{hashes[second][:8]}") and hashes[first] != hashes[second]


def test_a_study_that_calls_a_model_by_its_path_goes_on_under_it(tmp_path: Path) -> None:
    """Earlier versions wrote the path into the rows, and the name is a part of their identity."""
    weights = replace(tiny.shared("qwen3"), name="llama", source="/here/llama", revision_hash="of these weights")
    recorded = next(iter(Store(RESULTS / "bundled_cpu").cells.read()))
    identity = recorded["identity"] | {"model": "/there/llama", "model_hash": "of these weights"}
    store = Store(tmp_path)
    store.cells.append(CellRecord(**recorded | {"identity": identity}))
    assert with_distinct_name(weights, store).name == "/there/llama"
    assert with_distinct_name(replace(weights, revision_hash="of others"), store).name == "llama"
    assert with_distinct_name(replace(weights, name="other"), store).name == "other"
    store.cells.append(CellRecord(**recorded | {"cell": "x", "identity": identity | {"model": "llama"}}))
    assert with_distinct_name(weights, store).name == "llama"


def test_names_of_paths(tmp_path: Path) -> None:
    assert name_of_path(f"{tmp_path}/x/llama/") == "llama" and name_of_path("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert name_of_path(f"{tmp_path}/hub/models--Qwen--Qwen3-0.6B/snapshots/0a1b") == "Qwen/Qwen3-0.6B"
    assert name_of_path("bundled") == "bundled"


def test_every_job_says_what_it_reads() -> None:
    settings = {*setting_names("", MAIN), *groups()}
    for job in JOBS.values():
        assert set(job.reads) <= settings, job.name
    assert set(ALWAYS_READ) <= settings
    given = given_names(["-m", "method=seer", "method.last=2", "+data.text_dir=x", "~decode", "hydra.x=1", "checks=false"])
    assert given == ("method", "method.last", "data.text_dir", "checks")
    assert unread(find_job("evaluate"), given) == "data.text_dir="
    assert unread(find_job("latency"), given) == "data.text_dir=, checks="
    assert unread(find_job("report"), ["question", "model.path", "study"]) == "question=, model="
    assert unread(find_job("choose"), ["question", "prefill.chunk", "study"]) == "", "it chooses among records"
    assert unread(find_job("prune"), ["question", "prefill.chunk", "task"]) == ""
