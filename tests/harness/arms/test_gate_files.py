"""Releases of gates: files that run from a folder, the hub, or converted, and those that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from harness.arms import gate_files
from harness.arms.build import build_arms
from harness.core.errors import UserError
from harness.models.loading import LoadedModel, ModelConfig, load_model
from harness.report.leaderboard import leaderboard_rows
from harness.study.provenance import file_hash, tensors_hash
from harness.study.store import Store
from methods.gates.attn_gate import AttnGate
from tests.harness.arms.gate_release import write
from tests.harness.settings import composed

Command = Callable[..., int]


PREFILL = {"mask_linear_k": (4, 48, 16)}
DECODE = {
    "attngate_linear_q": (2, 2, 16, 16),
    "attngate_linear_k": (2, 48, 16),
    "attngate_qnorm": (16,),
    "attngate_knorm": (16,),
}


@pytest.fixture(scope="module")
def toy_model(toy_folder: Path) -> LoadedModel:
    return load_model(ModelConfig(name="toy", path=str(toy_folder), dtype=torch.float32, device="cpu"))


SEER = ("method=seer", "method.selection=topk", "block_size=16", "samples=1", "length=512", "checks=false", "report=false")


def test_a_release_in_a_folder_runs(command: Command, toy: list[str], tmp_path: Path) -> None:
    write(tmp_path / "gates", PREFILL)
    assert command(*toy, *SEER, f"model.gates={tmp_path / 'gates'}") == 0
    cells = (tmp_path / "results" / "toy" / "records" / "cells.jsonl").read_text()
    (cell, *_) = (json.loads(line) for line in cells.splitlines() if '"method":"seer"' in line)
    state = gate_files.read(tmp_path / "gates" / "attn_gate_weights.pth", AttnGate)
    assert cell["identity"]["weights_hash"] == tensors_hash(state)
    assumed = "seer: gates/attn_gate_weights.pth: no config.json beside it says what its gates are, assumed "
    assert cell["notices"] == [f"{assumed}seerattn_gate_type=Qavg_Kmaxminavg"]
    rows = leaderboard_rows(Store(tmp_path / "results" / "toy"))
    reasons = {row.task: row.reason for row in rows if row.method == "seer"}
    assert reasons["niah_single_1"].startswith(assumed) and reasons["avg"].startswith(f"mean of 1 tasks; {assumed}")
    assert not any(assumed in row.reason for row in rows if row.method != "seer")


def test_a_release_on_the_hub_runs(command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "hub" / "owner" / "prefill", PREFILL)
    write(tmp_path / "hub" / "owner" / "decode", DECODE)
    asked = []

    def download(repo: str, file: str) -> str:
        asked.append((repo, file))
        return str(tmp_path / "hub" / repo / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    ids = ["model.released_gates.prefill=owner/prefill", "model.released_gates.decode=owner/decode"]
    none = ["model.gates=nowhere"]
    assert command(*toy, *SEER, *ids, *none, "decode=seer_r", "decode.block_size=16", "decode.budget=256") == 0
    files = ("config.json", "attn_gate_weights.pth")
    assert set(asked) == {(f"owner/{part}", file) for part in ("prefill", "decode") for file in files}


def test_no_release_stands_for_a_training_that_has_a_name(
    command: Command, toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "gates", PREFILL)
    assert command(*toy, *SEER, "method.gates=mass", f"model.gates={tmp_path / 'gates'}") != 0
    said = capsys.readouterr().err
    assert "gates-16-mass.safetensors is missing" in said and "block_size=16 method.gates=mass`" in said


def test_without_network_the_hub_says_so(command: Command, toy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*toy, *SEER, "model.gates=nowhere", "model.released_gates.prefill=nobody/no-gates") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "can't get attn_gate_weights.pth of nobody/no-gates from the hub" in line and "model.gates=FOLDER" in line


@pytest.mark.parametrize(
    ("shapes", "config", "message"),
    [
        (PREFILL, {"seerattn_gate_block_size": 64}, "for blocks of 64 tokens, not 16"),
        (PREFILL, {"seerattn_gate_type": "Qmax_Kmax"}, "seerattn_gate_type=Qmax_Kmax"),
        (DECODE, {}, "it has model.layers.0.self_attn.attn_gate.attngate_linear_q.weight, model.layers.0"),
        ({"mask_linear_k": (2, 48, 16)}, {}, "layers.0.gate.k has shape [2, 48, 16], not [4, 48, 16]"),
    ],
)
def test_a_release_that_does_not_fit(toy_model: LoadedModel, tmp_path: Path, shapes: Any, config: Any, message: str) -> None:
    write(tmp_path, shapes, **config)
    model = {"name": "toy", "path": str(toy_model.path), "gates": str(tmp_path)}
    settings = replace(composed("device=cpu", "method=seer", "block_size=16", "sparsity=0.5", "length=512"), model=model)
    with pytest.raises(UserError) as caught:
        build_arms(settings, toy_model)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04broken"])
def test_a_broken_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "attn_gate_weights.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"attn_gate_weights\.pth can't be read as a file of weights") as caught:
        gate_files.read(tmp_path / "attn_gate_weights.pth", AttnGate)
    assert "\n" not in str(caught.value) and "doesn't fit" not in str(caught.value)


class Evil:
    """What a pickle must not be allowed to do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("pickled_code_ran", "w"))


