"""RoPE that depends on the length: every sequence is what transformers' own generate makes of it in a new model."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Phi3Config, PhimoeConfig, PreTrainedConfig

from harness.core.errors import UserError
from harness.models.bridge import Bridge
from harness.models.generate import Split, generate
from harness.models.loading import LoadedModel, wrap_model
from harness.models.recompute import CacheOf
from harness.models.rope import ModelRope, switch_lengths
from methods.decode.parts.base import DecodeMethod, StepInputs
from methods.parts.base import LayerInputs
from tests.harness.tiny import Fixed, tokens

pytestmark = pytest.mark.filterwarnings("ignore")

SWITCH = 24
STEPS = 6
LENGTHS = (50, 10, SWITCH, SWITCH - 3, 40)
"""Of prompts: past the switch, short of it, on it, and one that crosses it while it grows; the longest comes first."""

COMMON: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0 + i for i in range(8)],
    "original_max_position_embeddings": SWITCH,
    "factor": 8.0,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 8.0}
DYNAMIC_COMMON = COMMON | {"max_position_embeddings": SWITCH}


def config(kind: str) -> PreTrainedConfig:
    """A toy of each way: one that prefills anew past the switch, one that doesn't, dynamic NTK, and one RoPE of two."""
    by_layer = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": dict(DYNAMIC)}
    layers = {"head_dim": 16, "sliding_window": 16, "layer_types": list(by_layer), "query_pre_attn_scalar": 16}
    kinds: dict[str, Any] = {
        "recomputing": lambda: Phi3Config(
            **COMMON, original_max_position_embeddings=SWITCH, rope_parameters=copy.deepcopy(LONGROPE)
        ),
        "longrope": lambda: LlamaConfig(**COMMON, rope_parameters=copy.deepcopy(LONGROPE)),
        "dynamic": lambda: LlamaConfig(**DYNAMIC_COMMON, rope_parameters=dict(DYNAMIC)),
        "by_layer": lambda: Gemma3TextConfig(**DYNAMIC_COMMON, **layers, rope_parameters=by_layer),
    }
    return kinds[kind]()


KINDS = ("recomputing", "longrope", "dynamic", "by_layer")


@lru_cache
def new_model(kind: str) -> Any:
    """The model, which no test runs: copies are new ones."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(kind)).double().eval()


@lru_cache
def loaded_of(kind: str) -> LoadedModel:
    return wrap_model(copy.deepcopy(new_model(kind)), None, name=kind, dtype=torch.float64, max_length=512)


def prompts() -> list[list[int]]:
    return [tokens(n, seed=i).tolist() for i, n in enumerate(LENGTHS)]


def forgets(model: Any) -> bool:
    """Whether transformers' generate drops the cache at the switch and goes on with the last token alone, as 5.17's does."""
    ids = torch.zeros(1, SWITCH + 1, dtype=torch.int64)
    inputs = model.prepare_inputs_for_generation(ids, past_key_values=CacheOf(SWITCH), next_sequence_length=1)
    return inputs.get("past_key_values") is None and inputs["input_ids"].shape[1] == 1


def without_cache(model: Any, prompt: list[int]) -> list[int]:
    """What comes of a prompt where every step reads the whole sequence anew."""
    ids = torch.tensor([prompt])
    for _ in range(STEPS):
        ids = torch.cat((ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)), 1)
    return ids[0, len(prompt) :].tolist()


@lru_cache
def expected_of(kind: str) -> list[list[int]]:
    """What transformers' generate makes of each prompt, each in a new model."""
    out = []
    for prompt in prompts():
        model = copy.deepcopy(new_model(kind))
        model.set_attn_implementation("eager")
        if forgets(model):
            out.append(without_cache(model, prompt))
            continue
        ids = torch.tensor([prompt])
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
        out.append(model.generate(ids, max_new_tokens=STEPS, **options)[0, len(prompt) :].tolist())
    return out


