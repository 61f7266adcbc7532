"""The attention maps of one prompt, layer by layer, beside what a method takes of them: what ``job=maps`` draws.

For the chosen heads: the true attention, the same as the method is to know it (the largest in each block), what the method
expects where it says so (`Method.scores`), and the keys that it attends to. The prompt is prefilled densely: layers are shown
on the model's own activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from attention_kernels.block_map import block_map
from attention_kernels.kept_mass import kept_mass
from attention_kernels.sparse_attention import SparseIndex
from rich.console import Console
from torch import Tensor
from torch.nn.functional import avg_pool1d, avg_pool2d, max_pool2d

from harness.arms.build import RunnableArm, build_arms, decodes_densely, with_release
from harness.core import checks
from harness.core.errors import UserError
from harness.core.knob_names import usual_knobs
from harness.core.mistakes import as_user_error
from harness.core.settings import Settings
from harness.measure.before_loading import check_before_loading
from harness.measure.cells import arm_label
from harness.measure.context import RunContext
from harness.measure.knob_values import TaskPrompts, calibrated_arms
from harness.measure.request_checks import check_without_model
from harness.measure.sweep import SweepCache, load_model_of, say
from harness.models.length_check import check_length
from harness.models.loading import LoadedModel
from harness.models.observe import dense_prefill, global_layers, layer_inputs, what_runs
from harness.study.provenance import command, commit, device_name
from harness.study.store import Store
from harness.tasks.names import expand_tasks
from methods.parts.base import LayerInputs, Method

PIXELS = 512
"""Rows and columns of a map at most."""
LARGEST_BLOCK = 128
"""The largest block that the kernels of true maps take."""
ROWS = 64
"""Query blocks at most from which the kept mass is measured, evenly spaced."""


@dataclass(frozen=True)
class HeadMaps:
    """The maps of one query head of one layer: float32 [rows, columns] on the CPU, 0 in the future.

    true: the largest probability in tiles of `LayerMaps.tile` tokens. truth: in blocks, rows summing to 1. expected: of the
    method, rows summing to 1, or None. attended: the share of the keys that is attended to, 0 to 1. mass: the share of the
    true attention on those; density: of the head's blocks. Maps of more than PIXELS rows or columns are pooled.
    """

    head: int
    true: Tensor
    truth: Tensor
    expected: Tensor | None
    attended: Tensor
    mass: float
    density: float


@dataclass(frozen=True)
class LayerMaps:
    """The maps of the chosen heads of one layer of a prompt of `tokens` tokens.

    tile, block: the sizes of a tile and a block in tokens. cells: tokens of a row and of a column of each map of HeadMaps, by
    its name; the last may have fewer.
    """

    layer: int
    tokens: int
    tile: int
    block: int
    heads: list[HeadMaps]
    cells: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class PromptMaps:
    """The maps of one prompt under one method, layer by layer, with what a picture says of them.

    title: the method and its settings. note: model, prompt, commit, device and command. stem: how names of files begin.
    """

    layers: list[LayerMaps]
    title: str
    note: str
    stem: str


@dataclass(frozen=True)
class PreparedPrompt:
    """What maps are made of: the loaded model, the arm of a method, and the token ids of a prompt of the first of `names`."""

    loaded: LoadedModel
    arm: RunnableArm
    method: Method
    prompt: Sequence[int]
    names: Sequence[str]


def prepare(settings: Settings, store: Store, console: Console) -> tuple[Settings, PreparedPrompt]:
    """Check the settings of a command, load its model, build the arm, and make the prompt. Returns them with the settings as
    the arm has them. Raises UserError for what has no maps to show."""
    if not decodes_densely(settings.decode):
        raise UserError("job=maps draws a prefill, which decode= does not change: leave decode out")
    names = expand_tasks(settings.tasks)
    for name in ("layers", "heads"):
        checks.numbers_or_null(f"job.{name}", settings.options[name])
    check_without_model(settings, names)
    settings = with_release(settings)
    check_before_loading(settings, SweepCache(), names)
    loaded = load_model_of(settings, console)
    check_length(loaded, settings.length, f"length={settings.length}")
    context = RunContext(settings, loaded, store, console)
    arm = calibrated_arms(context, settings, build_arms(settings, loaded)[-1], TaskPrompts(names))[0]
    if arm.method is None:
        raise UserError(
            f"job=maps draws what a method keeps, and {arm.identity.method} keeps everything: name another, method=…"
        )
    choose("heads", settings.options["heads"], range(loaded.heads))
    say(console, settings, f"making a prompt of {settings.length} tokens")
    prompt = context.first_prompt(names)
    say(console, settings, f"prefilling it, {loaded.layers} layers")
    return settings, PreparedPrompt(loaded, arm, arm.method, prompt, names)


def measure_maps(settings: Settings, store: Store, console: Console) -> PromptMaps:
    """Measure the maps that a command asks for. Raises UserError for what has none to show."""
    settings, ready = prepare(settings, store, console)
    loaded, arm, names = ready.loaded, ready.arm, ready.names
    try:
        layers = maps_of_prompt(
            loaded,
            ready.method,
            ready.prompt,
            settings.options["layers"],
            choose("heads", settings.options["heads"], range(loaded.heads)),
            sparse_kernel=settings.kernel,
            dense_kernel=settings.dense_kernel,
        )
    except UserError:
        raise
    except ValueError as error:  # methods/ and kernels/ raise plain ValueErrors, one line each
        raise as_user_error(error) from error
    usual = usual_knobs(arm.identity.method)
    variant = [f"{name} {value}" for name, value in _word_knobs(arm) if name not in usual]
    title = ", ".join([arm_label(arm), *variant, f"blocks of {ready.method.block_size}"])
    title += "" if settings.sparsity is None else f", sparsity {settings.sparsity:g}"
    note = (
        f"{loaded.name} ({str(loaded.dtype).removeprefix('torch.')}), a prompt of {names[0]}, seed {settings.seed}, prefilled "
        f"densely. Commit {commit()}, {device_name(loaded.device)}.\n{command()}"
    )
    return PromptMaps(layers, title, note, stem_of(arm, settings.length))


def stem_of(arm: RunnableArm, length: int) -> str:
    """Return how the names of the files of an arm's maps begin."""
    sparsity = "native" if arm.identity.sparsity is None else f"{arm.identity.sparsity:g}"
    variant = [value[:60] for _, value in _word_knobs(arm)]
    return "_".join([arm.identity.method, *variant, str(arm.identity.block_size), sparsity, str(length)])


