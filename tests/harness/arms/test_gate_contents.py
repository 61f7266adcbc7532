"""Files of gates that are not what they say: values, types, block sizes and poolings, and what has to be assumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from harness.arms import gate_files
from harness.arms.build import build_arms
from harness.arms.warnings import arm_warnings
from harness.core.errors import UserError
from harness.study.provenance import file_hash, tensors_hash
from harness.training.gates.weights import safetensors_bytes
from methods.gates.attn_gate import AttnGate
from methods.gates.decode_gate import DecodeGate
from tests.harness.settings import composed
from tests.harness.tiny import shared

Command = Callable[..., int]
RELEASED = "model.layers.{}.self_attn.attn_gate.{}.weight"
SAYS_ALL = {"seerattn_gate_type": "Qavg_Kmaxminavg", "seerattn_gate_block_size": 16}
OWN = {"block_size": "16", "steps": "10", "loss": "0.5", "model": '"tiny"'}
"""Metadata as a training writes them."""
NAN, INFINITY = float("nan"), float("inf")


def own(kind: str = "prefill") -> dict[str, Tensor]:
    """Weights for the tiny llama (2 layers, 4 query heads, 2 KV heads of 16), by the names that they have here."""
    shapes = (
        {"k": (4, 48, 16)} if kind == "prefill" else {"q": (2, 2, 16, 16), "k": (2, 48, 16), "q_norm": (16,), "k_norm": (16,)}
    )
    draw = torch.Generator().manual_seed(3)
    return {f"layers.{n}.gate.{name}": torch.randn(shape, generator=draw) for n in (0, 1) for name, shape in shapes.items()}


def released(state: dict[str, Tensor], folder: Path, config: dict[str, object] | None) -> Path:
    """A release of prefill gates in a folder, with these settings or none."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "attn_gate_weights.pth"
    torch.save({RELEASED.format(n, "mask_linear_k"): state[f"layers.{n}.gate.k"] for n in (0, 1)}, path)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return path


def arms_of(folder: Path, *arguments: str, block_size: int = 16) -> Any:
    """The last arm on the tiny llama with the gates of a folder."""
    settings = composed(
        "device=cpu", "sparsity=0.5", "length=128", f"block_size={block_size}", *(arguments or ("method=seer",))
    )
    model = {"name": "tiny", "path": "tiny", "gates": str(folder)}
    return build_arms(replace(settings, model=model), shared("llama"))[-1]


DECODE = ("method=dense", "decode=seer_r", "decode.block_size=16")
KEY = "layers.1.gate.k"


