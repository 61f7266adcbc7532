"""A model whose RoPE is stretched by YaRN (arXiv 2309.00071), so that it takes longer texts than it was trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.core.errors import UserError
from harness.models.loading import LoadedModel


def check_extends(config: Any, name: str, factor: float) -> None:
    """Raise UserError where YaRN can't stretch the RoPE that a model's config describes; `factor` 1 leaves any as it is."""
    if factor == 1:
        return
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type")
    if kind is None:
        raise UserError(f"{name}: its layers do not share one RoPE, which YaRN could stretch; job.factor=1 leaves it as it is")
    if kind != "default":
        raise UserError(f"{name}: its RoPE is scaled already ({kind}): take the model from before that, or job.factor=1")


def extend(loaded: LoadedModel, factor: float, trained_length: int | None) -> LoadedModel:
    """Stretch the RoPE of a model, in place, and return it with its new longest text: factor × trained_length tokens.

    trained_length: of the texts that it was trained on; None: max_position_embeddings of its config. Its config then says so,
    as transformers reads it. Raises UserError as `check_extends` does, and where there is no rotary module to make anew.
    """
    config = loaded.model.config.get_text_config(decoder=True)
    check_extends(config, loaded.name, factor)
    if factor == 1:
        return loaded
    decoder = loaded.model.get_decoder()
    if not hasattr(decoder, "rotary_emb"):
        raise UserError(f"{type(loaded.model).__name__} has no rotary_emb: YaRN can't be given to it")
    trained = trained_length or int(config.max_position_embeddings)
    longest = int(trained * factor)
    yarn = {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": trained}
    config.rope_parameters = dict(config.rope_parameters) | yarn
    config.max_position_embeddings = longest
    decoder.rotary_emb = type(decoder.rotary_emb)(config=config).to(loaded.device)
    return replace(loaded, max_length=longest)