def test_nothing_but_tensors_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "attn_gate_weights.pth"
    torch.save({"model.layers.0.self_attn.attn_gate.mask_linear_k.weight": Evil()}, file)
    with pytest.raises(UserError, match="can't be read"):
        gate_files.read(file, AttnGate)
    assert not (tmp_path / "pickled_code_ran").exists()
    torch.save([torch.zeros(1)], file)
    with pytest.raises(UserError, match="holds no weights: a dict of tensors"):
        gate_files.read(file, AttnGate)


@pytest.mark.parametrize(
    ("shapes", "arguments", "file"),
    [
        (PREFILL, ["method=seer"], "gates-16"),
        (DECODE, ["decode=seer_r", "decode.block_size=16", "method=block_topk"], "decode-gates-16"),
    ],
)
def test_converted_there_and_back(
    command: Command,
    toy: list[str],
    toy_model: LoadedModel,
    tmp_path: Path,
    shapes: Any,
    arguments: list[str],
    file: str,
) -> None:
    state = write(tmp_path / "a", shapes, base_model="owner/model")
    job = [*toy, *arguments, "block_size=16", "job=convert_gates"]
    assert command(*job, f"job.source={tmp_path / 'a'}", "job.out=b") == 0
    converted = tmp_path / "b" / f"{file}.safetensors"
    weights = load_file(str(converted))
    assert len(weights) == len(state) and {w.dtype for w in weights.values()} == {torch.bfloat16}
    with safe_open(str(converted), framework="pt") as opened:
        recorded = {key: json.loads(value) for key, value in opened.metadata().items()}
    assert (recorded["block_size"], recorded["model"]) == (16, "owner/model")
    for _ in range(2):  # the second time as after a kill at the very end
        assert command(*job, "job.source=b", "job.out=c", "job.to=release") == 0
    (tmp_path / "c" / "attn_gate_weights.pth").unlink()  # killed between config.json and the weights
    assert command(*job, "job.source=b", "job.out=c", "job.to=release") == 0
    back = torch.load(tmp_path / "c" / "attn_gate_weights.pth", weights_only=True)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert (config["seerattn_gate_block_size"], config["seerattn_gate_hidden_size"]) == (16, 16)
    assert config.get("seerattn_use_qk_norm") is (True if shapes is DECODE else None)  # the original's default: without
    assert {path.stat().st_mode & 0o044 for path in (converted, *(tmp_path / "c").iterdir())} == {0o044}
    group = "decode" if shapes is DECODE else "method"
    settings = replace(composed("device=cpu", "block_size=16", "sparsity=0.5", "length=512", *arguments), seed=0)
    digests = set()
    for folder in ("b", "c"):
        model = {"name": "toy", "path": str(toy_model.path), "gates": folder}
        arm = build_arms(replace(settings, model=model), toy_model)[-1]
        now, former = (x.weights_hash if group == "method" else x.decode.weights_hash for x in (arm.identity, arm.former))  # type: ignore[union-attr]
        (weights,) = (path for path in (tmp_path / folder).iterdir() if path.suffix != ".json")
        assert former == file_hash(weights)
        digests.add(now)
    assert len(digests) == 1, "the same weights, in another file"


def test_what_can_not_be_converted(
    command: Command, toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a", PREFILL)
    (tmp_path / "broken.safetensors").write_bytes(b"\x10" * 100)
    job = [*toy, "method=seer", "block_size=16", "job=convert_gates", "job.out=b"]
    for arguments, message in (
        ([], "job.source has no value"),
        (["job.source=nowhere"], "nowhere is missing"),
        (["job.source=a", "job.to=onnx"], "job.to=onnx: must be one of harness, release"),
        (["job.source=a/attn_gate_weights.pth", "job.to=release"], "it must be a .safetensors file"),
        (["job.source=a", "method=block_topk"], "has no gates to train"),
        (["job.source=broken.safetensors", "job.to=release"], "broken.safetensors is no safetensors file"),
    ):
        assert command(*job, *arguments) == 2
        assert message in capsys.readouterr().err
    assert command(*job, "job.source=a") == 0
    before = (tmp_path / "b" / "gates-16.safetensors").read_bytes()
    assert command(*job, "job.source=a") == 0  # as after a kill at the very end
    write(tmp_path / "a", PREFILL, base_model="another")
    assert command(*job, "job.source=a") == 2
    assert (tmp_path / "b" / "gates-16.safetensors").read_bytes() == before
    assert "exists: add job.overwrite=true" in capsys.readouterr().err
    assert command(*job, "job.source=b/gates-16.safetensors", "job.to=release", "job.out=c", "block_size=64") == 2
    assert "has gates for blocks of 16 tokens, not 64" in capsys.readouterr().err
