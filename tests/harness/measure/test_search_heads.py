"""``job=search_heads`` from the command line, the file it leaves, and the methods that run with it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console

import methods
from harness.arms.build import build_arms
from harness.arms.head_files import read_head_file
from harness.core.errors import UserError
from harness.measure.context import RunContext
from harness.measure.head_search import search
from harness.measure.prompt_sets import spare_prompts
from harness.models.bridge import Bridge
from harness.models.loading import LoadedModel, ModelConfig, load_model, model_shape
from harness.study.store import Store

Command = Callable[..., int]
JOB = ("job=search_heads", "job.prompts=1", "length=512", "block_size=16")
FILES = {"minference": "minference-patterns.json", "duo_attention": "duo_attention-heads.json", "moa": "moa-rules.json"}


@pytest.mark.parametrize("name", ["duo_attention", "minference"])  # one that must have a file, and one that need not
def test_what_a_search_finds_is_used(name: str, command: Command, toy: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "searched"
    assert command(*toy, *JOB, f"method={name}", f"job.out={folder}") == 0
    searched = json.loads((folder / FILES[name]).read_text())
    assert searched["method"] == name
    origin = searched["made"]
    assert origin["model"] == "toy" and origin["length"] == 512 and origin["prompts"] == 1
    assert "job=search_heads" in origin["command"]
    assert all(origin[key] for key in ("commit", "date", "versions", "device", "model_hash", "tasks", "text"))
    timed = ("latency=true", "latency_repeats=1", "samples=1", "block_size=16", "length=512", "checks=false")
    run = [*toy, f"method={name}", "sparsity=0.7", f"model.gates={folder}", *timed]
    assert command(*run) == 0
    rows = pd.read_csv(tmp_path / "results" / "toy" / "leaderboard.csv")
    sparse = rows[rows["method"] == name]
    assert set(sparse["status"]) == {"ok"} and sparse["kept_mass"].between(0, 1).all()
    assert (sparse["density"] - 0.3).abs().max() < 0.05
    assert sparse["token_density"].between(0.1, 0.4).all() and (sparse["token_density"] != sparse["density"]).all()
    assert (rows[rows["method"] == "dense"]["token_density"] == 1).all()
    cells = [json.loads(line) for line in (tmp_path / "results" / "toy" / "records" / "cells.jsonl").read_text().splitlines()]
    hashes = {cell["identity"]["weights_hash"] for cell in cells if cell["identity"]["method"] == name}
    assert len(hashes) == 1 and None not in hashes


def test_the_first_search_is_not_replaced_unasked(
    command: Command, toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search_again = [*toy, *JOB, "method=duo_attention", f"job.out={tmp_path}"]
    before = '{"heads": []}'
    (tmp_path / FILES["duo_attention"]).write_text(before)
    assert command(*search_again, "seed=1") == 2
    assert "exists: add job.overwrite=true" in capsys.readouterr().err
    assert (tmp_path / FILES["duo_attention"]).read_text() == before
    assert command(*search_again, "seed=1", "job.overwrite=true") == 0
    assert (tmp_path / FILES["duo_attention"]).read_text() != before
    (tmp_path / FILES["duo_attention"]).unlink()
    capsys.readouterr()
    assert command(*search_again) == 0
    written = (tmp_path / FILES["duo_attention"]).read_text()
    assert command(*search_again) == 0  # as after a kill at the very end
    assert "is there, written by this command" in capsys.readouterr().out.replace("\n", " ")
    assert (tmp_path / FILES["duo_attention"]).read_text() == written
    assert command(*search_again, "seed=2") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["job=search_heads", "method=block_topk"],
            "block_topk searches no heads; choose one of: duo_attention, kascade, minference, moa, xattention",
        ),
        ([*JOB, "method=minference", "length=4096"], "has a context of 2048 tokens"),
        ([*JOB, "method=minference", "method.score=foo"], "error: method minference, score=foo: must be one of mass, output"),
        ([*JOB, "method=moa", "method.budget=0.2"], "error: sparsity=0.5 and budget=0.2: give one of them"),
        (
            [*JOB, "method=moa", "method.budget=0.01", "sparsity=null", "block_size=16"],
            "it has no rules of a budget of 0.01; choose one of",
        ),
        ([*JOB, "method=minference", "job.prompts=0"], "job.prompts=0: must be a whole number of at least 1"),
        (["method=duo_attention", "method.heads=none.tsv"], "none.tsv is missing; search them with `python -m harness job"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], message: str, command: Command, toy: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*toy, *arguments) == 2
    assert message in capsys.readouterr().err


def settings_of(folder: Path, name: str, **knobs: Any) -> Any:
    return SimpleNamespace(
        prefill_chunk=None,
        model={"name": "toy", "path": str(folder), "gates": str(folder)},
        method=name,
        method_knobs=knobs,
        sparsity=0.5,
        block_size=16,
        seed=0,
        length=512,
        kernel="auto",
        dense_kernel="auto",
        decode="dense",
        decode_knobs={},
        decode_kernel="auto",
        as_released=False,
    )


@pytest.fixture(scope="module")
def loaded(toy_folder: Path) -> LoadedModel:
    return load_model(ModelConfig(name="toy", path=str(toy_folder), dtype=torch.float32, device=torch.device("cpu")))


def test_a_released_table_is_read(loaded: LoadedModel, tmp_path: Path) -> None:
    table = tmp_path / "full_attention_heads.tsv"
    table.write_text("0.25\t0.75\n1.0\t0.0\n")
    method = build_arms(settings_of(tmp_path, "duo_attention", heads=str(table)), loaded)[-1].method
    assert method is not None and method.ranks == ((2, 1), (0, 3))  # type: ignore[attr-defined]
    table.write_text("0.25 much\n")
    with pytest.raises(UserError, match=r"full_attention_heads.tsv can't be read"):
        build_arms(settings_of(tmp_path, "duo_attention", heads=str(table)), loaded)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "no JSON"), ("[1]", "holds no JSON object"), ('{"heads": [[1, 2]]}', "does not fit toy: it is of 1 layers")],
)
def test_a_file_of_something_else_is_refused(text: str, message: str, loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / FILES["duo_attention"]).write_text(text)
    with pytest.raises(UserError, match=message):
        build_arms(settings_of(tmp_path, "duo_attention"), loaded)


def test_a_method_that_can_go_without_does(loaded: LoadedModel, tmp_path: Path) -> None:
    arm = build_arms(settings_of(tmp_path, "minference"), loaded)[-1]
    assert arm.identity.weights_hash is None and arm.identity.knobs["patterns"] == "fallback"
    assert arm.identity.kernel == "reference"
    with pytest.raises(UserError, match=r"mine.json is missing"):
        build_arms(settings_of(tmp_path, "minference", patterns=str(tmp_path / "mine.json")), loaded)


def test_an_arm_that_can_not_be_built_is_one_clear_line(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="score=loss: must be one of mass, output"):
        build_arms(settings_of(tmp_path, "minference", score="loss"), loaded)
    settings = settings_of(tmp_path, "minference")
    settings.kernel = "sdpa"
    with pytest.raises(
        UserError, match="kernel=sdpa takes no single columns; choose one of: auto, reference, triton"
    ) as caught:
        build_arms(settings, loaded)
    assert "\n" not in str(caught.value)


# -- the papers' claims, on the bundled model ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any]]:
    """A context of the bundled model and two prompts of 1280 tokens, one to search on and one to look at."""
    model = load_model(ModelConfig(name="bundled", path="bundled", dtype=torch.float32, device=torch.device("cpu")))
    settings: Any = SimpleNamespace(
        job="search_heads",
        options={},
        model={"name": "bundled", "path": "bundled"},
        length=1280,
        seed=0,
        question="seen",
        data={},
        samples=2,
        progress=False,
        debug=False,
        kernel="auto",
        dense_kernel="auto",
        decode_kernel="auto",
        latency_repeats=1,
        latency_seconds=1.0,
        batch_tokens=None,
        prefill_chunk=None,
        cell_minutes=None,
        retry_failed=False,
    )
    context = RunContext(settings, model, Store(tmp_path_factory.mktemp("study")), Console(quiet=True))
    return context, spare_prompts(context, ["niah_multikey_1", "vt"], 2)


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_files_that_ship_are_of_the_bundled_model(name: str, bundled: tuple[Any, list[Any]]) -> None:
    loaded = bundled[0].loaded
    assert loaded.path is not None
    content = read_head_file(loaded.path / FILES[name])
    methods.build(name).load_search(content, **model_shape(loaded))
    assert content["made"]["model_hash"] == loaded.revision_hash and "+dirty" not in content["made"]["commit"]


def test_heads_of_a_trained_model_call_for_different_patterns(bundled: tuple[Any, list[Any]]) -> None:
    context, prompts = bundled
    result = search(context, methods.build("minference"), prompts[:1])
    kinds = Counter(kind for layer in result["patterns"] for kind, _, _ in layer)
    assert len(kinds) >= 2 and max(kinds.values()) <= 18, kinds  # of 24 heads
    assert max(abs(density - 0.2) for density in result["densities"]) < 0.04  # at the same cost
    scores = torch.tensor(result["scores"])  # [layer, candidate, head]
    assert float((scores.amax(1) - scores.mean(1)).mean()) > 0.02  # and that matters


def test_heads_that_the_search_ranks_first_are_those_to_keep_dense(bundled: tuple[Any, list[Any]]) -> None:
    context, prompts = bundled
    result = search(context, methods.build("duo_attention"), prompts[:1])
    ids = torch.tensor([list(prompts[1])])

    def hidden(needs: list[list[float]] | None) -> torch.Tensor:
        method = None
        if needs is not None:
            method = methods.build("duo_attention", streaming=0.5)
            method.load_search({"heads": needs}, **model_shape(context.loaded))
        with torch.inference_mode(), Bridge(context.loaded, method, record=False):
            return context.loaded.model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)

    dense, best, worst = hidden(None), hidden(result["heads"]), hidden([[-n for n in layer] for layer in result["heads"]])
    lost = [float((dense.exp() * (dense - sparse)).sum(-1).mean()) for sparse in (best, worst)]
    assert lost[0] < 0.5 * lost[1], lost
