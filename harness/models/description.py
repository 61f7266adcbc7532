"""What is known of a model before its weights are read: config, tokenizer, and its modules as empty shells.

A command that can't work is told so at once, by the checks that run again once the model is there: loading takes minutes.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from harness.core.errors import UserError
from harness.models.loading import LoadedModel, ModelConfig, load_tokenizer, wrap_drawn, wrap_model
from harness.models.shape import empty_model
from harness.models.source import model_folder


def describe_model(config: ModelConfig) -> LoadedModel | None:
    """Return a model without weights (on torch's device "meta", whatever its `device` says), as far as checks look at one.

    Its `revision_hash` is "none", but for a model by shape. Returns None where transformers makes no model without the weights,
    or none that runs (some mixtures of experts): loading says why, if it fails too. Raises UserError for what is no model, a
    tokenizer that can't be had, options that its chat template does not read, and a shape that makes no model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM  # seconds to import

    device, dtype = config.place()
    if config.shape is not None:
        empty = empty_model(config.shape, config.name, dtype)
        try:
            return replace(wrap_drawn(config, empty, "meta"), device=device)
        except UserError as error:
            if error.__cause__ is None:  # of what is not supported, with weights or without
                raise
            return None
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
