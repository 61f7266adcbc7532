"""The line that refuses a text which is too long for a model, and names the setting that allows it."""

from __future__ import annotations

from harness.core.errors import UserError
from harness.models.loading import LoadedModel
from harness.models.max_length import scaled_ropes


def check_length(loaded: LoadedModel, tokens: int, what: str, *, advice: str | None = None) -> None:
    """Raise UserError where a text of `tokens` tokens doesn't fit. what: the setting or prompt that has it, the line's start.
    advice: what else would be right; by default, a shorter text."""
    if tokens > loaded.max_length:
        reach = f"{loaded.name} has a context of {loaded.max_length} tokens"
        shorter = f"choose {loaded.max_length} or less" if advice is None else advice
        raise UserError(f"{what}: {'; '.join(filter(None, (reach, shorter, _longer(loaded, tokens))))}")


def _longer(loaded: LoadedModel, tokens: int) -> str:
    """Return by which setting a text of `tokens` tokens is allowed that the model's config does not allow."""
    if loaded.asked_length is not None:
        return f"model.max_length={loaded.asked_length} says so"
    config = loaded.model.config.get_text_config(decoder=True)
    for kind, factor, original in scaled_ropes(config):
        if not original and factor > 1:
            return (
                f"its {kind} RoPE has the factor {factor:g}: if {loaded.max_length} is the length before that, "
                f"say model.max_length={int(loaded.max_length * factor)}"
            )
    return f"model.max_length={tokens} allows more than its config says"
