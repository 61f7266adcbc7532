"""Tiny random decoders of several families, and methods to run in them, for the tests of the model side."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from attention_kernels.block_index import BlockIndex
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from harness.models.loading import LoadedModel, wrap_model
from methods.parts.base import LayerInputs, Method

VOCAB = 97
WINDOW = 24
FAMILIES = ("llama", "llama_group3", "qwen2", "qwen2_group7", "qwen3", "mistral", "mistral_window", "gemma3")
GLOBAL = ("llama", "llama_group3", "qwen2", "qwen2_group7", "qwen3", "mistral")
"""The families whose layers all attend to the whole prompt."""

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}


def _heads(heads: int, kv_heads: int) -> dict[str, Any]:
    """`_COMMON` with other numbers of heads, of 16 elements."""
    return _COMMON | {"hidden_size": 16 * heads, "num_attention_heads": heads, "num_key_value_heads": kv_heads}


def build(family: str, seed: int = 0) -> Any:
    """A random model of the family in eval mode, float32. Weights are large so that attention is far from uniform."""
    torch.manual_seed(seed)
    model: Any = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(head_dim=16, **_COMMON)),
        "llama_group3": lambda: LlamaForCausalLM(LlamaConfig(head_dim=16, **_heads(9, 3))),  # as SmolLM2-135M
        "qwen2_group7": lambda: Qwen2ForCausalLM(Qwen2Config(**_heads(7, 1))),  # groups as Qwen2.5-0.5B's
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_COMMON)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(head_dim=32, **_COMMON)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(sliding_window=None, head_dim=16, **_COMMON)),
        "mistral_window": lambda: MistralForCausalLM(MistralConfig(sliding_window=WINDOW, head_dim=16, **_COMMON)),
        "gemma3": lambda: Gemma3ForCausalLM(
            Gemma3TextConfig(
                head_dim=16,
                sliding_window=WINDOW,
                layer_types=["sliding_attention", "full_attention"],
                query_pre_attn_scalar=8,
                tie_word_embeddings=False,
                **_COMMON,
            )
        ),
    }[family]()
    return model.eval()


def load(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """`build`, wrapped as load_model would."""
    return wrap_model(build(family, seed), None, name=family, dtype=dtype)


@lru_cache
def shared(family: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """`load` of seed 0, once for all tests: for those that leave the model as it is."""
    return load(family, dtype=dtype)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random token ids, none of them special."""
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


class Fixed(Method):
    """Keeps the first block and the diagonal (keep="ends"), every block ("all"), or asks for dense ("none")."""

    name = "fixed"
    paper = "none: a method for tests"
    knob = "keep"
    family = "static"

    def __init__(self, *, keep: str = "ends", block_size: int = 16) -> None:
        super().__init__(block_size=block_size, sparsity=None)
        self.keep = keep
        self.block = block_size
        self.seen: list[tuple[int, int, int]] = []

    def select(self, x: LayerInputs) -> BlockIndex | None:
        self.seen.append((x.layer, x.q.shape[2], x.k.shape[2]))
        if self.keep == "none":
            return None
        q_len, k_len = x.q.shape[2], x.k.shape[2]
        rows, columns = -(-q_len // self.block), -(-k_len // self.block)
        shape = (x.q.shape[0], x.q.shape[1], rows, columns)
        mask = torch.full(shape, self.keep == "all", dtype=torch.bool, device=x.q.device)
        mask[..., 0] = True
        return BlockIndex.from_mask(mask, q_block=self.block, k_block=self.block, q_len=q_len, k_len=k_len)

    def knobs(self) -> dict[str, int | float | str | bool | None]:
        return {"keep": self.keep}
