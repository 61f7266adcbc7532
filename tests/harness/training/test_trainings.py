"""Several trainings of gates that learn from the same forward passes: each ends as it does alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor

from harness.core.errors import UserError
from harness.models.loading import LoadedModel, wrap_model
from harness.training.gates import distill_command
from harness.training.gates.capture import Capture
from harness.training.gates.checkpoint import Checkpoint, Step
from harness.training.gates.distill import distill
from harness.training.gates.processes import Processes
from harness.training.gates.recipe import Recipe
from harness.training.gates.trainer import GateTrainer
from harness.training.gates.training import Distilled, Plan
from methods.gates.attn_gate import AttnGate
from tests.harness.training.test_distill import BLOCK, sharp_llama, topics
from tests.harness.training.test_distill_job import changed, config

__all__ = ["config"]
Command = Callable[..., int]
RECIPE = Recipe(steps=4, block_size=BLOCK, warmup=1, lr=1e-2)
PLANS = [
    Plan(RECIPE, file="gates-{block_size}-usual.safetensors"),
    Plan(replace(RECIPE, steps=2, seed=1, lr=3e-2), first_step=3, file="gates-{block_size}-late.safetensors"),
    Plan(replace(RECIPE, steps=7, pool="mass", clip=0.05), file="gates-{block_size}-mass.safetensors"),
    Plan(replace(RECIPE, skip_rows=0.25, weight_decay=0.1), first_step=1, file="gates-{block_size}-skipping.safetensors"),
]


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return wrap_model(sharp_llama(), None, name="tiny", revision="abc")


@pytest.fixture(scope="module")
def alone(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> list[Distilled]:
    """Each of the trainings by itself."""
    out = tmp_path_factory.mktemp("alone")
    return [distilled for plan in PLANS for distilled in distill(loaded, topics(), [plan], out=out)]


def same(one: Distilled, other: Distilled) -> bool:
    """Return whether two trainings gave the same file and the same steps, but for their seconds."""
    weights, others = load_file(str(one.path)), load_file(str(other.path))
    timeless = [[replace(step, seconds=0.0) for step in distilled.steps] for distilled in (one, other)]
    return all(torch.equal(weights[name], others[name]) for name in weights) and timeless[0] == timeless[1]


def test_each_ends_as_it_does_alone(
    loaded: LoadedModel, alone: list[Distilled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    run = Capture.run
    monkeypatch.setattr(Capture, "run", lambda capture, tokens: (passes.append(len(tokens)), run(capture, tokens))[1])
    together = list(distill(loaded, topics(), PLANS, out=tmp_path))
    assert len(passes) == max(plan.end for plan in PLANS) == 7  # 17 steps in all
    assert [distilled.path.name for distilled in together] == [
        PLANS[number].file_name
        for number in (0, 1, 3, 2)  # as they end
    ]
    by_name = {distilled.path.name: distilled for distilled in together}
    assert all(same(distilled, by_name[distilled.path.name]) for distilled in alone)
    assert not same(alone[0], alone[1])


def test_the_losses_of_one_do_not_depend_on_the_others(loaded: LoadedModel) -> None:
    trainer, layers = GateTrainer(loaded, Processes(), None), torch.rand(30, 3, 2, generator=torch.Generator().manual_seed(0))

    def means(losses: Tensor) -> Tensor:
        trainer._layers.update(enumerate(losses))
        return trainer.end_pass()

    assert torch.equal(means(layers), torch.cat([means(layers[:, number : number + 1]) for number in range(3)]))


def test_a_gap_in_the_text_is_passed_over(loaded: LoadedModel, alone: list[Distilled], tmp_path: Path) -> None:
    """A batch that nothing learns from costs no pass, and the file of a training is there before the next one begins."""
    plans, seen = [PLANS[1], replace(PLANS[0], recipe=replace(RECIPE, steps=1))], []
    for distilled in distill(loaded, topics(), plans, out=tmp_path):
        seen.append((distilled.path.name, sorted(path.name for path in tmp_path.iterdir())))
    usual, late = PLANS[0].file_name, PLANS[1].file_name
    assert seen == [(usual, [usual]), (late, [late, usual])]
    assert torch.equal(load_file(str(tmp_path / late))["layers.0.gate.k"], load_file(str(alone[1].path))["layers.0.gate.k"])


@pytest.mark.parametrize("last", [1, 3])
def test_killed_they_go_on_each_from_where_it_was(
    loaded: LoadedModel, alone: list[Distilled], tmp_path: Path, last: int
) -> None:
    """The kill comes between two of them, so that their states are of different steps; only the laggards make up for it."""

    def plans(*, killed: bool) -> list[Plan]:
        def on_step(step: Step) -> None:
            if killed and step.step == last:
                raise Killed

        return [
            replace(
                plan,
                checkpoint=Checkpoint(tmp_path / f"{number}.checkpoint", 1, {"lr": plan.recipe.lr}),
                on_step=on_step if number == 2 else None,
            )
            for number, plan in enumerate(PLANS)
        ]

    with pytest.raises(Killed):
        list(distill(loaded, topics(), plans(killed=True), out=tmp_path))
    states = [plan.checkpoint.read() for plan in plans(killed=False) if plan.checkpoint]
    done = [plan.first_step + len(state["steps"]) if state else 0 for plan, state in zip(PLANS, states, strict=True)]
    assert len(set(done)) > 1
    together = {distilled.path.name: distilled for distilled in distill(loaded, topics(), plans(killed=False), out=tmp_path)}
    assert all(same(distilled, together[distilled.path.name]) for distilled in alone)


class Fragile(AttnGate):
    """A gate whose logits are not finite once its weights have grown large."""

    def forward(self, q: Tensor, k: Tensor, rope: Any) -> Tensor:
        large = (self.k.detach().abs().max() > 50).to(self.k.dtype)
        return super().forward(q, k, rope) + large / (1 - large)


def test_one_that_diverges_does_not_stop_the_others(loaded: LoadedModel, alone: list[Distilled], tmp_path: Path) -> None:
    wild = Plan(replace(RECIPE, steps=5, lr=100.0, warmup=0), file="gates-{block_size}-wild.safetensors")
    problems: list[str] = []
    stream = distill(loaded, topics(), [replace(wild, on_problem=problems.append), PLANS[0]], out=tmp_path, kind=Fragile)
    distilled = next(stream)
    (problem,) = problems  # said at once
    assert "step 2 of 5" in problem
    with pytest.raises(UserError, match=r"^gates-16-wild\.safetensors: step 2 of 5: .* lower lr, or set a clip"):
        next(stream)
    assert same(alone[0], distilled)
    assert [path.name for path in tmp_path.iterdir()] == [PLANS[0].file_name]


@pytest.mark.usefixtures("blank_pictures")
def test_the_command_trains_them_together(
    command: Command, toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text(" ".join(f"The magic number for apple is: {n * 7919}." for n in range(4000)))
    settings = ["job=distill", "method=seer", "block_size=32", "job.lengths=[128,192]", "job.tokens=384", "job.steps=3"]
    text = [f"data.text_dir={tmp_path / 'books'}", "job.rows=books", "job.recall_sequences=1"]
    arguments = [*toy, *settings, *text]
    several = "job.trainings={a:{},b:{lr:1e-2,steps:2,first_step:1,seed:4}}"
    together = [*arguments, several, f"job.out={tmp_path / 'gates'}", "study=together"]
    assert command(*together) == 0
    out = capsys.readouterr().out
    assert "32-a: step 3 of 3: KL" in out and "32-b: step 2 of 2: KL" in out
    assert sorted(path.name for path in (tmp_path / "gates").iterdir()) == ["gates-32-a.safetensors", "gates-32-b.safetensors"]
    folder = tmp_path / "results" / "together"
    assert {path.name for path in folder.glob("gate_*32-?.csv")} == {
        f"gate_{kind}_32-{name}.csv" for kind in ("steps", "recall", "recall_heads") for name in "ab"
    }
    records = [json.loads(line) for line in (folder / "records" / "gate_steps.jsonl").read_text().splitlines()]
    about = {record["about"]["training_name"]: record["about"] for record in records if record["about"]}
    assert {key: about["b"].get(key) for key in ("lr", "steps", "first_step", "seed", "text_seed")} == {
        "lr": 0.01,
        "steps": 2,
        "first_step": 1,
        "seed": 4,
        "text_seed": 0,
    }
    assert "first_step" not in about["a"] and "text_seed" not in about["a"] and about["a"]["steps"] == 3
    assert len({record["training"] for record in records}) == 2 and len({record["run"] for record in records}) == 1
    assert command(*together) == 0
    assert capsys.readouterr().out.count("is there, trained with these settings") == 2
    assert command(*arguments, "method.gates=a", f"job.out={tmp_path / 'alone'}", "study=alone") == 0
    one, other = (load_file(str(tmp_path / name / "gates-32-a.safetensors")) for name in ("gates", "alone"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert len(pd.read_csv(folder / "gate_steps_32-b.csv")) == 2
    # the one that is missing is trained alone
    (tmp_path / "gates" / "gates-32-b.safetensors").rename(tmp_path / "before.safetensors")
    assert command(*together) == 0
    assert (tmp_path / "gates" / "gates-32-b.safetensors").read_bytes() == (tmp_path / "before.safetensors").read_bytes()


@pytest.mark.usefixtures("blank_pictures")
def test_killed_while_they_replace_gates_the_finished_ones_are_not_trained_again(
    command: Command, toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text(" ".join(f"The magic number for apple is: {n * 7919}." for n in range(400)))
    settings = ["job=distill", "method=seer", "block_size=32", "job.lengths=[128]", "job.tokens=128", "job.recall_sequences=1"]
    settings += ["job.rows=documents", f"data.text_dir={tmp_path / 'books'}", f"job.out={tmp_path / 'gates'}"]
    arguments = [*toy, *settings, "job.trainings={a:{steps:1},b:{steps:2}}", "job.overwrite=true"]
    report = distill_command.report_training

    def dies_of_b(distilled: Distilled, *rest: Any) -> None:
        if distilled.path.name == "gates-32-b.safetensors":
            raise Killed
        report(distilled, *rest)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(distill_command, "report_training", dies_of_b)
        command(*arguments)
    assert command(*arguments) == 0
    assert sorted(path.name for path in (tmp_path / "gates").iterdir()) == ["gates-32-a.safetensors", "gates-32-b.safetensors"]
    lines = (tmp_path / "results" / "toy" / "records" / "gate_steps.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == [0, 0, 1]
    # alone it would be given other rows: of as much text as it needs itself
    assert [record["about"].get("text_batches") for record in records if record["about"]] == [2, None]
    assert command(*toy, *settings, "method.gates=b", "job.steps=2") == 0
    assert "is there, trained with these settings" in capsys.readouterr().out
    assert command(*toy, *settings, "method.gates=a", "job.steps=1") == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["job.trainings={}"], "job.trainings={}: must be null, or settings by the names of trainings, for example {short"),
        (["job.trainings=[a,b]"], "must be null, or settings by the names of trainings"),
        (["job.trainings=fast"], "job.trainings=fast: must be null, or settings by the names of trainings"),
        (["job.trainings={a:3}"], "job.trainings.a=3: must be settings by name"),
        (["job.trainings={a:{step:3}}"], "job.trainings.a.step is no setting of a training (did you mean steps?); choose from"),
        (["job.trainings={a:{tokens:3}}"], "job.trainings.a.tokens is no setting of a training"),
        (["job.trainings={a:{lr:fast}}"], "job.trainings.a: job.lr=fast: must be a finite number"),
        (["job.trainings={a:{steps:0}}"], "job.trainings.a: steps=0: must be at least 1"),
        (["job.trainings={a:{seed:-1}}"], "job.trainings.a: job.seed=-1: must be a whole number of at least 0"),
        (["job.trainings={a:null}"], "job.trainings.a=null: must be settings by name"),
        (
            ["job.trainings={a:{seed:99999999999}}"],
            "job.trainings.a: job.seed=99999999999: must be a whole number of at least 0",
        ),
        (
            ["job.trainings={a:{first_step:9999999999}}"],
            "job.first_step=9999999999: must be a whole number of at least 0 and at",
        ),
        (["job.trainings={a:{steps:9999999999}}"], "job.trainings.a: job.steps=9999999999: must be a whole number of at most"),
        (
            ["job.trainings={1:{}}"],
            "job.trainings.1: gates=1: must be a name of letters, digits and _, for example mass; it",
        ),
        (["job.trainings={a-b:{}}"], "job.trainings.a-b: gates=a-b: must be a name of letters, digits and _"),
        (["job.trainings={a:{}}", "method.gates=b"], "method.gates=b names one training and job.trainings several"),
        (["job.first_step=-1"], "job.first_step=-1: must be a whole number of at least 0"),
    ],
)
def test_bad_settings_are_one_line(config: DictConfig, settings: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        distill_command.main(changed(config, *settings))
    (line,) = str(error.value).splitlines()
    assert message in line


def test_gates_for_decoding_have_no_names(command: Command, toy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*toy, "job=distill", "decode=seer_r", "job.rows=samples", "job.trainings={a:{}}") == 2
    assert "job.trainings: gates for decoding have no names" in capsys.readouterr().err
