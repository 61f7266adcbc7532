"""job=latency on a model by shape: what its rows say, what is drawn for methods, and which jobs refuse it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hydra import compose, initialize_config_dir

from harness.arms.build import build_arms
from harness.arms.head_files import load_head_file
from harness.core.errors import UserError
from harness.core.hydra_text import unknown_setting
from harness.core.settings import Settings, read_settings
from harness.jobs.table import JOBS, Does, check_model_fits, find_job, unread
from harness.measure.before_loading import check_before_loading
from harness.measure.cells import with_distinct_name
from harness.measure.sweep import SweepCache, load_quietly, model_config
from harness.models.loading import LoadedModel
from harness.models.observe import dense_prefill, layer_inputs
from harness.models.shape import ModelShape
from harness.report.csv_file import read_csv
from harness.study.command_settings import arm_settings
from harness.study.store import Store
from methods.moa import MoA
from methods.parts.base import Method
from methods.seer import Seer
from methods.xattention import XAttention
from tests.harness.settings import CONF, composed, merged, tiny_shape
from tests.harness.tiny import shared

QUICK = ["device=cpu", "latency_repeats=1", "latency_seconds=0.1", "block_size=16", "study=shape"]


@pytest.fixture(scope="module")
def by_shape() -> Settings:
    """The settings of a latency job on a toy by shape, with queries and keys as large as a hidden size of 4096 gives them."""
    wide = "model.shape.initializer_range=0.16"
    return composed(*tiny_shape("job=latency", "device=cpu", "length=512", "method=seer", "block_size=16", wide))


@pytest.fixture(scope="module")
def loaded(by_shape: Settings) -> LoadedModel:
    """The toy."""
    return load_quietly(model_config(by_shape))


def test_rows_say_that_weights_and_gates_are_random(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny_shape("job=latency", "length=256", "method=seer,duo_attention", "sparsity=0.5", "task=vt", *QUICK)
    assert command("-m", *arguments) == 0
    said = capsys.readouterr()
    assert said.out.count("loading shape/llama3_8b (7 sizes changed") == 1, "a sweep over methods loads the model once"
    assert "job=latency of a model by shape does not read task=" in said.err
    rows = {row["method"]: row for row in read_csv(tmp_path / "results" / "shape" / "leaderboard.csv")}
    assert {row["model"].partition(" ")[0] for row in rows.values()} == {"shape/llama3_8b"}
    assert rows["dense"]["reason"] == "random weights (seed 0)"
    assert rows["seer"]["reason"] == "random weights (seed 0); seer: random gates (seed 0)"
    assert rows["duo_attention"]["reason"] == "random weights (seed 0); duo_attention: random heads (seed 0)"
    assert said.out.count("\nseer: random gates (seed 0)\n") == 2, "in its run, and below the table"
    for row in rows.values():
        assert float(row["ttft_ms"]) > 0 and row["status"] == "ok"
        assert (row["accuracy"], row["kept_mass"], row["task"]) == ("", "", "")
    lines = (tmp_path / "results" / "shape" / "records" / "latency.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert {record["tokens"] for record in records} == {256}
    assert all(record["identity"]["model_hash"].startswith("random-") for record in records)
    assert records[1]["identity"]["weights_hash"].startswith("random-")
    assert records[0]["identity"]["shape"]["num_hidden_layers"] == 2
    assert not list((tmp_path / "results" / "shape").glob("*.png")), "times alone have no picture of accuracy"


def test_settings_of_a_row_name_the_same_model(by_shape: Settings, loaded: LoadedModel) -> None:
    identity = json.loads(json.dumps(build_arms(by_shape, loaded)[-1].identity.as_dict()))
    again = arm_settings(identity)
    assert "model=shape/custom" in again
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        settings = read_settings(compose("config", again))
    assert model_config(settings) == model_config(by_shape)
    plain = merged("model=shape/llama3_8b")
    assert arm_settings(identity | {"model": plain.model["name"], "shape": plain.model["shape"]})[0] == "model=shape/llama3_8b"


@pytest.mark.parametrize("name", sorted(JOBS))
def test_only_times_are_measured(name: str, by_shape: Settings) -> None:
    job = find_job(name)
    if job.times_alone or job.does is Does.READS or "model" not in job.reads:
        check_model_fits(job, by_shape)
        return
    with pytest.raises(UserError, match=rf"^job={name} needs what a model has learned, and shape/llama3_8b .*: job=latency$"):
        check_model_fits(job, by_shape)
    check_model_fits(job, merged("model=bundled"))


def test_a_command_that_asks_for_more_ends_in_a_line(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, line in (
        (["job=evaluate"], "error: job=evaluate needs what a model has learned, and shape/llama3_8b has random weights"),
        (["model=shape/llama_8b"], "(did you mean shape/llama3_8b?); choose one of: shape/custom, shape/llama3_1b"),
    ):
        assert command("model=shape/llama3_8b", *arguments) == 2
        said = capsys.readouterr()
        assert line in said.err and said.err.count("\n") == 1


def test_a_length_past_the_positions_is_refused_before_anything_is_drawn(by_shape: Settings) -> None:
    with pytest.raises(UserError, match=r"^length=200000: shape/llama3_8b .* has a context of 131072 tokens"):
        check_before_loading(replace(by_shape, length=200_000), SweepCache(), [])
    check_before_loading(by_shape, SweepCache(), [])


@pytest.mark.parametrize(
    ("changes", "sizes", "line"),
    [
        ({"length": 1}, {}, "^length=1: one token has no other to attend to; choose length=2 or more$"),
        ({"options": {"dense_kernels": ["fa3", "sdpa"]}}, {}, "^job.dense_kernels: dense kernel fa3 can't run here"),
        ({"method": "dense"}, {"model_type": "mistral", "sliding_window": 64}, "^length=512: no layer .* more than 64 tokens"),
    ],
)
def test_what_cannot_be_timed_is_said_before_anything_is_drawn(
    changes: dict[str, Any], sizes: dict[str, Any], line: str, by_shape: Settings
) -> None:
    """It was a failure of every arm, once the weights were there."""
    common = {name: v for name, v in by_shape.model["shape"].items() if name not in ("attention_bias", "mlp_bias")}
    settings = replace(by_shape, model=by_shape.model | {"shape": common | sizes}, **changes)
    with pytest.raises(UserError, match=line):
        check_before_loading(settings, SweepCache(), [])


def test_settings_of_tasks_are_not_read(by_shape: Settings) -> None:
    given = ["task", "data.dir", "samples", "length", "model.shape.vocab_size"]
    assert unread(find_job("latency"), given, by_shape=True) == "task=, data.dir=, samples="
    assert unread(find_job("latency"), given) == ""


def test_what_a_file_leaves_out_is_added_with_a_plus() -> None:
    assert "what a shape's file leaves out is added with +model.shape.pad_token_id=…" in unknown_setting(
        "model.shape.pad_token_id"
    )


def test_drawn_gates_choose_unevenly_in_every_row(by_shape: Settings, loaded: LoadedModel) -> None:
    """With the weights that training begins with, all blocks of a row are alike: a threshold keeps the first rows whole, and
    nothing of the last ones."""
    first, second = (build_arms(by_shape, loaded)[-1].method for _ in range(2))
    assert isinstance(first, Seer) and isinstance(second, Seer)
    assert torch.equal(first.gates[1].k, second.gates[1].k) and not torch.equal(first.gates[0].k, first.gates[1].k)
    shares = []

    def observe(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> None:
        last_row = first.scores(layer_inputs(loaded, first, layer, q, k, scale))[0, :, -1]
        shares.append(last_row.amax(-1) / last_row.median(-1).values)

    ids = torch.randint(300, (512,), generator=torch.Generator().manual_seed(0)).tolist()
    dense_prefill(loaded, [ids], observe)
    assert torch.stack(shares).min() > 1.5


def test_heads_are_drawn_where_a_method_needs_a_search_of_them(loaded: LoadedModel, by_shape: Settings) -> None:
    needs: Method = MoA(sparsity=0.5)
    file = load_head_file(needs, by_shape.model, loaded)
    assert file is not None and file.content.startswith("random-") and file.notices == ("moa: random heads (seed 0)",)
    assert load_head_file(XAttention(sparsity=0.5), by_shape.model, loaded) is None
    with pytest.raises(UserError, match=r"xattention needs searched heads, and shape/llama3_8b .* has random weights"):
        load_head_file(XAttention(sparsity=0.5, thresholds="searched"), by_shape.model, loaded)
    with pytest.raises(UserError, match=r"needs searched heads, and /none.json is missing: name a file .* or leave it out$"):
        load_head_file(MoA(sparsity=0.5, rules="/none.json"), by_shape.model, loaded)


def test_thresholds_that_are_to_be_searched_are_missed_at_once(tmp_path: Path) -> None:
    """Also on a model of its own weights: it was said after the model was loaded, and by no file's name."""
    with pytest.raises(UserError, match=r"method xattention needs to know llama's heads: .*json is missing"):
        load_head_file(XAttention(thresholds="searched"), {"path": "x", "gates": str(tmp_path)}, shared("llama"))


