"""Names of weights in releases of gates, and ours."""

from __future__ import annotations

import pytest
import torch

from methods.gates.attn_gate import AttnGate
from methods.gates.decode_gate import DecodeGate
from methods.gates.gate import Gate
from methods.gates.release_format import check_config, check_whole, from_released, to_released
from methods.gates.weights import gate_state

PREFIX = "model.layers.{}.self_attn.attn_gate.{}.weight"


def state_of(kind: type[Gate]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return gate_state([kind(4, 2, 16, block_size=64) for _ in range(3)])  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (AttnGate, ["mask_linear_k"]),
        (DecodeGate, ["attngate_linear_q", "attngate_linear_k", "attngate_qnorm", "attngate_knorm"]),
    ],
)
def test_names_go_both_ways(kind: type[Gate], names: list[str]) -> None:
    state = state_of(kind)
    released = to_released(state, kind)
    assert sorted(released) == sorted(PREFIX.format(layer, name) for layer in range(3) for name in names)
    back = from_released(released, kind)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    assert check_whole(back) == 3


@pytest.mark.parametrize("prefix", ["", "module.model.", "base_model.model.model."])
def test_what_stands_before_the_layers_does_not_count(prefix: str) -> None:
    renamed = from_released({f"{prefix}layers.11.self_attn.attn_gate.mask_linear_k.weight": torch.zeros(1)}, AttnGate)
    assert list(renamed) == ["layers.11.gate.k"]


def test_the_weights_of_another_gate_are_listed() -> None:
    with pytest.raises(ValueError, match=r"attngate_knorm\.weight, .*, … \(12 in all\); .* has mask_linear_k") as e:
        from_released(dict(sorted(to_released(state_of(DecodeGate), DecodeGate).items())), AttnGate)
    assert "\n" not in str(e.value)


def test_weights_under_two_prefixes_are_refused() -> None:
    name = "layers.0.self_attn.attn_gate.mask_linear_k.weight"
    with pytest.raises(ValueError, match="twice, under two prefixes"):
        from_released({name: torch.zeros(1), f"model.{name}": torch.zeros(1)}, AttnGate)


def test_no_weights() -> None:
    with pytest.raises(ValueError, match="it is empty"):
        from_released({}, AttnGate)
    with pytest.raises(ValueError, match="it is empty"):
        check_whole({})


def test_a_layer_that_is_missing_or_different() -> None:
    state = state_of(AttnGate)
    del state["layers.1.gate.k"]
    with pytest.raises(
        ValueError, match="it leaves out layer 1; a release has gates of all layers, those of a sliding window too"
    ):
        check_whole(state)
    state["layers.1.gate.k"] = torch.zeros(4, 48, 8)
    with pytest.raises(ValueError, match=r"its layer 1 has weights \{'k': \[4, 48, 8\]\}"):
        check_whole(state)


def test_settings_of_other_gates_are_refused() -> None:
    check_config({}, AttnGate, 64)
    check_config({"seerattn_gate_type": "Qavg_Kmaxminavg", "seerattn_gate_block_size": 32}, AttnGate, 32)
    with pytest.raises(ValueError, match="for blocks of 64 tokens, not 128"):
        check_config({}, AttnGate, 128)
    with pytest.raises(ValueError, match="seerattn_gate_type=Qavg_Kmaxmin; gates here are Qavg_Kmaxminavg"):
        check_config({"seerattn_gate_type": "Qavg_Kmaxmin"}, AttnGate, 64)
    with pytest.raises(ValueError, match="seerattn_q_head_pooling_type=Qavgproj; gates here are Qproj"):
        check_config({"seerattn_q_head_pooling_type": "Qavgproj"}, DecodeGate, 64)
    with pytest.raises(ValueError, match="seerattn_use_qk_norm=False; gates here are True"):
        check_config({"seerattn_use_qk_norm": False}, DecodeGate, 64)
    for size in (None, "64", 0):
        with pytest.raises(ValueError, match=f"seerattn_gate_block_size={size}: must be a whole number"):
            check_config({"seerattn_gate_block_size": size}, AttnGate, 64)
