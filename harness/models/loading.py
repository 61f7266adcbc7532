"""Loading a decoder and its tokenizer, from the bundled folder, a folder of the user's, or the hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from harness.core.errors import UserError
from harness.models.weight_checks import CHECKED_HERE, check_finite, check_stored_types, check_tensors, without_load_report

BUNDLED = Path(__file__).resolve().parents[1] / "bundled"
"""The folder of the small model that ships with the package."""


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and how to hold it. `path` is "bundled", a folder, or a hub id; `name` is what the rows call it.

    dtype None: float32 on a CPU, bfloat16 on CUDA. device None: CUDA where there is one.
    """

    name: str
    path: str
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run: eval mode, no gradients, on its device. `heads` are query heads, `head_dim` elements.

    source: what it was asked for by: "bundled", a folder, or a hub id (None for a model made in memory). path: the folder it
    was read from (None if it came from none). revision_hash: the hub commit, or the SHA-256 of
    config.json and the weights. max_length: tokens its positions reach.
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
    device: torch.device
    dtype: torch.dtype
    source: str | None = None


def load_model(config: ModelConfig) -> LoadedModel:
    """Read model and tokenizer with transformers' Auto classes. Raises UserError, one line, where that fails."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer  # seconds to import

    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = config.dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    folder = _folder(config.path)
    source = config.path if folder is None else str(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        with without_load_report():
            model, info = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **CHECKED_HERE)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(_why(config.path, folder, error)) from error
    check_tensors(model, info, source)
    commit = None
    if folder is None:
        folder, commit = _snapshot(config.path, model)
    check_stored_types(model, folder)
    revision = commit or revision_hash(folder)
    loaded = wrap_model(model, tokenizer, name=config.name, device=device, dtype=dtype, path=folder, revision=revision)
    check_finite(loaded.model, source)
    return replace(loaded, source=config.path)


def load_tokenizer(path: str) -> Any:
    """Load the tokenizer alone of a model: "bundled", a folder, or a hub id. Raises UserError as `load_model` does."""
    from transformers import AutoTokenizer

    folder = _folder(path)
    try:
        return AutoTokenizer.from_pretrained(path if folder is None else str(folder))
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UserError(_why(path, folder, error)) from error


def wrap_model(
    model: Any,
    tokenizer: Any,
    *,
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    path: Path | None = None,
    revision: str = "none",
) -> LoadedModel:
    """Wrap a transformers model that is in memory already: it is moved to device and dtype, and set to eval.

    name: what rows call it. path, revision: see LoadedModel. Raises UserError where model and tokenizer are no pair.
    """
    device = torch.device(device)
    config = model.config.get_text_config(decoder=True)
    vocabulary = 0 if tokenizer is None else len(tokenizer)
    if vocabulary > config.vocab_size:
        raise UserError(f"{name}: the tokenizer has {vocabulary} tokens, the model {config.vocab_size}: not a pair")
    model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    heads = int(config.num_attention_heads)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        path=path,
        revision_hash=revision,
        max_length=_max_length(config),
        layers=int(config.num_hidden_layers),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        device=device,
        dtype=dtype,
    )


def model_shape(loaded: LoadedModel) -> dict[str, int]:
    """Return the sizes by which a method knows whether a file is of this model: layers, heads, KV heads, elements of a head."""
    return {"layers": loaded.layers, "heads": loaded.heads, "kv_heads": loaded.kv_heads, "head_dim": loaded.head_dim}


def local_layers(loaded: LoadedModel) -> frozenset[int]:
    """Return the layers of a sliding window in a model that has global ones too: past the window they are never sparse."""
    kinds = getattr(loaded.model.config.get_text_config(decoder=True), "layer_types", None) or []
    local = frozenset(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")
    return local if len(local) < loaded.layers else frozenset()


def local_window(loaded: LoadedModel) -> int:
    """Return the tokens that local layers look back; 0 where the model has none."""
    config = loaded.model.config.get_text_config(decoder=True)
    return int(getattr(config, "sliding_window", None) or 0) if local_layers(loaded) else 0


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


def _folder(path: str) -> Path | None:
    """Return the local folder that `path` means, or None if it is a hub id. Raises UserError for a folder without a model."""
    bundled = path == "bundled"
    folder = BUNDLED if bundled else Path(path).expanduser()
    if not bundled and not folder.is_dir():
        if path.startswith(("/", ".", "~")) or path.count("/") > 1:
            raise UserError(f"model folder {path} does not exist; give one with config.json, or a hub id OWNER/NAME")
        return None
    missing = [name for name in ("config.json", "model*.safetensors") if not any(folder.glob(name))]
    if missing and bundled:
        raise UserError(
            f"the bundled model is not there ({' and '.join(missing)} missing in {folder}): make it with "
            "`python -m harness job=pretrain`, or choose another: model=hf model.path=FOLDER"
        )
    if missing:
        raise UserError(f"{folder} is no model folder: {' and '.join(missing)} missing; save_pretrained() makes one")
    return folder


def _snapshot(hub_id: str, model: Any) -> tuple[Path, str | None]:
    """Return where the hub's files lie on this machine, and the commit they are of."""
    from transformers.utils import cached_file

    config = Path(str(cached_file(hub_id, "config.json")))
    return config.parent, getattr(model.config, "_commit_hash", None)


def _why(path: str, folder: Path | None, error: BaseException) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if folder is None:
        return (
            f"can't load {path} from the hub: {first} — without network, or for a model that needs a login, download "
            "it and give its folder: model=hf model.path=FOLDER"
        )
    return f"can't load the model in {folder}: {first}"


def _max_length(config: Any) -> int:
    """Return the positions that the model was made for; where RoPE is stretched by a factor, the stretched number."""
    length = int(getattr(config, "max_position_embeddings", None) or 0)
    if length <= 0:
        raise UserError("the model's config has no max_position_embeddings: its longest prompt is unknown")
    rope = getattr(config, "rope_parameters", None) or {}
    original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
    if original and factor and rope.get("rope_type") == "yarn":
        return max(length, int(original * factor))
    return length