def test_a_training_of_gates_by_name_is_refused(by_shape: Settings, loaded: LoadedModel) -> None:
    named = merged(*tiny_shape("method=seer", "method.gates=mass", "device=cpu"))
    with pytest.raises(UserError, match=r"^method.gates=mass: shape/llama3_8b .* its gates are drawn: leave it out$"):
        build_arms(named, loaded)


def test_two_shapes_of_one_name_are_told_apart_in_a_study(loaded: LoadedModel, by_shape: Settings, tmp_path: Path) -> None:
    assert loaded.shape is not None
    other = replace(loaded, shape=ModelShape.of(loaded.shape.values | {"num_hidden_layers": 3}, 0))
    seeded = replace(loaded, shape=replace(loaded.shape, seed=1))
    records = [{"identity": {"model": loaded.name, "shape": other.shape.values}}] if other.shape is not None else []
    store = cast(Store, SimpleNamespace(latency=SimpleNamespace(read=lambda: records)))
    assert with_distinct_name(other, store).name == loaded.name
    named = with_distinct_name(loaded, store).name
    assert named.startswith(f"{loaded.name}@") and with_distinct_name(seeded, store).name == named


def test_gates_of_decoding_are_drawn_too(loaded: LoadedModel) -> None:
    settings = merged(*tiny_shape("decode=seer_r", "decode.block_size=16", "method=dense", "device=cpu", "length=512"))
    arm = build_arms(settings, loaded)[-1]
    assert arm.identity.decode is not None and str(arm.identity.decode.weights_hash).startswith("random-")
    assert arm.notices == ("random weights (seed 0)", "seer_r: random gates (seed 0)")
