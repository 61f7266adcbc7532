"""The bridge to transformers: runs a method inside any decoder that uses the AttentionInterface.

    with Bridge(loaded, method) as bridge:
        loaded.model(ids)          # selection and sparse kernel at prefill, dense attention at decode
    bridge.stats()

decoding= gives it a method of decoding too (see harness.decoding), method=None or one of prefill beside it. A chunk of a prompt
(1 < Q < K) is the method's as a whole prompt is, unless it runs `with bridge.in_full()`.

transformers calls one registered function for every attention layer, with q [B,Hq,Q,D] and k/v [B,Hkv,K,D] post-RoPE,
and one registered mask function for every forward pass. Both are registered once; which Bridge a layer belongs to is
looked up by its module, so several models can have one each at the same time. Nothing is patched.
Whatever these functions can't honour (padding at prefill, softcap, sinks, …) raises UserError: never a wrong answer.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypedDict
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from harness.clock import Mark, elapsed_ms, mark, sync
from harness.decoding import Decoder
from harness.errors import UserError
from harness.models import LoadedModel
from kernels.dense import dense_attention, resolve_dense, sliding_window_attention
from kernels.sparse_attention import Choice, SparseIndex, attend, resolve_kernel
from methods.base import LayerInputs, Method, Rope
from methods.decode.base import DecodeMethod

NAME = "sparse_attention_harness"
"""The attention implementation's name. transformers reads meaning into "flash", "sdpa", "flex_attention" and "/"."""

MASKED = ("sdpa", "sdpa_math", "sdpa_efficient", "reference")
"""Dense kernels with a place for a key mask; where another one is asked for, a padded batch is decoded with "sdpa"."""

SLIDING = "sliding_window"
"""Kernel name that the stats give to the layers of a sliding window."""

Observer = Callable[[int, Tensor, Tensor, Tensor, float], None]
"""Called with (layer, q, k, v, scale) before the attention of every global layer at prefill."""

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

_attached: WeakKeyDictionary[nn.Module, Bridge] = WeakKeyDictionary()


class LayerStats(TypedDict):
    """What one layer did at prefill since the last reset; decode steps don't count (`Decoder.take_densities`), and of what ran
    in full (`Bridge.in_full`) only the kernel and the call.

    densities: kept ÷ causal blocks, one value a call, mean over batch and heads; 1.0 where dense attention ran; empty
    for a layer of a sliding window. token_densities: the same of (query, key) pairs. Times are medians in milliseconds,
    None without timer=True.
    """

    layer: int
    calls: int
    density: float | None
    densities: list[float]
    token_densities: list[float]
    kernel: str
    selection_ms: float | None
    attention_ms: float | None


@dataclass
class _LayerLog:
    densities: list[Tensor | float] = field(default_factory=list)
    token_densities: list[Tensor | float] = field(default_factory=list)
    kernels: Counter[str] = field(default_factory=Counter)
    marks: list[tuple[Mark, Mark, Mark]] = field(default_factory=list)


