"""The bundled model while it trains: a Llama with causal attention alone, and its loss."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM

from harness.training.bundled_model.batches import Batch
from harness.training.bundled_model.recipe import PretrainRecipe

ATTENTION = "pretrain_causal"
"""The name under which transformers knows the attention of the training."""


def causal_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Return causal attention without padding [B,N,Hq,D], K/V un-repeated; rows of a training batch have no padding."""
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=kwargs.get("scaling"), enable_gqa=True
    )
    return out.transpose(1, 2), None


def build_model(recipe: PretrainRecipe, tokenizer: Any) -> LlamaForCausalLM:
    """Return a fresh Llama of the recipe's shape, embeddings tied, in fp32."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.max_length,
        rope_theta=recipe.rope_theta,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    AttentionInterface.register(ATTENTION, causal_attention)
    AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)
    model.set_attn_implementation(ATTENTION)
    return model


def losses(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Return [2]: the weighted next-token loss over the batch's scored tokens, and the mean loss of the answers', detached.

    Logits of tokens that aren't scored are never computed.
    """
    hidden = model.model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[batch.where])
    token_losses = torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")
    answers = token_losses[batch.weights == 1.0].mean()
    return torch.stack([(token_losses * batch.weights).sum() / batch.weights.sum(), answers.nan_to_num().detach()])
