"""Gates in every family of decoders: trained, used, sparse where a layer is global, and dense attention at sparsity 0."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import methods
from harness.arms.gate_files import add_local_layers, for_all_layers
from harness.core.errors import UserError
from harness.models.bridge import SLIDING, Bridge
from harness.models.loading import local_layers, local_window, model_shape
from harness.training.gates.recipe import Recipe
from harness.training.gates.weights import new_gates
from methods.gates.gate import Gate
from tests.harness.tiny import FAMILIES, GLOBAL, load, tokens
from tests.harness.training.distilling import distill_one

BLOCK, LENGTH = 16, 240


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mistral_window"])
def test_gates_are_trained_and_choose_in_global_layers(family: str, tmp_path: Path) -> None:
    loaded = load(family)
    done = distill_one(loaded, itertools.repeat(tokens(1, LENGTH)), Recipe(steps=2, block_size=BLOCK, warmup=1), out=tmp_path)
    first: list[Gate] = new_gates(loaded, block_size=BLOCK)
    learnt = [not torch.equal(a.k, b.k) for a, b in zip(done.gates, first, strict=True)]  # type: ignore[arg-type]
    attends = [True, True] if family in GLOBAL else [False, True]
    assert learnt == attends
    local = {layer for layer, attended in enumerate(attends) if not attended}
    assert local_layers(loaded) == local
    assert {int(name.split(".")[1]) for name in load_file(str(done.path))} == {0, 1} - local  # nothing of what chooses nothing
    assert done.parameters == sum(weight.numel() for weight in load_file(str(done.path)).values())
    ids = tokens(2, LENGTH, seed=3)
    with torch.no_grad():
        dense = loaded.model(ids).logits
        for sparsity, shared in itertools.product((0.0, 0.6), (False, True)):
            method = methods.build("seer", sparsity=sparsity, selection="topk", shared=shared, block_size=BLOCK)
            method.load(add_local_layers(load_file(str(done.path)), local_layers(loaded)), **model_shape(loaded))
            with Bridge(loaded, method) as bridge:
                logits = loaded.model(ids).logits
            assert torch.allclose(logits, dense, atol=1e-3) is (sparsity == 0)
            for layer, stats in enumerate(bridge.stats()):
                if attends[layer]:
                    assert stats["density"] == pytest.approx(1 - sparsity, abs=0.01)
                else:
                    assert stats["density"] is None and stats["kernel"] == SLIDING


def test_a_model_of_windows_alone_has_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no layer of mistral_window attends to the whole text"):
        distill_one(
            load("mistral_window"), itertools.repeat(tokens(1, LENGTH)), Recipe(steps=1, block_size=BLOCK), out=tmp_path
        )


def test_a_file_that_lacks_a_global_layer_is_refused(tmp_path: Path) -> None:
    loaded = load("gemma3")
    done = distill_one(loaded, itertools.repeat(tokens(1, LENGTH)), Recipe(steps=1, block_size=BLOCK), out=tmp_path)
    other = {name.replace("layers.1.", "layers.0."): weight for name, weight in load_file(str(done.path)).items()}
    method = methods.build("seer", sparsity=0.5, block_size=BLOCK)
    with pytest.raises(ValueError, match=r"lack layers\.1\.gate\.k"):
        method.load(add_local_layers(other, local_layers(loaded)), **model_shape(loaded))


def test_local_layers_that_learnt_are_kept_and_those_that_did_not_are_missed_in_short_prompts(tmp_path: Path) -> None:
    loaded = load("gemma3")
    window = local_window(loaded)
    recipe = Recipe(steps=2, block_size=BLOCK, warmup=1)
    both = distill_one(
        loaded, itertools.chain([tokens(1, window)], itertools.repeat(tokens(1, LENGTH))), recipe, out=tmp_path / "both"
    )
    assert {int(name.split(".")[1]) for name in load_file(str(both.path))} == {0, 1}
    for_all_layers(load_file(str(both.path)), both.path, loaded, window)
    alone = distill_one(loaded, itertools.repeat(tokens(1, LENGTH)), recipe, out=tmp_path / "alone")
    assert set(for_all_layers(load_file(str(alone.path)), alone.path, loaded, window + 1)) == set(load_file(str(both.path)))
    with pytest.raises(
        UserError, match=f"take prompts of more than {window} tokens, not {window}, or train with {window} among"
    ):
        for_all_layers(load_file(str(alone.path)), alone.path, loaded, window)


def test_models_of_one_kind_of_layer_have_no_local_ones() -> None:
    assert [local_layers(load(family)) for family in ("llama", "mistral_window")] == [frozenset(), frozenset()]
