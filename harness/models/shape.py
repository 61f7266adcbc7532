"""Models by shape: a config as a release has it, and weights drawn at random on the device, in the model's dtype.

They are for times alone. Nothing is read: no file, no hub, no tokenizer.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from harness.core.device_memory import available_bytes, is_out_of_memory
from harness.core.errors import UserError, did_you_mean
from harness.models.layer_shapes import TOKEN
from harness.models.source import in_one_line

SIZES = {
    "vocab_size": TOKEN + 1,
    "hidden_size": 1,
    "intermediate_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 1,
    "max_position_embeddings": 1,
    "sliding_window": 1,
}
"""Settings of a config, by transformers' common names, with what they must be at least: every model is tried with a token."""
NO_SIZES = ("architectures", "auto_map", "transformers_version", "_name_or_path", "_attn_implementation")
"""What config.json files say beside the sizes of a model."""
LAYERS, MOST_LAYERS = "num_hidden_layers", 1000
"""More layers than any model has: a slip of the hand, and minutes before it shows."""
ROPE_TYPE = ("rope_type", "type")
"""What the kind of RoPE is called, by newer and by older config.json files."""
ROPE = ("rope_theta", "rope_scaling")
"""What config.json files have in place of the newer rope_parameters."""
ABOVE_ZERO = ("rope_theta", "factor", "original_max_position_embeddings")
"""Settings of RoPE that leave no angle a number where they are not above 0."""
CONFIG_READ = re.compile(r"config\.([a-z]\w*)|(?:getattr\([\w.]*config,\s*|kwargs\.(?:pop|get)\(\s*)[\"'](\w+)[\"']")
"""How the code of a model reads its config."""
RANDOM = "random-"
"""The beginning of the hashes of what was drawn."""


@dataclass(frozen=True)
class ModelShape:
    """The model to draw: `config`, the content of its config as JSON with sorted keys, and the seed of its weights."""

    config: str
    seed: int

    @staticmethod
    def of(config: Mapping[str, Any], seed: int) -> ModelShape:
        """Return the shape of a config given by its keys, as in a config.json."""
        return ModelShape(json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False), seed)

    @property
    def values(self) -> dict[str, Any]:
        """Return the config's keys and values, as they were given."""
        values: dict[str, Any] = json.loads(self.config)
        return values

    @property
    def hash(self) -> str:
        """Return what stands for the hash of the weights: `RANDOM`, and the SHA-256 (hex) of config and seed."""
        return RANDOM + hashlib.sha256(f"{self.config}\0{self.seed}".encode()).hexdigest()

    @property
    def notice(self) -> str:
        """Return what rows say of the weights."""
        return f"random weights (seed {self.seed})"


