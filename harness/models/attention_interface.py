"""One attention function and one mask function that transformers calls for a model that is attached to a runner (a Bridge).

Both are registered once, as IMPLEMENTATION. Which runner a layer belongs to is looked up by its module (`attached`), so several
models can have one each at the same time. What a layer's mask asks for comes to it as a LayerMask (`harness.models.masks`).
Whatever these functions can't honour (padding at prefill, softcap, sinks, …) raises UserError: never a wrong answer.
"""

from __future__ import annotations

from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from harness.core import devices
from harness.core.errors import UserError
from harness.models.masks import LayerMask, MaskFunction, window_of

IMPLEMENTATION = "sparse_attention_harness"
"""The attention implementation's name. transformers reads meaning into "flash", "sdpa", "flex_attention" and "/"."""

_UNSUPPORTED = {
    "softcap": "soft-capped attention scores",
    "s_aux": "attention sinks",
    "position_bias": "a position bias",
    "head_mask": "a head mask",
    "cu_seq_lens_q": "packed sequences",
    "cu_seq_lens_k": "packed sequences",
    "output_attentions": "output_attentions (the attention matrix is never formed)",
}
"""Keyword arguments of transformers' attention functions that change the result, and what they stand for."""

_NEUTRAL = frozenset(
    {
        "cache_position",
        "deterministic",
        "is_causal",
        "labels",
        "logits_to_keep",
        "max_length_k",
        "max_length_q",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "sliding_window",
        "use_cache",
    }
)
"""Keyword arguments that change nothing, or that are looked at by name. Any other one that says something is refused."""


class AttentionRunner(Protocol):
    """Runs the attention of the layers that it is attached to."""

    @property
    def in_prompt(self) -> bool:
        """Return whether a single query is of a prompt, no step of decoding."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
        """Return the attention [B,Hq,Q,D] of a prompt or a chunk of it; window: of keys, None for all."""
        ...

    def decode(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, key_mask: Tensor | None
    ) -> Tensor:
        """Return the attention [B,Hq,1,D] of one new token per sequence; key_mask [B,K]: False where there is no key."""
        ...


attached: WeakKeyDictionary[nn.Module, AttentionRunner] = WeakKeyDictionary()
"""What runs each attention layer, by its module."""

Implementation = str | dict[str, str]
"""What transformers' set_attn_implementation takes: a name, or names by sub-config."""


def attach(model: Any, runner: AttentionRunner, name: str) -> Implementation:
    """Hand every attention layer of a transformers model to `runner`. Returns what `detach` needs to undo it.

    name: of the model, for messages. Raises UserError for a model that is attached already, or whose attention is of another
    kind: not causal, not of transformers' AttentionInterface, in chunks, ….
    """
    text = model.config.get_text_config(decoder=True)
    _check_config(text, name)
    modules = [module for module in model.modules() if isinstance(getattr(module, "layer_idx", None), int)]
    if any(module in attached for module in modules) or text._attn_implementation == IMPLEMENTATION:
        raise UserError(f"{name} has a Bridge attached already: leave its `with` block first")
    _register()
    previous = _for_text_decoder(model.config, text, text._attn_implementation)
    for module in modules:
        attached[module] = runner
    model.set_attn_implementation(_for_text_decoder(model.config, text, IMPLEMENTATION))
    if text._attn_implementation != IMPLEMENTATION:
        detach(model, runner, previous)
        raise UserError(f"{type(model).__name__} does not use transformers' AttentionInterface: not supported")
    return previous


def detach(model: Any, runner: AttentionRunner, previous: Implementation) -> None:
    """Give a model its own attention back; previous: what `attach` returned."""
    for module in [module for module, attached_to in attached.items() if attached_to is runner]:
        del attached[module]
    model.set_attn_implementation(previous)


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _mask)


def _for_text_decoder(top: Any, text: Any, name: str) -> Implementation:
    """Return what to hand to set_attn_implementation so that only the text decoder changes."""
    if text is top:
        return name
    return {key: name for key in top.sub_configs if getattr(top, key, None) is text}