class Bridge:
    """Attaches a method to a model for as long as the `with` block lasts.

    method None: dense attention in every layer at prefill; decoding None: at decode. sparse_kernel, dense_kernel,
    decode_kernel: names of kernels/, or "auto"; what ran at prefill is in the stats, and at decode in decode_kernels (see
    MASKED). timer: take times of selection and attention of every prefill layer call (no host sync until stats). observer:
    see Observer. record=False: keep no densities, for timing a whole prefill.
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
    ) -> None:
        self.loaded = loaded
        self.method = None if method is None else method.to(loaded.device)
        self.sparse_kernel = sparse_kernel
        self.dense_kernel = resolve_dense(dense_kernel, device=loaded.device, dtype=loaded.dtype, head_dim=loaded.head_dim)
        self.decoder = None if decoding is None else Decoder(loaded, decoding, kernel=decode_kernel, record=record)
        self.decode_kernels: set[str] = set()
        self.full = False
        self._hook: Any = None
        self._timer = timer
        self._observer = observer
        self._record = record
        self._logs: dict[int, _LayerLog] = {}
        self._ropes: dict[int, Rope] = {}
        self._previous: str | dict[str, str] | None = None

    # -- attaching ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Bridge:
        model = self.loaded.model
        config = model.config.get_text_config(decoder=True)
        _check_config(config, self.loaded.name)
        modules = [m for m in model.modules() if isinstance(getattr(m, "layer_idx", None), int)]
        if any(m in _attached for m in modules) or config._attn_implementation == NAME:
            raise UserError(f"{self.loaded.name} has a Bridge attached already: leave its `with` block first")
        _register()
        previous = config._attn_implementation
        self._previous = _implementation(model.config, config, previous)
        for module in modules:
            _attached[module] = self
        model.set_attn_implementation(_implementation(model.config, config, NAME))
        if config._attn_implementation != NAME:
            self.__exit__()
            raise UserError(f"{type(model).__name__} does not use transformers' AttentionInterface: not supported")
        if self.decoder is not None:
            self._hook = self.decoder.follow(model.get_decoder())
        return self

    def __exit__(self, *_: object) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        for module in [m for m, bridge in _attached.items() if bridge is self]:
            del _attached[module]
        if self._previous is not None:
            self.loaded.model.set_attn_implementation(self._previous)
            self._previous = None

    @contextmanager
    def in_full(self) -> Iterator[None]:
        """While it lasts, dense attention in every layer, whatever the methods: to a question that follows a context which was
        prefilled without it, of one token or many. The method sees nothing of it, and the densities don't count it."""
        before, self.full = self.full, True
        try:
            yield
        finally:
            self.full = before

    # -- one attention call ------------------------------------------------------------------------------------------

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
        """Attention of one layer over a prompt or a chunk of it (Q > 1, or any Q in full). Returns [B,Hq,Q,D]."""
        if window is not None and k.shape[2] > window:
            self._log(layer).kernels[SLIDING] += 1
            return sliding_window_attention(q, k, v, window=window, scale=scale)
        if self.decoder is not None:
            self.decoder.prompt(layer)
        if self.full:
            self._log(layer).kernels[self.dense_kernel] += 1
            return dense_attention(q, k, v, scale=scale, kernel=self.dense_kernel)
        if self._observer is not None:
            self._observer(layer, q, k, v, scale)
        start = self._mark()
        choice, ran = self._select(layer, q, k, scale), None
        selected = self._mark()
        if choice is None:
            kernel = self.dense_kernel
            out = dense_attention(q, k, v, scale=scale, kernel=kernel)
        else:
            kernel = self._kernel(choice, heads=q.shape[1])
            out, ran = attend(q, k, v, choice, scale=scale, kernel=kernel)
        self._note(layer, kernel, ran, (start, selected, self._mark()))
        return out

    def decode(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, key_mask: Tensor | None
    ) -> Tensor:
        """Attention of one new token per sequence. key_mask [B,K] bool, False where there is no key."""
        if window is not None and k.shape[2] > window:
            k, v = k[:, :, -window:], v[:, :, -window:]
            key_mask = None if key_mask is None else key_mask[:, -window:]
        elif self.decoder is not None:
            rope = self._rope(layer) if self.decoder.method.needs_rope else None
            index, starts = self.decoder.select(layer, q, k, scale=scale, key_mask=key_mask, rope=rope)
            if index is not None:
                self.decode_kernels.add(f"sparse {self.decoder.kernel}")
                return self.decoder.attend(q, k, v, index, starts, scale=scale)
        kernel = self.dense_kernel if key_mask is None or self.dense_kernel in MASKED else "sdpa"
        self.decode_kernels.add(kernel)
        return dense_attention(q, k, v, scale=scale, kernel=kernel, key_mask=key_mask)

    def _select(self, layer: int, q: Tensor, k: Tensor, scale: float) -> Choice | None:
        if self.method is None:
            return None
        rope = self._rope(layer) if self.method.needs_rope else None
        return self.method.select(LayerInputs(q=q, k=k, layer=layer, scale=scale, rope=rope))

    def _rope(self, layer: int) -> Rope:
        if layer not in self._ropes:
            from harness.rope import ModelRope

            self._ropes[layer] = ModelRope(self.loaded.model, layer)
        return self._ropes[layer]

    def _kernel(self, choice: Choice, *, heads: int) -> str:
        loaded = self.loaded
        return resolve_kernel(
            self.sparse_kernel, choice, device=loaded.device, dtype=loaded.dtype, head_dim=loaded.head_dim, heads=heads
        )  # fmt: skip

    # -- what happened -----------------------------------------------------------------------------------------------

    def _log(self, layer: int) -> _LayerLog:
        return self._logs.setdefault(layer, _LayerLog())

    def _mark(self) -> Mark:
        return mark(self.loaded.device) if self._timer else 0.0

    def _note(self, layer: int, kernel: str, index: SparseIndex | None, marks: tuple[Mark, Mark, Mark]) -> None:
        log = self._log(layer)
        log.kernels[kernel] += 1
        if self._record:
            log.densities.append(1.0 if index is None else index.density().mean())
            log.token_densities.append(1.0 if index is None else index.token_density().mean())
        if self._timer:
            log.marks.append(marks)

    def reset(self) -> None:
        """Forget what has been recorded so far."""
        self._logs.clear()
        self.decode_kernels.clear()
        if self.decoder is not None:
            self.decoder.take_densities()

    def stats(self) -> list[LayerStats]:
        """What each layer that ran did at prefill, in the order of the layers. Waits for the device."""
        sync(self.loaded.device)
        return [_layer_stats(layer, log) for layer, log in sorted(self._logs.items())]

    def prefill_densities(self, *, tokens: bool = False) -> list[float]:
        """Density (with `tokens`: token density) of every forward pass over more than one token, in order: the mean over its
        global layers.

        One value per prompt where each was prefilled alone, as `generate` does, and in one piece under the method: what ran in
        full counts in none.
        """
        every = [stats["token_densities" if tokens else "densities"] for stats in self.stats()]
        layers = [densities for densities in every if densities]
        if len({len(densities) for densities in layers}) > 1:
            raise UserError(
                "layers with a sliding window were global in some prompts and not in others (the prompts straddle the "
                "window's length): call reset() and prefill_densities() for each prompt"
            )
        return [statistics.fmean(call) for call in zip(*layers, strict=True)]