@pytest.mark.parametrize("kind", ["prefill", "decode"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: torch.full_like(w, NAN), "holds NaN or infinite values"),
        (lambda w: w.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(INFINITY)), "holds NaN or infinite values"),
        (lambda w: w.double() * 1e300, "holds NaN or infinite values"),
        (lambda w: w.long(), "is of type int64: weights of gates must be one of float32"),
        (lambda w: w > 0, "is of type bool"),
        (lambda w: w.to(torch.float8_e4m3fn), "is of type float8_e4m3fn"),
        (lambda w: w[:, :32].clone(), r"it pools keys in 2 ways, gates here in 3 \(max, min, mean\)"),
        (lambda w: w[:, :16].clone(), "it pools keys in 1 way, "),
        (lambda w: w[:1].clone(), "made for another model"),
    ],
)
def test_weights_that_no_gate_has(tmp_path: Path, kind: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    state = own(kind)
    state[KEY] = change(state[KEY])
    name = "gates-16.safetensors" if kind == "prefill" else "decode-gates-16.safetensors"
    save_file(state, tmp_path / name, metadata=OWN)
    with pytest.raises(UserError, match=message) as caught:
        arms_of(tmp_path, *(() if kind == "prefill" else DECODE))
    line = str(caught.value)
    assert name in line and KEY in line and "\n" not in line


@pytest.mark.parametrize("value", [NAN, -INFINITY])
def test_a_release_that_is_not_finite(tmp_path: Path, value: float) -> None:
    state = own()
    state[KEY][0, 0, 0] = value
    path = released(state, tmp_path, SAYS_ALL)
    with pytest.raises(UserError, match=rf"{RELEASED.format(1, 'mask_linear_k')} holds NaN or infinite values"):
        gate_files.read(path, AttnGate)


def test_names_and_layers_must_be_the_models(tmp_path: Path) -> None:
    for change, message in (
        (lambda s: s.pop(KEY), "the gate weights lack layers.1.gate.k"),
        (lambda s: s.update({"layers.2.gate.k": s[KEY].clone()}), "have layers.2.gate.k that it has no place for"),
        (lambda s: s.clear(), "the gate weights lack layers.0.gate.k"),
    ):
        state = own()
        change(state)
        (tmp_path / "gates-16.safetensors").write_bytes(save(state, metadata=OWN))
        with pytest.raises(UserError, match=message):
            arms_of(tmp_path)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "gates-16.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"gates-16\.safetensors is no safetensors file"):
        arms_of(tmp_path)


def test_a_file_of_another_block_size(tmp_path: Path) -> None:
    save_file(own(), tmp_path / "gates-32.safetensors", metadata=OWN)
    with pytest.raises(UserError, match="its gates are for blocks of 16 tokens, not 32, whatever it is called"):
        arms_of(tmp_path, block_size=32)


# -- pooling ---------------------------------------------------------------------------------------------------------


def test_what_nobody_says_is_assumed_aloud(tmp_path: Path) -> None:
    released(own(), tmp_path / "gates", {"seerattn_gate_block_size": 16})
    arm = arms_of(tmp_path / "gates")
    (line,) = arm.notices
    assert "gates/attn_gate_weights.pth" in line and "assumed seerattn_gate_type=Qavg_Kmaxminavg" in line
    assert str(tmp_path) not in line, "records are published"
    assert line in arm_warnings(arm, {"name": "tiny", "path": "tiny", "gates": "x"}, shared("llama"))


@pytest.mark.parametrize(
    ("folder", "config"), [("gates", SAYS_ALL), ("my-Qmean_Kmaxminavg-gates", {"seerattn_gate_block_size": 16})]
)
def test_what_is_said_is_not_assumed(tmp_path: Path, folder: str, config: dict[str, object]) -> None:
    released(own(), tmp_path / folder, config)
    assert arms_of(tmp_path / folder).notices == ()


def test_trained_here_is_not_assumed_and_unknown_files_are(tmp_path: Path) -> None:
    path = tmp_path / "gates-16.safetensors"
    for metadata, count in ((OWN, 0), ({}, 1), ({"block_size": "16", "release": "{}"}, 1)):
        save_file(own(), path, metadata=metadata)
        assert len(gate_files.assumptions(path, AttnGate)) == count
    save_file(own("decode"), path)
    (line,) = gate_files.assumptions(path, DecodeGate)
    assert "assumed seerattn_use_rope=True" in line and "pooling" not in line, "the weights tell the pooling"


@pytest.mark.parametrize("folder", ["Qmax_Kmaxminavg", "SeerAttention-Qmin_Kmaxminavg-64", "qavg_kmaxmin"])
def test_a_name_of_another_pooling_is_refused(tmp_path: Path, folder: str) -> None:
    released(own(), tmp_path / folder, {"seerattn_gate_block_size": 16})
    with pytest.raises(UserError, match=r"its name says that it pools as .* gates here as Qavg_Kmaxminavg"):
        arms_of(tmp_path / folder)


def test_converting_says_what_is_assumed_and_keeps_it_unsaid(
    command: Command, toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    released(own(), tmp_path / "a", {"seerattn_gate_block_size": 16})
    job = [*toy, "method=seer", "block_size=16", "job=convert_gates"]
    assert command(*job, "job.source=a", "job.out=b") == 0
    assert "a/attn_gate_weights.pth: no config.json" in capsys.readouterr().err
    assert command(*job, "job.source=b", "job.out=c", "job.to=release") == 0
    assert "b/gates-16.safetensors: its metadata" in capsys.readouterr().err
    assert "seerattn_gate_type" not in json.loads((tmp_path / "c" / "config.json").read_text())
    digests = {tensors_hash(gate_files.read(next((tmp_path / n).glob("*g*ate*s.*")), AttnGate)) for n in ("a", "c")}
    assert digests == {tensors_hash(load_file(tmp_path / "b" / "gates-16.safetensors"))}


# -- identity --------------------------------------------------------------------------------------------------------


def test_saves_of_the_same_gates_are_one(tmp_path: Path) -> None:
    metadata = OWN | {f"key{n}": str(n) for n in range(6)}
    files, identities = set(), set()
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file(own(), folder / "gates-16.safetensors", metadata=metadata | {"date": str(number)})
        files.add(file_hash(folder / "gates-16.safetensors"))
        identities.add(arms_of(folder).identity.id)
    assert len(files) > 1 and len(identities) == 1
    assert len({safetensors_bytes(own(), metadata) for _ in range(5)}) == 1, "what is written here is the same file every time"
    (tmp_path / "ours.safetensors").write_bytes(safetensors_bytes(own(), metadata | {"name": "ä"}))
    assert all(torch.equal(weight, own()[name]) for name, weight in load_file(tmp_path / "ours.safetensors").items())


def test_the_same_gates_are_measured_once(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved again they resume a study, and a study of before, whose rows name the file by its bytes, goes on with that file."""
    folder, records = tmp_path / "gates", tmp_path / "results" / "toy" / "records"
    folder.mkdir()
    path = folder / "gates-16.safetensors"
    run = [
        *toy,
        "method=seer",
        "method.selection=topk",
        "block_size=16",
        "length=512",
        "samples=1",
        "checks=false",
        "report=false",
        f"model.gates={folder}",
    ]

    def arms() -> set[str]:
        assert command(*run) == 0
        cells = [json.loads(line) for line in (records / "cells.jsonl").read_text().splitlines()]
        return {cell["arm"] for cell in cells if cell["identity"]["method"] == "seer"}

    save_file(own(), path, metadata=OWN)
    with monkeypatch.context() as before:
        before.setattr("harness.arms.weights.tensors_hash", lambda _: file_hash(path))
        former = arms()
    samples = (records / "samples.jsonl").read_bytes()
    assert arms() == former and (records / "samples.jsonl").read_bytes() == samples
    save_file(own(), path, metadata=OWN | {"date": "later"})  # the old rows don't say that these are their gates
    both = arms()
    assert len(both) == 2
    save_file(own(), path, metadata=OWN | {"date": "later still"})
    assert arms() == both


def test_the_hash_is_of_names_types_shapes_and_bytes() -> None:
    state = {"b": torch.arange(4.0), "a": torch.tensor(1.0), "empty": torch.empty(0, 3)}
    first = tensors_hash(state)
    assert tensors_hash(dict(reversed(state.items()))) == first
    for other in (
        {"c": state["b"]},
        {"b": state["b"].reshape(2, 2)},
        {"b": state["b"].to(torch.float16)},
        {"b": -state["b"]},
    ):
        assert tensors_hash({"a": state["a"], "empty": state["empty"], **other}) != first
