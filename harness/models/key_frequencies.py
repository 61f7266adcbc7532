"""The frequencies that turned the keys of a cache, where they depend on the length: what undoes RoPE needs a single set."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from harness.core.errors import UserError
from harness.models.rope_lengths import assumed_length, model_switches


class KeyFrequencies:
    """Notes the frequencies of every forward pass of a model, and those of the keys that lie in its cache already."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._switches = sorted(model_switches(model), key=lambda switch: switch.length)
        self._of_caches: WeakKeyDictionary[Any, set[tuple[int, ...]]] = WeakKeyDictionary()
        self._now: set[tuple[int, ...]] = set()

    def follow(self) -> Any:
        """Note every forward pass from now on; returns what `remove()` ends it, None for a model without switches."""
        if not self._switches:
            return None
        return self._model.get_decoder().register_forward_pre_hook(self._note, with_kwargs=True)

    def check(self) -> None:
        """Raise UserError where the keys of this pass, those in the cache among them, have several sets of frequencies."""
        if len(self._now) > 1:
            lengths = " and ".join(str(switch.length) for switch in self._switches)
            raise UserError(
                f"the RoPE of {type(self._model).__name__} has other frequencies past {lengths} tokens, and keys of both kinds "
                "are in use: a method that undoes RoPE can't run on a sequence that crosses this while it grows"
            )

    def _note(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        inputs = args[0] if args else kwargs.get("input_ids")
        rows, tokens = (kwargs["inputs_embeds"] if inputs is None else inputs).shape[:2]
        positions = kwargs.get("position_ids")
        lengths = [past + tokens]
        if rows > 1 and positions is not None and positions.ndim > 1 and positions.shape[-2] == rows:
            lengths = (positions.reshape(-1, rows, tokens).amax((0, 2)) + 1).tolist()  # waits for the device
        before: set[tuple[int, ...]] = set()
        if past > 0:  # of a cache that was filled by others: as one prompt
            before = self._of_caches.get(cache) or {self._frequencies(past)}
        self._now = before | {self._frequencies(length) for length in lengths}
        if cache is not None:
            self._of_caches[cache] = self._now

    def _frequencies(self, length: int) -> tuple[int, ...]:
        """Return numbers that are equal for lengths with equal frequencies."""
        length = max(length, assumed_length(self._model))
        return tuple(switch.frequencies(length) for switch in self._switches)