def _check_config(config: Any, name: str) -> None:
    """Raise UserError for a text decoder's config with attention other than causal, full or of a sliding window."""
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if not getattr(config, "layer_types", None) and getattr(config, "attention_chunk_size", None):
        kinds.add("chunked_attention")
    if kinds:
        raise UserError(f"{name} has {', '.join(sorted(kinds))}; supported are full_attention and sliding_attention")
    if getattr(config, "is_encoder_decoder", False) or not getattr(config, "is_causal", True):
        raise UserError(f"{name} is no causal decoder: its attention is not supported")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: LayerMask | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Run transformers' attention function: q [B,Hq,Q,D], k/v [B,Hkv,K,D] -> ([B,Q,Hq,D] contiguous, None)."""
    runner = attached.get(module)
    if runner is None:
        raise UserError(
            f"{type(module).__name__} is set to {IMPLEMENTATION} but no Bridge is attached to its model: use `with Bridge(…)`, "
            "and a config object of its own for every model"
        )
    _check_call(module, query, key, value, dropout, kwargs)
    mask = _layer_mask(module, query, key, attention_mask)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    window = _window(module, mask, kwargs.get("sliding_window"))
    layer = int(getattr(module, "layer_idx", 0))
    if query.shape[2] == 1 and not runner.in_prompt:
        out = runner.decode(layer, query, key, value, scale=scale, window=window, key_mask=mask.key_mask)
    elif mask.key_mask is None:
        out = runner.attend(layer, query, key, value, scale=scale, window=window)
    else:
        raise UserError("padding before a question of a single token is not supported: run prompts one by one")
    return out.transpose(1, 2).contiguous(), None  # as transformers' own do: some models call .view on it


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction | None = None,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    **_: Any,
) -> LayerMask:
    """Return what transformers' mask asks for; at decode, with the 2-D mask [B,K] of the keys that are there."""
    try:
        if isinstance(q_offset, Tensor) or q_offset + q_length != kv_offset + kv_length:
            raise UserError("the keys reach past the last token, as in a StaticCache: use the default DynamicCache")
        window = window_of(mask_function, q_offset + q_length)
        if not allow_is_causal_skip:
            raise UserError("the model needs its attention mask written out (for an indexer, say): not supported")
        return LayerMask(kv_length, window, _key_mask(attention_mask, q_length, kv_length))
    except UserError as error:
        return LayerMask(kv_length, refusal=str(error))


def _key_mask(attention_mask: Tensor | None, q_length: int, kv_length: int) -> Tensor | None:
    """Return which keys are there [B,K] where that is to be honoured, at a step of decoding. Raises UserError for padding in a
    prompt."""
    if attention_mask is None:
        return None
    attention_mask = attention_mask[:, -kv_length:]
    if attention_mask.shape[1] != kv_length:
        raise UserError(f"attention_mask covers {attention_mask.shape[1]} tokens of {kv_length}: give all, or no mask")
    if q_length == 1:
        return attention_mask if kv_length > 1 else None
    if devices.is_capturing():
        return None  # of a CUDA graph, whose maker gives a mask of ones (harness.training.gates.capture)
    if not bool(attention_mask.all()):  # waits for the device, once a prompt, and only where a mask is given
        raise UserError(
            "padding in the prompt is not supported: a selection would count padding as text; run prompts of different "
            "lengths one by one (harness.models.generate does); where transformers' generate takes a token of the text for "
            "padding, give it attention_mask=torch.ones_like(input_ids)"
        )
    return None


def _layer_mask(module: nn.Module, q: Tensor, k: Tensor, mask: LayerMask | Tensor | None) -> LayerMask:
    """Return the mask of a layer. Raises UserError for one that is not of `_mask`, or not for these keys."""
    if isinstance(mask, Tensor):
        raise UserError(f"an attention mask of shape {list(mask.shape)} for {q.shape[2]} queries is not supported")
    if mask is None:
        raise UserError(f"{type(module).__name__} attends without a mask of transformers' masking_utils: not supported")
    if mask.refusal is not None:
        raise UserError(mask.refusal)
    if mask.keys != k.shape[2]:
        raise UserError(f"{type(module).__name__} has a mask for {mask.keys} keys and {k.shape[2]} keys: not supported")
    return mask


def _window(module: nn.Module, mask: LayerMask, argument: Any) -> int | None:
    """Return the window of a layer: what its mask asks for. Raises UserError where the argument for kernels that get no mask,
    sliding_window, is another."""
    if argument is not None and argument != mask.window:
        raise UserError(
            f"{type(module).__name__} has sliding_window={argument} but a mask of {mask.window or 'all'} keys: which is meant?"
        )
    return mask.window


def _check_call(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout: float,
    kwargs: dict[str, Any],
) -> None:
    """Raise UserError for a call whose result the runner would not compute as transformers does."""
    for name, value in kwargs.items():
        if value is not None and value is not False and name not in _NEUTRAL:
            meaning = _UNSUPPORTED.get(name, "an argument of attention that may change it")
            raise UserError(f"{meaning} ({name}) in {type(module).__name__} is not supported")
    if dropout > 0:
        raise UserError(f"attention dropout {dropout} is not supported: put the model in eval mode")
    if kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise UserError(f"{type(module).__name__} is not causal: not supported")
    if q.shape[2] > k.shape[2]:
        raise UserError(f"{q.shape[2]} queries and {k.shape[2]} keys: cross-attention is not supported")
    if v.shape[-1] != q.shape[-1]:
        raise UserError(f"value heads of {v.shape[-1]} and key heads of {q.shape[-1]} elements: they must be equal")
