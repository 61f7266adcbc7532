"""The bridge to transformers: runs a method inside any decoder that uses the AttentionInterface.

    with Bridge(loaded, method) as bridge:
        loaded.model(ids)          # selection and sparse kernel at prefill, dense attention at decode
    bridge.stats()

decoding= gives it a method of decoding too (see harness.models.decoder), method=None or one of prefill beside it. A chunk of a
prompt (1 < Q < K) is the method's as a whole prompt is, unless it runs `with bridge.in_full()`. The chunks of one prompt run
`with bridge.chunked(tokens)`: the method then knows how long it is, and keeps what it pooled.

Nothing is patched: transformers calls one registered function for every attention layer (`harness.models.attention_interface`),
which hands q [B,Hq,Q,D] and k/v [B,Hkv,K,D], post-RoPE, to the Bridge of that layer's module. What ran is kept by layer
(`harness.models.layer_stats`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from attention_kernels.dense import dense_attention, sliding_window_attention
from attention_kernels.sparse_attention import Choice, SparseIndex, attend
from torch import Tensor

from harness.core.clock import Mark, mark, sync
from harness.core.time_limit import check_time
from harness.models.attention_interface import Implementation, attach, detach
from harness.models.decoder import Decoder
from harness.models.kernel_choice import dense_kernel_of, sparse_kernel_of
from harness.models.layer_stats import LayerLog, LayerStats, mean_over_layers, read_log
from harness.models.loading import LoadedModel
from harness.models.rope import LayerRopes
from methods.decode.parts.base import DecodeMethod
from methods.parts.base import LayerInputs, Method
from methods.parts.prompt_chunks import ChunkedPrompt

MASKED = ("sdpa", "sdpa_math", "sdpa_efficient", "reference")
"""Dense kernels with a place for a key mask; where another one is asked for, a padded batch is decoded with "sdpa"."""

SLIDING = "sliding_window"
"""Kernel name that the stats give to the layers of a sliding window."""
NO_ATTENTION = "none"
"""Kernel name that the stats give to the layers whose attention is left out."""

Observer = Callable[[int, Tensor, Tensor, Tensor, float], None]
"""Called with (layer, q [B,Hq,Q,D], k [B,Hkv,K,D], v, scale) before the attention of every global layer at prefill."""


@dataclass
class LayerChoices:
    """What the method chose last in each layer at prefill; while `held`, the layers attend to that again and no method is
    asked."""

    by_layer: dict[int, Choice | None] = field(default_factory=dict)
    held: bool = False


class Bridge:
    """Attaches a method to a model for as long as the `with` block lasts.

    method None: dense attention in every layer at prefill; decoding None: at decode. sparse_kernel, dense_kernel,
    decode_kernel: names of kernels/, or "auto"; what ran at prefill is in the stats, and at decode in decode_kernels (see
    MASKED). timer: take times of selection and attention of every prefill layer call (no host sync until stats). observer:
    see Observer. record=False: keep no densities, for timing a whole prefill. choices: see LayerChoices.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        method: Method | None,
        *,
        sparse_kernel: str = "auto",
        dense_kernel: str = "auto",
        timer: bool = False,
        observer: Observer | None = None,
        record: bool = True,
        decoding: DecodeMethod | None = None,
        decode_kernel: str = "auto",
        choices: LayerChoices | None = None,
    ) -> None:
        self.loaded = loaded
        self.method = None if method is None else method.to(loaded.device)
        self.sparse_kernel = sparse_kernel
        self.dense_kernel = dense_kernel_of(loaded, dense_kernel)
        self._dense_name, self._dense_kernels = dense_kernel, {loaded.head_dim: self.dense_kernel}
        self.decoder = None if decoding is None else Decoder(loaded, decoding, kernel=decode_kernel, record=record)
        self.decode_kernels: set[str] = set()
        self.full = False
        self._left_out = False
        self._chunked_tokens: int | None = None
        self._chunked: dict[int, ChunkedPrompt] = {}
        self._timer = timer
        self._observer = observer
        self._record = record
        self._choices = choices
        self._logs: dict[int, LayerLog] = {}
        self._ropes = LayerRopes(loaded.model)
        self._previous: Implementation | None = None
        self._hooks: list[Any] = []

    # -- attaching ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Bridge:
        model = self.loaded.model
        self._previous = attach(model, self, self.loaded.name)
        if self.decoder is not None:
            self._hooks.append(self.decoder.follow(model.get_decoder()))
        decoding = None if self.decoder is None else self.decoder.method
        if (self.method is not None and self.method.needs_rope) or (decoding is not None and decoding.needs_rope):
            self._hooks.append(self._ropes.follow())
        return self

    def __exit__(self, *_: object) -> None:
        while self._hooks:
            if (hook := self._hooks.pop()) is not None:
                hook.remove()
        if self._previous is not None:
            detach(self.loaded.model, self, self._previous)
            self._previous = None

    @contextmanager
    def in_full(self) -> Iterator[None]:
        """Attend densely in every layer while it lasts, whatever the methods: to a question that follows a context which was
        prefilled without it, of one token or many. The method sees nothing of it, and the densities don't count it."""
        before, self.full = self.full, True
        try:
            yield
        finally:
            self.full = before

    @contextmanager
    def without_attention(self) -> Iterator[None]:
        """Leave out the attention of a prompt, the selection with it, while it lasts: everything else of the model runs as it
        does, on values of no meaning. Layers past their sliding window keep theirs, as they do under every method."""
        before, self.full, self._left_out = (self.full, self._left_out), True, True  # full: a prompt of one token is a prompt
        try:
            yield
        finally:
            self.full, self._left_out = before

    @contextmanager
    def chunked(self, tokens: int) -> Iterator[None]:
        """Take all forward passes while it lasts for the chunks of one prompt of so many tokens, a single token among them. The
        densities count the prompt once."""
        self._chunked_tokens = tokens
        try:
            yield
        finally:
            self._chunked_tokens = None
            self._chunked.clear()
            for log in self._logs.values():
                log.join_chunks()

    def chunked_prompt(self, layer: int) -> ChunkedPrompt | None:
        """Return what a layer knows of the prompt whose chunk it sees; None where prompts run whole."""
        if self._chunked_tokens is None:
            return None
        return self._chunked.setdefault(layer, ChunkedPrompt(self._chunked_tokens))

    @property
    def in_prompt(self) -> bool:
        """Return whether a single query is of a prompt, no step of decoding: of a question in full, or a chunk."""
        return self.full or self._chunked_tokens is not None

    # -- one attention call ------------------------------------------------------------------------------------------

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
        """Return the attention [B,Hq,Q,D] of one layer over a prompt or a chunk of it (Q > 1, or any Q in full). Raises
        TimeIsUp where the time for it is over."""
        check_time()
        if window is not None and max(k.shape[2], self._chunked_tokens or 0) > window:  # as the whole prompt would
            self._log(layer).kernels[SLIDING] += 1
            return sliding_window_attention(q, k, v, window=window, scale=scale)
        if self._left_out:
            self._log(layer).kernels[NO_ATTENTION] += 1
            return q  # of the output's shape, and there already; zeros would draw less power in the products that follow
        if self.decoder is not None:
            self.decoder.forget(layer)  # its cache takes more than one token
        if self.full:
            kernel = self._dense_kernel(q)
            self._log(layer).kernels[kernel] += 1
            return dense_attention(q, k, v, scale=scale, kernel=kernel)
        if self._observer is not None:
            self._observer(layer, q, k, v, scale)
        start = self._mark()
        choice = self._select(layer, q, k, scale)
        selected = self._mark()
        index: SparseIndex | None
        if choice is None:
            kernel, index = self._dense_kernel(q), None
            out = dense_attention(q, k, v, scale=scale, kernel=kernel)
        else:
            kernel = sparse_kernel_of(self.loaded, self.sparse_kernel, choice, heads=q.shape[1], head_dim=q.shape[3])
            out, index = attend(q, k, v, choice, scale=scale, kernel=kernel)
        end = self._mark()
        log = self._log(layer)
        log.kernels[kernel] += 1
        if self._record and self._chunked_tokens is not None:
            log.add_chunk(index, q.shape[2], k.shape[2])
        elif self._record:
            log.add_density(index, q.shape[0])
        if self._timer:
            log.marks.append((start, selected, end))
        return out

    def _select(self, layer: int, q: Tensor, k: Tensor, scale: float) -> Choice | None:
        """Return what the method, if there is one, chooses of a layer; None for dense attention."""
        if self._choices is not None and self._choices.held:
            return self._choices.by_layer[layer]
        choice: Choice | None = None
        if self.method is not None:
            rope = self._ropes[layer] if self.method.needs_rope else None
            prompt = self.chunked_prompt(layer)
            choice = self.method.select(LayerInputs(q=q, k=k, layer=layer, scale=scale, rope=rope, prompt=prompt))
        if self._choices is not None:
            self._choices.by_layer[layer] = choice
        return choice

    def decode(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, key_mask: Tensor | None
    ) -> Tensor:
        """Return the attention [B,Hq,1,D] of one new token per sequence. key_mask [B,K] bool, False where there is no key.

        Raises TimeIsUp where the time for it is over."""
        check_time()
        if window is not None and k.shape[2] > window:
            k, v = k[:, :, -window:], v[:, :, -window:]
            key_mask = None if key_mask is None else key_mask[:, -window:]
        elif self.decoder is not None:
            rope = self._ropes[layer] if self.decoder.method.needs_rope else None
            index, starts = self.decoder.select(layer, q, k, scale=scale, key_mask=key_mask, rope=rope)
            if index is not None:
                self.decode_kernels.add(f"sparse {self.decoder.kernel_for(q, k)}")
                return self.decoder.attend(q, k, v, index, starts, scale=scale)
        kernel = self._dense_kernel(q)
        if key_mask is not None and kernel not in MASKED:
            kernel = "sdpa"
        self.decode_kernels.add(kernel)
        return dense_attention(q, k, v, scale=scale, kernel=kernel, key_mask=key_mask)

    def _dense_kernel(self, q: Tensor) -> str:
        """Return the dense kernel of a layer with queries q [B,Hq,Q,D], resolved once for each D."""
        head_dim = q.shape[3]
        if head_dim not in self._dense_kernels:
            self._dense_kernels[head_dim] = dense_kernel_of(self.loaded, self._dense_name, head_dim)
        return self._dense_kernels[head_dim]

    # -- what ran ----------------------------------------------------------------------------------------------------

    def _log(self, layer: int) -> LayerLog:
        return self._logs.setdefault(layer, LayerLog())

    def _mark(self) -> Mark:
        return mark(self.loaded.device) if self._timer else 0.0

    def reset(self) -> None:
        """Forget what has been recorded so far."""
        self._logs.clear()
        self.decode_kernels.clear()
        if self.decoder is not None:
            self.decoder.take_densities()

    def stats(self) -> list[LayerStats]:
        """Return what each layer that ran did at prefill, in the order of the layers. Waits for the device."""
        sync(self.loaded.device)
        return [read_log(layer, log) for layer, log in sorted(self._logs.items())]

    def prefill_densities(self, *, tokens: bool = False) -> list[float]:
        """Return the density (with `tokens`: token density) of every prompt, a row of a forward pass over more than one token,
        in order: the mean over its global layers.

        So they are in the order of `generate`'s prompts, which are prefilled alone or, neighbours of one length, together. What
        ran in full counts in none.
        """
        return mean_over_layers([stats["token_densities" if tokens else "densities"] for stats in self.stats()])