def _word_knobs(arm: RunnableArm) -> list[tuple[str, str]]:
    """Return the knobs, with their values, that say in a word which variant of the method it is."""
    return [(name, value) for name, value in arm.identity.knobs.items() if isinstance(value, str) and value.isidentifier()]


def choose(name: str, setting: Any, numbers: range | list[int], *, most: int = 4) -> list[int]:
    """Return the layers or heads to draw: those that job.NAME names (one, or a list), or `most` of `numbers`, evenly spaced,
    where it is None. Raises UserError for one that is not among the numbers, or none."""
    if setting is None:
        last, count = len(numbers) - 1, min(most, len(numbers))
        return [numbers[round(i * last / max(1, count - 1))] for i in range(count)]
    listed = list(setting) if isinstance(setting, list | tuple) else [setting]
    for number in listed:
        if isinstance(number, bool) or number not in numbers:
            known = ", ".join(map(str, numbers))
            raise UserError(f"job.{name}={setting}: must be numbers among {known}, for example [{numbers[0]}]")
    if not listed:
        raise UserError(f"job.{name}={setting}: name one at least, or null for {most} evenly spaced")
    return listed


@torch.inference_mode()
def maps_of_prompt(
    loaded: LoadedModel,
    method: Method,
    prompt: Sequence[int],
    layers: Any,
    heads: list[int],
    *,
    sparse_kernel: str = "auto",
    dense_kernel: str = "auto",
) -> list[LayerMaps]:
    """Measure the maps of one prompt (token ids). A layer with a sliding window has none: there is nothing to choose.

    layers: as `choose` takes them. heads: query heads, in the order of the maps. sparse_kernel: runs only where a method
    leaves the choice to it. Raises UserError for layers without a map.
    """
    method = method.to(loaded.device)
    drawn_layers = choose("layers", layers, global_layers(loaded, prompt, dense_kernel=dense_kernel))
    maps: list[LayerMaps] = []

    def observe(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
        inputs = layer_inputs(loaded, method, layer, q, k, scale)
        choice = method.select(inputs)  # in all layers: some methods take over what an earlier one selected
        if layer not in drawn_layers:
            return
        index = None if choice is None else what_runs(loaded, q, k, v, choice, scale=scale, kernel=sparse_kernel)
        maps.append(layer_maps(inputs, method, index, heads))

    dense_prefill(loaded, [prompt], observe, dense_kernel=dense_kernel)
    return maps


def layer_maps(inputs: LayerInputs, method: Method, index: SparseIndex | None, heads: list[int]) -> LayerMaps:
    """Return the maps of some query heads of one layer (batch 1); index None: all is attended to. Waits for the device."""
    q, k, tokens = inputs.q, inputs.k, inputs.k.shape[2]
    group = q.shape[1] // k.shape[1]
    head_q, head_k = q[:, heads], k[:, [head // group for head in heads]]
    tile = min(LARGEST_BLOCK, 1 << max(0, -(-tokens // PIXELS) - 1).bit_length())
    block = method.block_size
    true = block_map(head_q, head_k, q_block=tile, k_block=tile, scale=inputs.scale)[0]
    truth = block_map(head_q, head_k, q_block=block, k_block=block, scale=inputs.scale)[0]
    truth = truth / truth.sum(-1, keepdim=True)
    expected = method.scores(inputs)
    if expected is not None:
        expected = expected[0, [head * expected.shape[1] // q.shape[1] for head in heads]]
    units = {"true": (tile, tile), "truth": (block, block), "expected": (block, block), "attended": (block, block)}
    if index is None:
        attended = q.new_ones((len(heads), *truth.shape[1:]), dtype=torch.float32)
        mass = density = [1.0] * len(heads)
    else:
        index_heads = [head * index.heads // q.shape[1] for head in heads]  # those of a GQA group may share one
        attended = attended_keys(index, index_heads, tile)
        units["attended"] = (index.q_block, tile)
        mass = kept_mass(q, k, index, scale=inputs.scale, rows=ROWS)[0, heads].tolist()
        density = index.density()[0, index_heads].tolist()
    head_maps = [
        HeadMaps(
            head,
            true=pool_map(true[i]),
            truth=pool_map(truth[i]),
            expected=None if expected is None else pool_map(expected[i]),
            attended=pool_map(attended[i], mean=True),
            mass=mass[i],
            density=density[i],
        )
        for i, head in enumerate(heads)
    ]
    maps = {"true": true, "truth": truth, "expected": truth if expected is None else expected, "attended": attended}
    cells = {
        name: (rows * pooled_by(maps[name].shape[-2]), columns * pooled_by(maps[name].shape[-1]))
        for name, (rows, columns) in units.items()
    }
    return LayerMaps(inputs.layer, tokens, cells["true"][0], block, head_maps, cells)


def attended_keys(index: SparseIndex, heads: list[int], tile: int) -> Tensor:
    """Return the share of keys that each query block attends to in each tile of keys: float32 [heads, Mq, Nk]."""
    rows = []
    for row in range(-(-index.q_len // index.q_block)):
        keys = index.row_keys(row)[0, heads].float()
        rows.append(avg_pool1d(keys[None], tile, ceil_mode=True)[0])
    return torch.stack(rows, 1)


def pooled_by(size: int) -> int:
    """Return how many rows, or columns, of a map of `size` are drawn as one."""
    return -(-size // PIXELS)


def pool_map(full_map: Tensor, *, mean: bool = False) -> Tensor:
    """Return a map [rows, columns], at most PIXELS wide and high, on the CPU: the largest, or mean, of what falls
    together."""
    factors = [pooled_by(size) for size in full_map.shape]
    return (avg_pool2d if mean else max_pool2d)(full_map.float()[None, None], factors, ceil_mode=True)[0, 0].cpu()
