"""Whether a checkpoint's weights are those of its config: names, shapes, types, and numbers that are finite.

transformers loads what fits, warns of tensors that it has no place for, and casts whole numbers to floats: such a model runs,
and what it says is no one's.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import UserError

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of a safetensors file that weights which are not quantised may have."""
SHOWN = 3
"""Names that a line holds at most."""


CHECKED_HERE = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""Arguments of from_pretrained with which it leaves differing shapes to `check_tensors`: its own error names no tensor."""


@contextmanager
def without_load_report() -> Iterator[None]:
    """Silence transformers' table of tensors that don't fit: `check_tensors` says it in a line."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_no_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_no_report)  # at another level transformers warns of layers that are not sharded
    try:
        yield
    finally:
        logger.removeFilter(is_no_report)


def check_tensors(model: Any, info: Mapping[str, Any], source: str) -> None:
    """Raise UserError where a checkpoint has not the tensors that its config says, by name and shape.

    info: the loading info of from_pretrained, from which transformers has left out what a model's class may lack or drop (tied
    weights, inv_freq of older checkpoints, layers of multi-token prediction). Beside the weights of a quantised module there
    may be scales that nothing reads, those of a cache say.
    """
    if mismatched := sorted(info["mismatched_keys"]):
        name, stored, expected = mismatched[0]
        others = f", and {len(mismatched) - 1} others differ too" if len(mismatched) > 1 else ""
        raise UserError(
            f"{source}: {name} has shape {list(stored)}, by config.json it must be {list(expected)}{others}; the weights are "
            "another model's, or config.json is wrong"
        )
    if missing := sorted(info["missing_keys"]):  # transformers would go on with random weights there
        raise UserError(f"{source}: the weights lack {_counted(missing)} of the model; its config.json is of another one")
    quantised = _is_quantised(model)
    if unexpected := sorted(key for key in info["unexpected_keys"] if not (quantised and _has_module_of(model, key))):
        raise UserError(
            f"{source}: the weights have {_counted(unexpected)} for which the model of its config.json has no place; they are "
            "another model's, or config.json is wrong"
        )


def check_stored_types(model: Any, folder: Path) -> None:
    """Raise UserError where a safetensors file of a model that is not quantised stores a weight as anything but floats of 16 to
    64 bits: cast to floats it would be other numbers. Reads the headers of the files alone.

    Buffers (masks, positions) and tensors that the model's class ignores may be of any type.
    """
    if _is_quantised(model):
        return
    buffers = {name.rpartition(".")[2] for name, _ in model.named_buffers()}
    patterns = [*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()), r"rotary_emb\.inv_freq"]
    ignored = re.compile("|".join(f"({pattern})" for pattern in patterns))
    for file in _files_read(folder):
        for name, kind in stored_types(file).items():
            if kind not in FLOATS and name.rpartition(".")[2] not in buffers and not ignored.search(name):
                raise UserError(
                    f"{file}: {name} is of type {kind}; the weights of a model without quantization_config must be one of "
                    f"{', '.join(FLOATS)}"
                )


def check_finite(model: Any, source: str) -> None:
    """Raise UserError where a weight of a loaded model is NaN or infinite, naming it.

    Costs one sum of each tensor, and waits for the device once; a sum that overflows is looked at again.
    """
    stored = model.state_dict(keep_vars=True).keys()
    buffers = (pair for pair in model.named_buffers() if pair[0] in stored)  # others are computed: masks may be -inf
    weights = {name: weight.detach() for name, weight in (*model.named_parameters(), *buffers) if _can_be_summed(weight)}
    if name := first_not_finite(weights):
        dtype = str(weights[name].dtype).removeprefix("torch.")
        raise UserError(
            f"{source}: {name} holds NaN or infinite values in {dtype}; the file is damaged, or its weights need another dtype "
            "(dtype=bfloat16 or float32)"
        )


def first_not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or an infinity; None where all are finite."""
    sums: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, weight in weights.items():
        sums.setdefault(weight.device, []).append((name, weight.sum().float()))
    suspects = {
        name
        for pairs in sums.values()
        for (name, _), finite in zip(pairs, torch.stack([total for _, total in pairs]).isfinite().tolist(), strict=True)
        if not finite
    }
    return next((name for name, weight in weights.items() if name in suspects and not weight.isfinite().all()), None)


def stored_types(file: Path) -> dict[str, str]:
    """Return the type of each tensor of a safetensors file by its name, as "BF16", read from the file's header."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return {name: entry["dtype"] for name, entry in header.items() if name != "__metadata__"}


def _files_read(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder that transformers reads: one, else those of the index, else none."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return [single] if single.is_file() else []
    return [folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]


def _is_quantised(model: Any) -> bool:
    """Return whether the weights are stored in a format that transformers has a quantiser for."""
    configs = model.config, model.config.get_text_config(decoder=True)
    return getattr(model, "hf_quantizer", None) is not None or any(getattr(c, "quantization_config", None) for c in configs)


def _has_module_of(model: Any, key: str) -> bool:
    """Return whether the model has the module that a tensor of this name would belong to."""
    return key.rpartition(".")[0] in dict(model.named_modules())


def _can_be_summed(weight: Tensor) -> bool:
    """Return whether a weight is there and of floats that torch adds up: those of 8 bits have scales, and are quantised."""
    return weight.is_floating_point() and weight.element_size() > 1 and not weight.is_meta and weight.numel() > 0


def _counted(names: Iterable[str]) -> str:
    """Return how many tensors there are, with the first names."""
    listed = list(names)
    shown = ", ".join(listed[:SHOWN]) + (", …" if len(listed) > SHOWN else "")
    return f"{len(listed)} tensors ({shown})"
