"""``python -m harness job=search_heads``: what a method must know of a model's heads, found in dense prefills of prompts that
no test uses, in a JSON file beside the model's gates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

import methods
from harness.arms.build import build, weights_folder
from harness.arms.head_files import model_shape
from harness.core.checks import whole_number
from harness.core.errors import UserError
from harness.core.files import writable_folder, write_atomically
from harness.core.settings import Settings, read_settings
from harness.measure.context import RunContext
from harness.measure.knob_values import calibration_prompts
from harness.measure.sweep import load_model_of
from harness.models.bridge import Bridge
from harness.models.loading import LoadedModel
from harness.models.rope import ModelRope
from harness.study.provenance import command, commit, device_name, now, versions
from harness.study.store import Store
from harness.tasks.names import expand_tasks
from methods.parts.base import LayerInputs, Method

OWN_BUNDLED = Path("gates/bundled")
"""Where a search of the bundled model goes: what ships lies in the installed package."""


def main(cfg: DictConfig) -> Path:
    """Search and save. Raises UserError for a method that searches nothing, a file that is there, or bad input."""
    settings, console = read_settings(cfg), Console()
    method = _method(settings)
    loaded = load_model_of(settings)
    if settings.length > loaded.max_length:
        raise UserError(f"length={settings.length}: {loaded.name} has a context of {loaded.max_length} tokens")
    path = _path(settings, loaded, str(method.searched))
    context = RunContext(settings, loaded, Store(settings.folder), console)
    names = expand_tasks(settings.tasks)
    prompts = calibration_prompts(context, names, whole_number("job.prompts", settings.options["prompts"], 1))
    found = search(context, method, prompts)
    made = {
        "command": command(),
        "commit": commit(),
        "date": now(),
        "versions": versions(),
        "device": device_name(loaded.device),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "model": loaded.name,
        "model_hash": loaded.revision_hash,
        "tasks": names,
        "length": settings.length,
        "prompts": len(prompts),
        "seed": settings.seed,
        "text": context.text_of(names) | context.files(*names),
    }
    text = dumps({"method": method.name, **found, "made": made})
    write_atomically(path, lambda file: file.write(text.encode()))
    console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    if path.parent != weights_folder(settings, loaded):
        console.print(f"to use it: model.gates={path.parent}", highlight=False, soft_wrap=True)
    return path


def search(context: RunContext, method: Method, prompts: list[Any]) -> dict[str, Any]:
    """Show the method's search every layer of a dense prefill of every prompt."""
    loaded = context.loaded
    try:
        finder = method.search(**model_shape(loaded))
        with context.progress() as progress, torch.inference_mode():
            bar = progress.add_task(f"searching {method.name}", total=len(prompts) * loaded.layers)

            def observe(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
                rope = ModelRope(loaded.model, layer) if method.needs_rope else None
                finder.observe(LayerInputs(q=q, k=k, layer=layer, scale=scale, rope=rope), v)
                progress.advance(bar)

            with Bridge(loaded, None, dense_kernel=context.kernels.dense, observer=observe, record=False):
                for prompt in prompts:
                    ids = torch.tensor([list(prompt)], dtype=torch.int64, device=loaded.device)
                    loaded.model(input_ids=ids, use_cache=False, logits_to_keep=1)
        return finder.result()
    except ValueError as error:  # methods/ raise plain ValueErrors, one line each
        raise UserError(str(error)) from error


def dumps(found: dict[str, Any]) -> str:
    """JSON with a line for each key: short, and a change of one shows."""
    return "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in found.items()) + "\n}\n"


def _method(settings: Settings) -> Method:
    if methods.get(settings.method).searched is None:
        able = [name for name in methods.names() if methods.get(name).searched is not None]
        raise UserError(f"method {settings.method} searches no heads; choose one of: {', '.join(able)}")
    return build(settings)


def _path(settings: Settings, loaded: LoadedModel, name: str) -> Path:
    given = settings.options.get("out")
    own = OWN_BUNDLED if str(settings.model["path"]) == "bundled" else weights_folder(settings, loaded)
    path = (Path(str(given)).expanduser() if given else own) / name
    if path.exists() and not settings.options.get("overwrite"):
        raise UserError(f"{path} exists: add job.overwrite=true to replace it, or name another folder with job.out=FOLDER")
    writable_folder(path.parent)
    return path
