"""A training that is killed and goes on ends as one that was not, bit by bit; its steps are recorded once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.core.errors import UserError
from harness.models.loading import LoadedModel, wrap_model
from harness.training.gates.checkpoint import Checkpoint, Step
from harness.training.gates.processes import Processes
from harness.training.gates.recipe import Recipe
from harness.training.gates.training_start import Start, enter, find_start
from methods.gates.attn_gate import AttnGate
from methods.gates.decode_gate import DecodeGate
from methods.gates.gate import Gate
from tests.harness.training.distilling import distill_one
from tests.harness.training.test_distill import BLOCK, sharp_llama, topics

Command = Callable[..., int]
RECIPE = Recipe(steps=6, block_size=BLOCK, warmup=2, lr=1e-2, clip=0.05, weight_decay=0.1, min_lr=1e-3)


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return wrap_model(sharp_llama(), None, name="tiny", revision="abc")


def dies_at(step: int) -> Callable[[Step], None]:
    def on_step(done: Step) -> None:
        if done.step == step:
            raise Killed

    return on_step


@pytest.mark.parametrize("kind", [AttnGate, DecodeGate])
def test_a_killed_training_ends_as_a_whole_one(loaded: LoadedModel, tmp_path: Path, kind: type[Gate]) -> None:
    uninterrupted = distill_one(loaded, topics(), RECIPE, out=tmp_path / "whole", kind=kind)
    checkpoint = Checkpoint(tmp_path / "state.checkpoint", 2, {"lr": 1e-2})
    for last in (3, 5):  # killed twice; the steps since the last checkpoint are made again
        with pytest.raises(Killed):
            distill_one(
                loaded, topics(), RECIPE, out=tmp_path / "parts", kind=kind, checkpoint=checkpoint, on_step=dies_at(last)
            )
        state = checkpoint.read()
        assert state is not None and len(state["steps"]) == last - 1
    steps: list[int] = []
    parts = distill_one(
        loaded,
        topics(),
        RECIPE,
        out=tmp_path / "parts",
        kind=kind,
        checkpoint=checkpoint,
        on_step=lambda step: steps.append(step.step),
    )
    assert steps == [4, 5]
    one, two = load_file(str(uninterrupted.path)), load_file(str(parts.path))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert [replace(s, seconds=0) for s in parts.steps] == [replace(s, seconds=0) for s in uninterrupted.steps]
    state = checkpoint.read()
    assert state is not None and len(state["steps"]) == 6  # the caller removes it


def test_a_checkpoint_of_something_else_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state.checkpoint", 1, {"lr": 1e-2, "pool": "max"})
    with pytest.raises(Killed):
        distill_one(loaded, topics(), RECIPE, out=tmp_path, checkpoint=checkpoint, on_step=dies_at(1))
    other = replace(checkpoint, about={"lr": 1e-2, "pool": "mass"})
    with pytest.raises(UserError, match="is of a training with pool=max, not mass"):
        distill_one(loaded, topics(), RECIPE, out=tmp_path, checkpoint=other)
    content = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is no checkpoint of gates"):
        checkpoint.read()
    for other_file in ([1], {"about": {}}, torch.zeros(3)):
        torch.save(other_file, checkpoint.path)
        with pytest.raises(UserError, match="is no checkpoint of gates"):
            checkpoint.read()


@pytest.mark.usefixtures("blank_pictures")
def test_the_command_goes_on(command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import harness.training.gates.training_text as job

    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text(" ".join(f"The magic number for apple is: {n * 7919}." for n in range(4000)))
    arguments = [
        *toy,
        "job=distill",
        "method=seer",
        "block_size=32",
        "job.steps=5",
        "job.lengths=[128,192]",
        "job.tokens=384",
        "job.recall_sequences=1",
        f"data.text_dir={tmp_path / 'books'}",
        "job.rows=documents",
        "job.checkpoint_every=2",
    ]
    assert command(*arguments, f"job.out={tmp_path / 'whole'}", "study=whole") == 0
    real = job.batches

    def torn(*args: object) -> Iterator[Tensor]:
        for number, batch in enumerate(real(*args)):  # type: ignore[arg-type]
            if number == 3:
                raise KeyboardInterrupt
            yield batch

    interrupted = [*arguments, f"job.out={tmp_path / 'parts'}", "study=parts"]
    with monkeypatch.context() as patch:
        patch.setattr(job, "batches", torn)
        with pytest.raises(BaseException):  # noqa: B017  # as the command ends on ^C
            assert command(*interrupted) == 0
    assert (tmp_path / "parts" / "gates-32.checkpoint").is_file()
    assert command(*interrupted, "job.lr=1e-2") == 2  # of other settings
    assert command(*interrupted) == 0
    one, two = (load_file(str(tmp_path / name / "gates-32.safetensors")) for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["gates-32.safetensors"]
    lines = (tmp_path / "results" / "parts" / "records" / "gate_steps.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == [0, 1, 2, 3, 4]
    assert len({record["training"] for record in records}) == 1 and len({record["run"] for record in records}) == 2
    assert records[0]["about"]["rows"] == "documents" and records[0]["about"]["lengths"] == [128, 192]
    table = pd.read_csv(tmp_path / "results" / "parts" / "gate_steps_32.csv")
    assert table["loss"].tolist() == pytest.approx([record["loss"] for record in records], rel=1e-12)
    assert table["tokens"].tolist() == [384, 768, 1152, 1536, 1920]


KILLED_AT = {
    "before the first checkpoint": ("harness.training.gates.training", "gate_recall"),
    "after the gates": ("harness.training.gates.recall_tables", "write"),
}


@pytest.mark.usefixtures("blank_pictures")
def test_the_same_command_ends_it_wherever_it_was_killed(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text(" ".join(f"The magic number for apple is: {n * 7919}." for n in range(400)))
    settings = ["job=distill", "method=seer", "block_size=32", "job.steps=2", "job.lengths=[128]", "job.tokens=128"]
    text = [f"data.text_dir={tmp_path / 'books'}", "job.rows=documents", "job.recall_sequences=1", "job.checkpoint_every=0"]
    arguments = [*toy, *settings, *text, f"job.out={tmp_path / 'gates'}"]
    gates, tables = tmp_path / "gates" / "gates-32.safetensors", tmp_path / "results" / "toy"
    assert command(*arguments) == 0
    whole, names = load_file(str(gates)), sorted(path.name for path in tables.iterdir())
    recall = (tables / "gate_recall_heads_32.csv").read_text()

    def trainings() -> list[str]:
        lines = (tables / "records" / "gate_steps.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [0, 1] * (len(lines) // 2)
        return list(dict.fromkeys(json.loads(line)["training"] for line in lines))

    capsys.readouterr()
    assert command(*arguments) == 0  # as after a kill when all was written
    assert "is there, trained with these settings" in capsys.readouterr().out and len(trainings()) == 1
    for number, (module, name) in enumerate(KILLED_AT.values()):
        for path in (gates, *(tables / name for name in names if name.endswith(".csv"))):
            path.unlink()
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(f"{module}.{name}", dies)
            command(*arguments)
        assert command(*arguments) == 0
        assert all(torch.equal(weight, whole[name]) for name, weight in load_file(str(gates)).items())
        assert sorted(path.name for path in tables.iterdir()) == names
        assert (tables / "gate_recall_heads_32.csv").read_text() == recall
        assert [path.name for path in (tmp_path / "gates").iterdir()] == ["gates-32.safetensors"]
        assert len(trainings()) == number + 2


def dies(*_: object, **__: object) -> None:
    raise Killed


def test_overwriting_begins_anew_once(tmp_path: Path) -> None:
    gates, alone = tmp_path / "gates-32.safetensors", Processes()
    checkpoint = Checkpoint(tmp_path / "gates-32.checkpoint", 1, {"lr": 1e-2})

    def start(*, overwrite: bool, of: Checkpoint = checkpoint) -> Start:
        return find_start(of, gates, [], overwrite=overwrite)

    assert start(overwrite=False) is Start.BEGIN
    first, done = enter(checkpoint, Start.BEGIN, alone, overwrite=False)
    assert done == 0 and start(overwrite=False) is Start.GO_ON
    assert start(overwrite=True) is Start.BEGIN  # what was killed did not overwrite
    second, _ = enter(checkpoint, Start.BEGIN, alone, overwrite=True)
    assert second.training != first.training and second.replaces
    assert start(overwrite=True) is Start.GO_ON and start(overwrite=False) is Start.GO_ON
    assert enter(checkpoint, Start.GO_ON, alone, overwrite=True)[0].training == second.training
    gates.write_text("those that are to be replaced")
    with pytest.raises(UserError, match="exists: add"):
        start(overwrite=False)
    assert start(overwrite=True) is Start.GO_ON
    other = replace(checkpoint, about={"lr": 1e-3})
    assert start(overwrite=True, of=other) is Start.BEGIN
    gates.unlink()
    assert start(overwrite=False, of=other) is Start.BEGIN  # nothing is lost: no step is in that checkpoint
    checkpoint.path.write_text("damaged")
    assert start(overwrite=True) is Start.BEGIN
    with pytest.raises(UserError, match="is no checkpoint of gates"):
        start(overwrite=False)
