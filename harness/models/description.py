"""What is known of a model before its weights are read: config, tokenizer, and its modules as empty shells.

A command that can't work is told so at once, by the checks that run again once the model is there: loading takes minutes.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from harness.models.loading import LoadedModel, ModelConfig, load_tokenizer, wrap_model
from harness.models.source import model_folder


def describe_model(config: ModelConfig) -> LoadedModel | None:
    """Return a model without weights (on torch's device "meta", whatever its `device` says), as far as checks look at one.

    Its `revision_hash` is "none". Returns None where transformers makes no model without the weights, or none that runs (some
    mixtures of experts): loading says why, if it fails too. Raises UserError for what is no model, for a tokenizer that can't
    be had, and for options that its chat template does not read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM  # seconds to import

    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = config.dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    folder = model_folder(config.path)
    tokenizer = load_tokenizer(config.path, config.chat)
    try:
        shape = AutoConfig.from_pretrained(config.path if folder is None else str(folder))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(shape, dtype=dtype)
        described = wrap_model(
            model, tokenizer, name=config.name, device="meta", dtype=dtype, path=folder, max_length=config.max_length
        )
    except Exception:  # a foreign class may not run as a shell, and all the same with its weights
        return None
    return replace(described, device=device, source=config.path)