def draw_model(shape: ModelShape, name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a transformers model with weights drawn on the device in the dtype; no other copy of them is made anywhere.

    name: of the model, for messages. Raises UserError for a config that makes no model, and where memory is too small.
    """
    from transformers import AutoModelForCausalLM  # seconds to import

    _check_memory(empty_model(shape, name, dtype), name, device, dtype)
    try:
        with _quiet(), torch.random.fork_rng(_cuda_devices(device)), torch.device(device):
            torch.manual_seed(shape.seed)
            return AutoModelForCausalLM.from_config(_read_config(shape, name), dtype=dtype)
    except UserError:
        raise
    except Exception as error:  # of a config that a shell of the model did not show to be wrong
        if is_out_of_memory(error):
            raise UserError(f"{name}: its weights do not fit into the memory of {device}: {in_one_line(error)}") from error
        raise UserError(f"model.shape makes no model: {_reason(error)}") from error


def empty_model(shape: ModelShape, name: str, dtype: torch.dtype) -> Any:
    """Return the same model on torch's device "meta", which has no weights. Raises UserError as `draw_model` does."""
    from transformers import AutoModelForCausalLM

    try:
        with _quiet(), torch.device("meta"):
            return AutoModelForCausalLM.from_config(_read_config(shape, name), dtype=dtype)
    except UserError:
        raise
    except Exception as error:  # whatever a model's class raises for values that do not go together
        raise UserError(f"model.shape makes no model: {_reason(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what transformers warns of a config: what matters of it is refused here, in one line."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _read_config(shape: ModelShape, name: str) -> Any:
    """Return a new config of transformers with these values. Raises UserError for a key that it does not know, and for values
    that make no model."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as DECODERS

    values = shape.values
    kind = values.pop("model_type", None)
    if kind not in DECODERS or kind not in CONFIG_MAPPING:
        raise UserError(
            f"model.shape.model_type={'null' if kind is None else kind} is no decoder of transformers"
            f"{did_you_mean(str(kind), DECODERS)}; it must be a type that docs/decoders.md lists"
        )
    cls: Any = CONFIG_MAPPING[kind]
    _check_keys(cls, values, "model.shape")
    try:
        config = cls(**values)
    except Exception as error:  # transformers checks types, and some of what must go together
        raise UserError(f"model.shape makes no config of {kind}: {_reason(error)}") from error
    text = config.get_text_config(decoder=True)
    heads, kv_heads = (getattr(text, key, None) for key in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads:
        raise UserError(f"model.shape: {name} has {heads} query heads, which must be a multiple of its {kv_heads} KV heads")
    return config


def _check_keys(cls: Any, values: Mapping[str, Any], where: str) -> None:
    """Raise UserError for a key that a class of configs does not know, and for a size below 1. where: the dotted name of the
    setting that holds the values."""
    from transformers import PreTrainedConfig

    own = {field.name for field in dataclasses.fields(cls)} - {field.name for field in dataclasses.fields(PreTrainedConfig)}
    known = {*own, *cls.attribute_map, *(ROPE if "rope_parameters" in own else ())}
    for key in values:
        if key in ("dtype", "torch_dtype"):
            raise UserError(f"{where}.{key}={values[key]}: weights are drawn in dtype=, so leave it out")
        if key in NO_SIZES:
            raise UserError(f"{where}.{key} says nothing of the model's sizes: leave it out")
        if key not in known and key not in _read_by_code(cls.__module__.rpartition(".")[0]):
            raise UserError(
                f"{where}.{key} is no size of a {cls.model_type} model{did_you_mean(key, known)}; known: {_listed(known)}"
            )
    for size, least in SIZES.items():
        key = cls.attribute_map.get(size, size)
        if isinstance(values.get(key), int) and values[key] < least:
            raise UserError(f"{where}.{key}={values[key]}: must be a whole number of at least {least}")
    layers = cls.attribute_map.get(LAYERS, LAYERS)
    if isinstance(values.get(layers), int) and values[layers] > MOST_LAYERS:
        raise UserError(f"{where}.{layers}={values[layers]}: must be a whole number of at least 1 and at most {MOST_LAYERS}")
    for key in (*ROPE, "rope_parameters"):
        _check_rope(values.get(key), f"{where}.{key}", key)
    for key, sub in _sub_configs(cls):
        if isinstance(values.get(key), dict):
            _check_keys(sub, values[key], f"{where}.{key}")


@lru_cache(maxsize=8)
def _read_by_code(package: str) -> frozenset[str]:
    """Return what the code of a model's package reads of its config: classes of configs do not list all of it, as head_dim of
    some mixtures of experts."""
    folder = Path(str(import_module(package).__file__)).parent
    source = "\n".join(file.read_text(encoding="utf-8") for file in folder.glob("*.py"))
    return frozenset(name for pair in CONFIG_READ.findall(source) for name in pair if name)


def _check_rope(values: Any, where: str, name: str) -> None:
    """Raise UserError for a setting of RoPE that transformers does not read (it would only warn), for a type that it does not
    know, and for what must be a number, or one above 0, and is not. values: of the setting `name`, whose dotted name is
    `where`."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters

    known, types = {*RopeParameters.__annotations__, *ROPE_TYPE}, {"default", *ROPE_INIT_FUNCTIONS}
    if isinstance(values, str):
        raise UserError(f"{where}={values}: must be a number")
    if name in ABOVE_ZERO and isinstance(values, int | float) and values <= 0:
        raise UserError(f"{where}={values}: must be a number above 0")
    if not isinstance(values, dict):
        return
    if values and all(isinstance(part, dict) for part in values.values()):  # one for each type of layers
        for kind, part in values.items():
            _check_rope(part, f"{where}.{kind}", kind)
        return
    if unknown := next((key for key in values if key not in known), None):
        hint = did_you_mean(unknown, known)
        raise UserError(f"{where}.{unknown} is no setting of RoPE{hint}; known: {_listed(known)}")
    for key, value in values.items():
        if key not in ROPE_TYPE:
            _check_rope(None if isinstance(value, dict) else value, f"{where}.{key}", key)
        elif value not in types:
            raise UserError(
                f"{where}.{key}={value} is not known{did_you_mean(str(value), types)}; choose one of: {_listed(types)}"
            )


def _listed(names: Iterable[str]) -> str:
    """Return names in alphabetical order, joined by commas."""
    return ", ".join(sorted(names))


def _sub_configs(cls: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and class of the configs inside a config, where one class is meant."""
    for key, sub in cls.sub_configs.items():
        if dataclasses.is_dataclass(sub):
            yield key, sub


def _check_memory(empty: Any, name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise UserError where the weights need more memory than a device has left. empty: the model on the device "meta"."""
    needed, free = sum(weight.numel() * weight.element_size() for weight in empty.parameters()), available_bytes(device)
    if free is not None and needed > free:
        gc.collect()  # a model that was let go of is part of cycles
        free = available_bytes(device)
    if free is None or needed <= free:
        return
    smaller = "" if dtype.itemsize <= 2 else "dtype=bfloat16, "
    raise UserError(
        f"{name}: its weights take {needed / 2**30:.1f} GiB in {str(dtype).removeprefix('torch.')}, and {device} has "
        f"{free / 2**30:.1f} GiB left; choose {smaller}a smaller model, or fewer layers (model.shape.num_hidden_layers=2)"
    )


def _cuda_devices(device: torch.device) -> list[int]:
    """Return the GPUs whose stream of random numbers a draw on the device changes."""
    if device.type != "cuda":
        return []
    return [torch.cuda.current_device() if device.index is None else device.index]


def _reason(error: Exception) -> str:
    """Return why transformers refuses a value: the last line of its error, without the class of another error before it."""
    if isinstance(error, KeyError) and len(error.args) == 1 and re.fullmatch(r"[\w.-]+", str(error.args[0])):
        return f"transformers knows nothing that is called {error.args[0]}"
    if "padding_idx" in str(error).lower():
        return "its pad_token_id, which may be the default of its class, is not below its vocab_size; give pad_token_id=0"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    _, colon, rest = lines[-1].partition("Error: ") if lines else ("", "", "")
    return rest if colon else in_one_line(error)