def _layer_stats(layer: int, log: _LayerLog) -> LayerStats:
    measured = [*log.densities, *log.token_densities]
    tensors = [d for d in measured if isinstance(d, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else [])  # one transfer for all calls
    values = [float(next(read)) if isinstance(d, Tensor) else d for d in measured]
    densities = values[: len(log.densities)]
    return LayerStats(
        layer=layer,
        calls=sum(log.kernels.values()),
        density=statistics.fmean(densities) if densities else None,
        densities=densities,
        token_densities=values[len(log.densities) :],
        kernel="+".join(sorted(log.kernels)),
        selection_ms=statistics.median(elapsed_ms(a, b) for a, b, _ in log.marks) if log.marks else None,
        attention_ms=statistics.median(elapsed_ms(b, c) for _, b, c in log.marks) if log.marks else None,
    )


# -- what transformers calls -----------------------------------------------------------------------------------------


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: q [B,Hq,Q,D], k/v [B,Hkv,K,D] -> ([B,Q,Hq,D], None)."""
    bridge = _attached.get(module)
    if bridge is None:
        raise UserError(
            f"{type(module).__name__} is set to {NAME} but no Bridge is attached to its model: use `with Bridge(…)`, "
            "and a config object of its own for every model"
        )
    step = query.shape[2] == 1 and not bridge.full  # a question of a single token is no step of decoding
    _check_call(module, query, key, value, attention_mask, dropout, kwargs, step=step)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    window = kwargs.get("sliding_window")
    layer = int(getattr(module, "layer_idx", 0))
    if step:
        out = bridge.decode(layer, query, key, value, scale=scale, window=window, key_mask=attention_mask)
    else:
        out = bridge.attend(layer, query, key, value, scale=scale, window=window)
    return out.transpose(1, 2), None


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    **_: Any,
) -> Tensor | None:
    """transformers' mask function: None, or at decode the 2-D mask [B,K] of the keys that are there."""
    if isinstance(q_offset, Tensor) or q_offset + q_length != kv_offset + kv_length:
        raise UserError("the keys reach past the last token, as in a StaticCache: use the default DynamicCache")
    if use_vmap or not allow_is_causal_skip:
        raise UserError("a mask other than causal (packed sequences, image tokens, …) is not supported")
    if attention_mask is None:
        return None
    attention_mask = attention_mask[:, -kv_length:]
    if attention_mask.shape[1] != kv_length:
        raise UserError(f"attention_mask covers {attention_mask.shape[1]} tokens of {kv_length}: give all, or no mask")
    if q_length == 1:
        return attention_mask if kv_length > 1 else None
    if not bool(attention_mask.all()):  # waits for the device, once a prompt, and only where a mask is given
        raise UserError(
            "padding in the prompt is not supported: a selection would count padding as text; run prompts of different "
            "lengths one by one (harness.generate does)"
        )
    return None


def _implementation(top: Any, text: Any, name: str) -> str | dict[str, str]:
    """What to hand to set_attn_implementation so that only the text decoder changes."""
    if text is top:
        return name
    return {key: name for key in top.sub_configs if getattr(top, key, None) is text}


def _check_config(config: Any, name: str) -> None:
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if not getattr(config, "layer_types", None) and getattr(config, "attention_chunk_size", None):
        kinds.add("chunked_attention")
    if kinds:
        raise UserError(f"{name} has {', '.join(sorted(kinds))}; supported are full_attention and sliding_attention")
    if getattr(config, "is_encoder_decoder", False) or not getattr(config, "is_causal", True):
        raise UserError(f"{name} is no causal decoder: its attention is not supported")


def _check_call(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout: float,
    kwargs: dict[str, Any],
    *,
    step: bool,
) -> None:
    for name, what in _UNSUPPORTED.items():
        given = kwargs.get(name)
        if given is not None and given is not False:
            raise UserError(f"{what} ({name}) in {type(module).__name__} is not supported")
    if dropout > 0:
        raise UserError(f"attention dropout {dropout} is not supported: put the model in eval mode")
    if kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise UserError(f"{type(module).__name__} is not causal: not supported")
    if q.shape[2] > k.shape[2]:
        raise UserError(f"{q.shape[2]} queries and {k.shape[2]} keys: cross-attention is not supported")
    if v.shape[-1] != q.shape[-1]:
        raise UserError(f"value heads of {v.shape[-1]} and key heads of {q.shape[-1]} elements: they must be equal")
    if mask is not None and (mask.ndim != 2 or not step):
        raise UserError(f"an attention mask of shape {list(mask.shape)} for {q.shape[2]} queries is not supported")