def run(kind: str, texts: list[list[int]], batch_tokens: int = 10_000, **options: Any) -> list[list[int]]:
    with Bridge(loaded_of(kind), None) as bridge:
        if "contexts" in options:
            options = {"split": Split(options["contexts"], bridge.in_full)}
        generations = generate(loaded_of(kind), texts, STEPS, stop_ids=set(), batch_tokens=batch_tokens, **options)
    return [g.ids for g in generations]


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_and_what_came_before_change_nothing(kind: str) -> None:
    assert switch_lengths(loaded_of(kind).model) == (SWITCH,)
    assert run(kind, prompts(), batch_tokens=1) == expected_of(kind), "one after the other"
    assert run(kind, prompts()) == expected_of(kind), "side by side"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_change_nothing_on_a_gpu(kind: str) -> None:
    model = copy.deepcopy(new_model(kind))
    loaded = wrap_model(model, None, name=kind, device="cuda", dtype=torch.float64, max_length=512)
    with Bridge(loaded, None, dense_kernel="reference"):
        for batch_tokens in (1, 10_000):
            generations = generate(loaded, prompts(), STEPS, stop_ids=set(), batch_tokens=batch_tokens)
            assert [g.ids for g in generations] == expected_of(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_after_its_context_is_one_prompt(kind: str) -> None:
    """The context alone would have the frequencies of a short text, where the whole has those of a long one."""
    assert run(kind, prompts(), contexts=[min(SWITCH - 6, length - 1) for length in LENGTHS]) == expected_of(kind)


def test_a_prompt_that_is_prefilled_anew_is_the_methods_again() -> None:
    """As under transformers' generate; its first density is the prompt's own."""
    loaded = loaded_of("recomputing")
    with Bridge(loaded, Fixed(block_size=8)) as bridge:
        generate(loaded, prompts()[2:4], STEPS, stop_ids=set(), batch_tokens=1000)
    densities = bridge.prefill_densities()
    assert len(densities) == 4
    with Bridge(loaded, Fixed(block_size=8)) as bridge:
        generate(loaded, prompts()[2:4], 1, stop_ids=set(), batch_tokens=1000)
    assert bridge.prefill_densities() == densities[:2]


class Undoes(Fixed):
    """Notes the cos and sin of each layer's prompt."""

    needs_rope = True

    def __init__(self) -> None:
        super().__init__(keep="none")
        self.tables: list[Tensor] = []

    def select(self, x: LayerInputs) -> None:
        assert x.rope is not None
        self.tables.append(torch.cat(x.rope.table(x.k.shape[2], x.k.device), -1))


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_what_undoes_rope_has_the_frequencies_of_its_prompt(kind: str) -> None:
    """LongRoPE writes others into the same tensor: a table that is kept must not outlive them."""
    loaded = loaded_of(kind)
    with Bridge(loaded, method := Undoes()):
        for length in (10, 50, 40):
            loaded.model(tokens(1, length))
            cos, sin = copy.deepcopy(new_model(kind)).model.rotary_emb(torch.zeros(1).double(), torch.arange(length)[None])
            expected = torch.cat((cos[0, :, :8], sin[0, :, :8]), -1).float()
            assert all(torch.equal(table, expected) for table in method.tables)
            method.tables.clear()


class UndoesSteps(DecodeMethod):
    """Reads the RoPE at every step, and keeps everything."""

    paper = "none: a method for tests"
    family = "static"
    needs_rope = True

    def __init__(self) -> None:
        super().__init__(sparsity=0.0)

    def start(self, x: StepInputs) -> None:
        assert x.rope is not None
        x.rope.table(x.k.shape[2], x.k.device)

    def extend(self, state: None, x: StepInputs) -> None:
        pass

    def select(self, x: StepInputs, state: None) -> None:
        return None


@pytest.mark.parametrize(
    ("kind", "rows", "fits"),
    [
        ("longrope", (1, 1), True),
        ("longrope", (0, 4), True),
        ("longrope", (0, 1), False),
        ("longrope", (3,), False),
        ("dynamic", (0,), False),
    ],
)
def test_a_decode_method_that_undoes_rope_needs_keys_of_one_kind(kind: str, rows: tuple[int, ...], fits: bool) -> None:
    loaded, texts = loaded_of(kind), [prompts()[row] for row in rows]
    with Bridge(loaded, None, decoding=UndoesSteps()):
        if fits:
            generations = generate(loaded, texts, STEPS, stop_ids=set(), batch_tokens=1000)
            assert [g.ids for g in generations] == [expected_of(kind)[row] for row in rows]
        else:
            with pytest.raises(UserError, match=r"other frequencies past 24 tokens, and keys of both kinds"):
                generate(loaded, texts, STEPS, stop_ids=set(), batch_tokens=1000)


def test_rope_whose_scaling_depends_on_the_length_can_not_be_undone() -> None:
    scaled = copy.deepcopy(LONGROPE) | {"short_mscale": 1.2, "long_mscale": 1.5}
    model = AutoModelForCausalLM.from_config(PhimoeConfig(**COMMON, num_local_experts=2, rope_parameters=scaled))
    with pytest.raises(UserError, match="is not the rotate-half kind"):
        ModelRope(model, 0)
