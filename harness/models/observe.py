"""Dense prefills that show every layer's queries, keys and values: what a method would see, on a model's own activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import torch
from attention_kernels.skip_softmax import SkipRule
from attention_kernels.sparse_attention import Choice, SparseIndex, attend
from torch import Tensor

from harness.models.bridge import Bridge, Observer
from harness.models.kernel_choice import sparse_kernel_of
from harness.models.loading import LoadedModel
from harness.models.rope import ModelRope
from methods.parts.base import LayerInputs, Method
from methods.parts.prompt_chunks import ChunkedPrompt


class PrefillDone(Exception):
    """Raised by an observer that needs no further layer of this prompt. A forward pass can't be ended in any other way."""


@torch.inference_mode()
def dense_prefill(
    loaded: LoadedModel,
    prompts: Iterable[Sequence[int]],
    observer: Observer,
    *,
    dense_kernel: str = "auto",
    after_prompt: Callable[[], None] | None = None,
) -> None:
    """Prefill prompts (token ids) one by one with dense attention and show every global layer to `observer`.

    The observer is called with (layer, q [1,Hq,N,D], k [1,Hkv,N,D], v, scale), post-RoPE, before the attention of the layer, so
    that one layer's tensors live at a time. Layers whose sliding window is shorter than the prompt are not shown. An observer
    that raises `PrefillDone` ends the prefill of its prompt. after_prompt: called when a prompt is through.
    """
    with Bridge(loaded, None, dense_kernel=dense_kernel, observer=observer, record=False):
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], dtype=torch.int64, device=loaded.device)
            with suppress(PrefillDone):
                loaded.model(input_ids=ids, use_cache=False, logits_to_keep=1)
            if after_prompt is not None:
                after_prompt()


def layer_inputs(
    loaded: LoadedModel,
    method: Method,
    layer: int,
    q: Tensor,
    k: Tensor,
    scale: float,
    prompt: ChunkedPrompt | None = None,
) -> LayerInputs:
    """Return what `method` sees of a layer: post-RoPE q [B,Hq,Q,D] and k [B,Hkv,K,D], the prompt that the queries are a chunk
    of, if they are, and the layer's RoPE where it needs that.

    Raises UserError where the method needs the RoPE and the model's is of a kind that can't be undone (`ModelRope`).
    """
    rope = ModelRope(loaded.model, layer) if method.needs_rope else None
    return LayerInputs(q=q, k=k, layer=layer, scale=scale, rope=rope, prompt=prompt)


def global_layers(loaded: LoadedModel, prompt: Sequence[int], *, dense_kernel: str = "auto") -> list[int]:
    """Return the layers that attend to the whole of a prompt (token ids), in their order; found in a dense prefill of it."""
    layers: list[int] = []
    dense_prefill(loaded, [prompt], lambda layer, *_: layers.append(layer), dense_kernel=dense_kernel)
    return layers


def what_runs(
    loaded: LoadedModel, q: Tensor, k: Tensor, v: Tensor, choice: Choice, *, scale: float, kernel: str
) -> SparseIndex:
    """Return what a choice comes to in one layer: itself, or of a rule that the kernel decides by what the kernel kept."""
    if not isinstance(choice, SkipRule):
        return choice
    kernel = sparse_kernel_of(loaded, kernel, choice, heads=q.shape[1], head_dim=q.shape[3])
    return attend(q, k, v, choice, scale=scale, kernel=kernel)[1]
