"""Loading a decoder and its tokenizer, from the bundled folder, a folder of the user's, or the hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from harness.core.chat_options import ChatOptions
from harness.core.errors import UserError
from harness.core.hub import find_hub
from harness.models.layer_shapes import LayerShape, global_shapes, probe_layers
from harness.models.max_length import max_length as longest_text
from harness.models.rope_lengths import separate_rows
from harness.models.shape import ModelShape, draw_model
from harness.models.source import check_model, model_folder, not_loaded
from harness.models.weight_checks import CHECKED_HERE, check_finite, check_stored_types, check_tensors, without_load_report
from harness.tasks.frozen_template import give


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and how to hold it. `path` is "bundled", a folder, or a hub id; `name` is what the rows call it.
    shape: of a model whose weights are drawn, which has no path ("").

    dtype None: float32 on a CPU, bfloat16 on CUDA. device None: CUDA where there is one. max_length: tokens of the longest
    text, None for what the model's config says. chat: what its chat template is given.
    """

    name: str
    path: str
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    max_length: int | None = None
    chat: ChatOptions = field(default_factory=ChatOptions)
    shape: ModelShape | None = None

    def place(self) -> tuple[torch.device, torch.dtype]:
        """Return the device and the dtype that are meant."""
        device = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return device, self.dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run: eval mode, no gradients, on its device.

    layer_shapes: the attention of each layer. heads (of queries), kv_heads and head_dim (elements): those of the first layer
    that attends to everything; other layers may have others.
    source: what it was asked for by: "bundled", a folder, or a hub id (None for a model made in memory). path: the folder it
    was read from (None if it came from none). revision_hash: the hub commit, or the SHA-256 of
    config.json and the weights. max_length: tokens its positions reach; asked_length: the same where the user has set it.
    shape: of a model whose weights were drawn at random, which has no tokenizer; None for any other.
    """

    model: Any
    tokenizer: Any
    name: str
    path: Path | None
    revision_hash: str
    max_length: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    layer_shapes: tuple[LayerShape, ...]
    device: torch.device
    dtype: torch.dtype
    source: str | None = None
    asked_length: int | None = None
    shape: ModelShape | None = None


def load_model(config: ModelConfig) -> LoadedModel:
    """Read model and tokenizer with transformers' Auto classes, or draw a model by shape. Raises UserError, one line, where
    that fails."""
    device, dtype = config.place()
    if config.shape is not None:
        return wrap_drawn(config, draw_model(config.shape, config.name, device, dtype), device)
    check_model(config.path)
    from transformers import AutoModelForCausalLM  # seconds to import

    folder = model_folder(config.path)
    source = config.path if folder is None else str(folder)
    offline = find_hub() if folder is None else None
    tokenizer = load_tokenizer(config.path, config.chat)
    try:
        with without_load_report():
            model, info = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **CHECKED_HERE)
    except Exception as error:  # whatever a library raises for a file that is not what it expects
        raise UserError(not_loaded(config.path, folder, error, offline)) from error
    check_tensors(model, info, source)
    commit = None
    if folder is None:
        folder, commit = _snapshot(config.path, model)
    check_stored_types(model, folder)
    revision = commit or revision_hash(folder)
    loaded = wrap_model(
        model,
        tokenizer,
        name=config.name,
        device=device,
        dtype=dtype,
        path=folder,
        revision=revision,
        max_length=config.max_length,
    )
    check_finite(loaded.model, source)
    return replace(loaded, source=config.path)


def wrap_drawn(config: ModelConfig, model: Any, device: torch.device | str) -> LoadedModel:
    """Wrap a model by shape, on the device that its weights are on (or "meta"). Raises UserError as `wrap_model` does."""
    assert config.shape is not None
    _, dtype = config.place()
    revision, longest = config.shape.hash, config.max_length
    loaded = wrap_model(model, None, name=config.name, device=device, dtype=dtype, revision=revision, max_length=longest)
    return replace(loaded, shape=config.shape)


def load_tokenizer(path: str, chat: ChatOptions | None = None) -> Any:
    """Load the tokenizer alone of a model: "bundled", a folder, or a hub id; `chat` is what its chat template is given from
    then on. Raises UserError as `load_model` does, and for an option that the template does not read."""
    check_model(path)
    from transformers import AutoTokenizer

    folder = model_folder(path)
    offline = find_hub() if folder is None else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(path if folder is None else str(folder))
    except Exception as error:  # as above
        raise UserError(not_loaded(path, folder, error, offline)) from error
    return give(tokenizer, chat or ChatOptions(), path)


def wrap_model(
    model: Any,
    tokenizer: Any,
    *,
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    path: Path | None = None,
    revision: str = "none",
    max_length: int | None = None,
) -> LoadedModel:
    """Wrap a transformers model that is in memory already: it is moved to device and dtype, and set to eval.

    name: what rows call it. path, revision: see LoadedModel; max_length: see ModelConfig. Raises UserError where model and
    tokenizer are no pair, for a model whose attention is of a kind that can't be measured, and for a length that its positions
    don't reach.
    """
    device = torch.device(device)
    config = model.config.get_text_config(decoder=True)
    vocabulary = 0 if tokenizer is None else len(tokenizer)
    if vocabulary > config.vocab_size:
        raise UserError(f"{name}: the tokenizer has {vocabulary} tokens, the model {config.vocab_size}: not a pair")
    model = _with_dtype(model, dtype).to(device).eval().requires_grad_(False)
    shapes = probe_layers(model, name)
    shape = global_shapes(shapes)[0]
    separate_rows(model)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        path=path,
        revision_hash=revision,
        max_length=longest_text(config, max_length, name),
        layers=max(int(config.num_hidden_layers), shapes[-1].layer + 1),  # a block of some kinds has several
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        layer_shapes=shapes,
        device=device,
        dtype=dtype,
        asked_length=max_length,
    )


def _with_dtype(model: Any, dtype: torch.dtype) -> Any:
    """Return the model with its weights in a dtype, as from_pretrained would hold it: what is no weight keeps its own. RoPE's
    frequencies are float32 in any dtype; in bfloat16 they would turn the last tokens of a long text by other angles."""
    if model.dtype != dtype:
        for tensor in model.state_dict(keep_vars=True).values():
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
    return model


def model_shape(loaded: LoadedModel) -> dict[str, int]:
    """Return the sizes by which a method knows whether a file is of this model: layers, heads, KV heads, elements of a head.

    Raises UserError for a model whose global layers differ in these: what is trained or searched is of one size.
    """
    sizes = {shape.heads_text for shape in global_shapes(loaded.layer_shapes)}
    if len(sizes) > 1:
        raise UserError(
            f"the layers of {loaded.name} differ ({', '.join(sorted(sizes))}): trained weights and searched heads are for "
            "models whose layers are alike; choose a method that needs neither"
        )
    return {"layers": loaded.layers, "heads": loaded.heads, "kv_heads": loaded.kv_heads, "head_dim": loaded.head_dim}


def local_layers(loaded: LoadedModel) -> frozenset[int]:
    """Return the layers of a sliding window in a model that has global ones too: past the window they are never sparse."""
    local = frozenset(shape.layer for shape in loaded.layer_shapes if shape.window is not None)
    return local if len(local) < len(loaded.layer_shapes) else frozenset()


def local_window(loaded: LoadedModel) -> int:
    """Return the tokens that local layers look back, the most of any; 0 where the model has none."""
    local = local_layers(loaded)
    return max((shape.window or 0 for shape in loaded.layer_shapes if shape.layer in local), default=0)


def revision_hash(folder: Path) -> str:
    """Return the SHA-256 (hex) over config.json and the *.safetensors that transformers reads, in the order of their names.

    Files of other things beside the model (trained gates, say) don't count: they don't change what the model computes.
    It is of the files' bytes, and not of the tensors alone: models are downloaded, not written anew, and what save_pretrained
    writes has one key of metadata, so that saving again gives the same bytes.
    """
    digest = hashlib.sha256()
    for file in (folder / "config.json", *_weights(folder)):
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors"))


def _snapshot(hub_id: str, model: Any) -> tuple[Path, str | None]:
    """Return where the hub's files lie on this machine, and the commit they are of."""
    from transformers.utils import cached_file

    config = Path(str(cached_file(hub_id, "config.json")))
    return config.parent, getattr(model.config, "_commit_hash", None)
