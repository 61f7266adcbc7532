"""Fine-tuning: what reaches the model's weights and what does not, the density of a step, and a killed training's end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.core.errors import UserError
from harness.models.bridge import Bridge
from harness.models.loading import LoadedModel
from harness.models.loss import mean_nll, nll
from harness.models.rope import ModelRope
from harness.training.finetune.arm import TrainingArm, give_gates
from harness.training.finetune.attention import TrainingAttention
from harness.training.finetune.extend import extend
from harness.training.finetune.finetune import FinetuneStep, Finetuning
from harness.training.finetune.recipe import FinetuneRecipe
from harness.training.gates.checkpoint import Checkpoint
from harness.training.gates.gate_spec import GateSpec
from harness.training.gates.processes import Processes
from harness.training.gates.recipe import Recipe
from harness.training.gates.trainer import GateTrainer
from harness.training.gates.weights import new_gates
from methods.block_topk import BlockTopK
from methods.gates.attn_gate import AttnGate
from methods.gates.gate import Gate
from methods.parts.base import Method
from methods.seer import Seer
from tests.harness.settings import merged
from tests.harness.tiny import load, shared, tokens

BLOCK = 16
OWN = Recipe(steps=4, block_size=BLOCK, lr=1e-3, warmup=1, clip=1.0, weight_decay=0.1, micro_rows=1)
RECIPE = FinetuneRecipe(OWN, factor=2.0, trained_length=64, gate_lr=1e-2, sparsity=0.5)
SPEC = GateSpec(AttnGate, "gates-{block_size}.safetensors", BLOCK)


def trainable(family: str = "llama") -> LoadedModel:
    """A toy model of its own, with gradients."""
    loaded = load(family)
    loaded.model.requires_grad_(True)
    return loaded


def untrained(loaded: LoadedModel) -> list[Gate]:
    return new_gates(loaded, block_size=BLOCK, seed=1)


class Killed(BaseException):
    pass


def dies_at(step: int) -> Any:
    def on_step(done: FinetuneStep) -> None:
        if done.step == step:
            raise Killed

    return on_step


def batches() -> Iterator[Tensor]:
    for seed in range(OWN.steps):
        yield tokens(2, 96, seed=seed)


def start(
    method: str,
    checkpoint: Checkpoint | None = None,
    recipe: FinetuneRecipe = RECIPE,
    processes: Processes | None = None,
    loaded: LoadedModel | None = None,
) -> Finetuning:
    loaded = extend(loaded or load("llama"), recipe.factor, recipe.trained_length)
    settings = replace(merged(f"method={method}"), block_size=BLOCK)
    if method == "seer":
        settings = replace(settings, method_knobs=settings.method_knobs | {"selection": "topk", "last": 0})
    gates = untrained(loaded) if method == "seer" else None
    arm, processes = TrainingArm(settings, None if gates is None else SPEC), processes or Processes()
    return Finetuning(loaded, arm, gates, recipe, checkpoint=checkpoint, processes=processes)


def gradients(loaded: LoadedModel, attention: TrainingAttention, ids: Tensor) -> dict[str, Tensor]:
    loaded.model.zero_grad()
    with attention:
        mean_nll(loaded, ids).backward()
    return {name: weight.grad.clone() for name, weight in loaded.model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("sparse", [False, True])
def test_no_gradient_of_the_gates_reaches_the_model(sparse: bool) -> None:
    loaded, ids = trainable(), tokens(1, 96)
    gates = untrained(loaded)
    trainer: Any = GateTrainer(loaded, Processes(), None)
    trainer.active = (type("Learner", (), {"gates": gates, "recipe": OWN})(),)
    by_visit = []
    for visit in (None, trainer.visit):
        attention = TrainingAttention(loaded, visit, kernel="reference")
        if sparse:
            attention.method = Seer(block_size=BLOCK, sparsity=0.5, selection="topk", last=0)
            give_gates(attention.method, gates, loaded)
        by_visit.append(gradients(loaded, attention, ids))
        assert float(attention.take_density()) == pytest.approx(13 / 21 if sparse else 1.0, abs=0.15)
    without, beside = by_visit
    assert without.keys() == beside.keys() == dict(loaded.model.named_parameters()).keys()
    assert all(torch.equal(without[name], beside[name]) for name in without)
    assert all(bool(weight.grad.abs().sum() > 0) for gate in gates for weight in gate.parameters())  # type: ignore[union-attr]


def test_the_model_learns_through_the_blocks_that_ran() -> None:
    loaded, ids = trainable(), tokens(1, 96)
    plain = {"sdpa": gradients(loaded, TrainingAttention(loaded, None), ids)}
    loaded.model.zero_grad()
    loaded.model(input_ids=ids, labels=ids).loss.backward()
    for name, weight in loaded.model.named_parameters():
        torch.testing.assert_close(plain["sdpa"][name], weight.grad, rtol=1e-3, atol=1e-5)
    sparse = {}
    for kernel in ("sdpa", "reference"):
        attention = TrainingAttention(loaded, None, kernel=kernel)
        attention.method = BlockTopK(block_size=BLOCK, sparsity=0.5)
        sparse[kernel] = gradients(loaded, attention, ids)
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(sparse["sdpa"][name], sparse["reference"][name], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(sparse["sdpa"][name], plain["sdpa"][name], rtol=1e-2)


@pytest.mark.parametrize("method", ["block_topk", "seer"])
def test_a_model_learns_under_the_attention_that_it_is_measured_under(method: str) -> None:
    training, ids = start(method), tokens(1, 90)
    loss = training.held_out_loss([ids])
    by_bridge = training._method_at(OWN.steps - 1)
    with Bridge(training.loaded, by_bridge) as bridge:
        measured = nll(training.loaded, ids[0], 1) / 89
    assert loss == pytest.approx(float(measured), rel=1e-5) and bridge.stats()[0]["densities"][0] < 0.75
    assert training.held_out_loss([]) is None


def test_gates_learn_alone_and_the_model_stays() -> None:
    training = start("seer", recipe=replace(RECIPE, gates_only=True))
    before = {name: weight.clone() for name, weight in training.loaded.model.named_parameters()}
    gates = [weight.clone() for weight in training.gate_weights]
    training.run(batches())
    assert all(torch.equal(before[name], weight) for name, weight in training.loaded.model.named_parameters())
    assert not any(torch.equal(old, new) for old, new in zip(gates, training.gate_weights, strict=True))
    last = training.steps[-1]
    assert last.grad_norm == 0 and last.gate_grad_norm and last.gate_loss


@pytest.mark.parametrize("method", ["dense", "seer"])
def test_a_killed_training_ends_as_a_whole_one(tmp_path: Path, method: str) -> None:
    recipe = replace(RECIPE, anneal_steps=2) if method == "seer" else replace(RECIPE, sparsity=0.0)
    whole = start(method, recipe=recipe)
    whole.run(batches())
    checkpoint = Checkpoint(tmp_path / "state", 2, {"lr": 1e-3}, trains="fine-tuning")
    with pytest.raises(Killed):
        start(method, checkpoint, recipe).run(batches(), on_step=dies_at(2))
    parts = start(method, checkpoint, recipe)
    assert len(parts.steps) == 2
    parts.run(batches())
    assert [replace(s, seconds=0) for s in parts.steps] == [replace(s, seconds=0) for s in whole.steps]
    for one, two in zip(whole.weights + whole.gate_weights, parts.weights + parts.gate_weights, strict=True):
        assert torch.equal(one, two)
    if method == "seer":
        densities = [step.density for step in whole.steps]
        assert densities[0] == 1.0 and densities[0] > densities[1] > densities[2] == densities[3]
        assert all(step.gate_loss is not None and step.gate_loss > 0 for step in whole.steps)
    checkpoint.path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="is no checkpoint of fine-tuning"):
        checkpoint.read()


def test_rows_may_be_accumulated() -> None:
    first = []
    for micro_rows in (1, None):
        training = start("seer", recipe=replace(RECIPE, recipe=replace(OWN, steps=1, micro_rows=micro_rows)))
        training.run(batches())
        first.append(training.steps[0])
    one, two = first
    for name in ("loss", "gate_loss", "grad_norm", "gate_grad_norm", "density", "recall"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-4), name
    with pytest.raises(UserError, match="the text ended after 1 of 4 steps"):
        start("block_topk").run(iter([tokens(1, 32)]))


def test_a_training_that_diverges_ends_in_a_line() -> None:
    training = start("dense", recipe=replace(RECIPE, sparsity=0.0))
    with torch.no_grad():
        training.weights[0].fill_(float("nan"))
    with pytest.raises(UserError, match=r"step 1 of 4: the loss is nan.*No model was written"):
        training.run(batches())
    last = start("dense", recipe=replace(RECIPE, sparsity=0.0, recipe=replace(OWN, steps=1)))

    def overflow(_: FinetuneStep) -> None:
        last.weights[0].data.fill_(float("inf"))

    with pytest.raises(UserError, match="the weights are not finite any more"):
        last.run(batches(), on_step=overflow)


def test_yarn_is_that_of_the_config(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    loaded = extend(load("llama"), 4.0, 64)
    assert loaded.max_length == 256
    loaded.model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = tokens(1, 200)
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, again(ids).logits)
        assert not torch.allclose(loaded.model(ids).logits, shared("llama").model(ids).logits, atol=1e-2)
    ModelRope(loaded.model, 0)  # gates undo it
    assert extend(load("llama"), 1.0, None).max_length == 512
    with pytest.raises(UserError, match=r"scaled already \(yarn\)"):
        extend(loaded, 2.0, None)
    with pytest.raises(UserError, match="do not share one RoPE"):
        extend(load("gemma3"), 2.0, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factor": 9.0}, "factor=9.0: must be from 1"),
        ({"factor": 0.5}, "factor=0.5: must be from 1"),
        ({"factor": float("nan")}, "factor=nan"),
        ({"gate_lr": -1.0}, "gate_lr=-1.0: must be from 0"),
        ({"anneal_from": 1.0}, "anneal_from=1.0: must be at least 0 and below 1"),
        ({"anneal_steps": -1}, "anneal_steps=-1: must be at least 0 steps"),
        ({"anneal_steps": 2, "sparsity": None}, "there is no sparsity to go to"),
    ],
)
def test_numbers_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(RECIPE, **change)


def test_density_goes_in_a_line() -> None:
    sparsity_at = partial(FinetuneRecipe.sparsity_at, replace(RECIPE, sparsity=0.9, anneal_from=0.5, anneal_steps=4))
    assert [sparsity_at(step) for step in range(6)] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 0.9])


def test_a_method_is_none_where_it_drops_nothing() -> None:
    arm, loaded = TrainingArm(merged("method=block_topk"), None), shared("llama")
    assert arm.method(0.0, loaded) is None
    assert isinstance(arm.method(0.5, loaded), Method)
