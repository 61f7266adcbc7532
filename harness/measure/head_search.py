"""``python -m harness job=search_heads``: search what a method must know of a model's heads, and write it into a JSON file.

The search sees dense prefills of prompts that no test uses; the file lies beside the model's gates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

import methods
from harness.arms.build import build_method
from harness.arms.head_files import MADE
from harness.arms.weights import weights_folder
from harness.core import checks
from harness.core.errors import UserError
from harness.core.files import writable_folder, write_atomically
from harness.core.input_files import read_json_object
from harness.core.mistakes import as_user_error
from harness.core.output import check_own_output
from harness.core.settings import MOST, Settings, read_settings
from harness.core.terminal import Terminal
from harness.measure.before_loading import check_prompts, describe
from harness.measure.context import RunContext
from harness.measure.prompt_sets import spare_prompts
from harness.measure.request_checks import check_without_model
from harness.measure.sweep import load_model_of, say
from harness.models.length_check import check_length
from harness.models.loading import LoadedModel, model_shape
from harness.models.observe import dense_prefill, layer_inputs
from harness.study.provenance import command, commit, device_name, now, versions
from harness.study.store import Store
from harness.tasks.names import expand_tasks
from methods.parts.base import Method

OWN_BUNDLED = Path("gates/bundled")
"""Where a search of the bundled model goes: what ships lies in the installed package."""


def main(cfg: DictConfig) -> Path:
    """Search and write the file. Returns its path. Raises UserError for a method that searches nothing, a file that exists
    already, or bad input."""
    settings, console = read_settings(cfg), Terminal()
    method, names = _searching_method(settings), expand_tasks(settings.tasks)
    prompt_count = checks.whole_number("job.prompts", settings.options["prompts"], 1, MOST)
    check_own_output("job.out", checks.text_or_null("job.out", settings.options["out"]))
    check_without_model(settings, names)
    if (described := describe(settings)) is not None:
        check_length(described, settings.length, f"length={settings.length}")
        _output_path(settings, described, str(method.searched))
        check_prompts(settings, described.tokenizer, names)
    loaded = load_model_of(settings, console)
    check_length(loaded, settings.length, f"length={settings.length}")
    path = _output_path(settings, loaded, str(method.searched))
    if path.exists() and not settings.options.get("overwrite"):
        _check_is_of_this_command(path, loaded)
        console.print(f"{path} is there, written by this command: job.overwrite=true searches anew", soft_wrap=True)
        return path
    context = RunContext(settings, loaded, Store(settings.folder), console)
    say(console, settings, f"making prompts of {settings.length} tokens")
    prompts = spare_prompts(context, names, prompt_count)
    result = search(context, method, prompts, dense_kernel=settings.dense_kernel)
    provenance = {
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
    text = one_line_a_key({"method": method.name, **result, MADE: provenance})
    write_atomically(path, lambda file: file.write(text.encode()))
    console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    if path.parent != weights_folder(settings.model, loaded):
        console.print(f"to use it: model.gates={path.parent}", highlight=False, soft_wrap=True)
    return path


def search(
    context: RunContext, method: Method, prompts: Sequence[Sequence[int]], *, dense_kernel: str = "auto"
) -> dict[str, Any]:
    """Show the method's search every layer of a dense prefill of every prompt (token ids). Returns what it found, as JSON holds
    it. Raises UserError where the method can't search this model."""
    loaded = context.loaded
    try:
        head_search = method.search(**model_shape(loaded))
        with context.progress() as progress:
            bar = progress.add_task(f"searching {method.name}", total=len(prompts) * loaded.layers)

            def observe(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
                head_search.observe(layer_inputs(loaded, method, layer, q, k, scale), v)
                progress.advance(bar)

            dense_prefill(loaded, prompts, observe, dense_kernel=dense_kernel)
        result = head_search.result()
        method.load_search(result, **model_shape(loaded))  # nothing is written that a run with these knobs would refuse
        return result
    except ValueError as error:  # methods/ raise plain ValueErrors, one line each
        raise as_user_error(error) from error


def one_line_a_key(content: dict[str, Any]) -> str:
    """Return JSON with a line for each key: short, and a change of one shows."""
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _searching_method(settings: Settings) -> Method:
    if methods.get(settings.method).searched is None:
        searching = [name for name in methods.names() if methods.get(name).searched is not None]
        raise UserError(f"method {settings.method} searches no heads; choose one of: {', '.join(searching)}")
    try:
        return build_method(settings)
    except UserError:
        raise
    except ValueError as error:  # methods/ raise plain ValueErrors, one line each
        raise as_user_error(error) from error


def _output_path(settings: Settings, loaded: LoadedModel, name: str) -> Path:
    """Return where the file goes. Raises UserError where it can't be written."""
    out = settings.options.get("out")
    own = OWN_BUNDLED if str(settings.model["path"]) == "bundled" else weights_folder(settings.model, loaded)
    path = (Path(str(out)).expanduser() if out else own) / name
    writable_folder(path.parent)
    return path


def _check_is_of_this_command(path: Path, loaded: LoadedModel) -> None:
    """Raise UserError unless a file was written by the same command, code and model, as where it was killed at its very end."""
    with suppress(UserError):
        origin = read_json_object(path).get("made")
        current = {"command": command(), "commit": commit(), "model_hash": loaded.revision_hash}
        if isinstance(origin, dict) and all(origin.get(name) == value for name, value in current.items()):
            return
    raise UserError(f"{path} exists: add job.overwrite=true to replace it, or name another folder with job.out=FOLDER")
