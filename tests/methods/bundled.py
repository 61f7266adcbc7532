"""The layers of the bundled model on a real prompt, for tests of what papers claim about trained heads."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from harness.models.bridge import Bridge
from harness.models.loading import LoadedModel, ModelConfig, load_model
from harness.tasks.ruler.samples import get_samples
from harness.tasks.tokens import encode
from methods.parts.base import LayerInputs


@lru_cache(maxsize=1)
def model() -> LoadedModel:
    """Return the bundled model on the CPU."""
    return load_model(ModelConfig("bundled", "bundled", device="cpu"))


@lru_cache(maxsize=8)
def layers(task: str, length: int, index: int = 0) -> list[tuple[LayerInputs, Tensor]]:
    """Return (inputs, v [1,Hkv,K,D]) of every layer, in a dense prefill of one sample of a task."""
    loaded = model()
    sample = get_samples(task, loaded.tokenizer, length, index + 1, seed=5, cache_dir=None)[index]
    ids = torch.tensor([encode(loaded.tokenizer, sample.prompt)])
    inputs: list[tuple[LayerInputs, Tensor]] = []

    def observe(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
        inputs.append((LayerInputs(q=q, k=k, layer=layer, scale=scale), v))

    with torch.inference_mode(), Bridge(loaded, None, observer=observe, record=False):
        loaded.model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return inputs
