"""The attention of one prompt, layer by layer, beside what a method takes of it: what ``job=maps`` draws.

For the chosen heads: the true attention, the same as the method is to know it (the largest in each block), what the method
expects where it says so (`Method.scores`), and the blocks that it keeps. The prompt is prefilled densely: layers are shown on
the model's own activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from attention_kernels.block_map import block_map
from attention_kernels.kept_mass import kept_mass
from attention_kernels.sparse_attention import SparseIndex
from rich.console import Console
from torch import Tensor
from torch.nn.functional import avg_pool1d, avg_pool2d, max_pool2d

from harness.arms.build import RunnableArm, build_arms, full_decode
from harness.core.errors import UserError
from harness.core.settings import Settings
from harness.measure.context import RunContext
from harness.measure.kept_mass import what_runs
from harness.measure.knob_values import knob_value
from harness.measure.sweep import load_model_of
from harness.models.bridge import Bridge
from harness.models.rope import ModelRope
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
    """One query head of one layer; maps float32 [rows, columns] on the CPU, 0 in the future.

    true: the largest probability in tiles of `LayerMaps.tile` tokens. truth: in blocks, rows summing to 1. expected: of the
    method, rows summing to 1, or None. kept: the share of the keys that is attended to, 0 to 1. mass: the share of the
    true attention on what is kept; density: of the head's blocks. Maps of more than PIXELS rows or columns are pooled.
    """

    head: int
    true: Tensor
    truth: Tensor
    expected: Tensor | None
    kept: Tensor
    mass: float
    density: float


@dataclass(frozen=True)
class LayerMaps:
    """The chosen heads of one layer of a prompt of `tokens`; tile and block in tokens. cells: tokens of a row and of a column
    of each map of HeadMaps, by its name; the last may have fewer."""

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


def measure_maps(settings: Settings, store: Store, console: Console) -> PromptMaps:
    """Measure the maps that a command asks for. Raises UserError for what has none to show."""
    if not full_decode(settings):
        raise UserError("job=maps draws a prefill, which decode= does not change: leave decode out")
    loaded = load_model_of(settings)
    if settings.length > loaded.max_length:
        raise UserError(f"length={settings.length}: {loaded.name} has a context of {loaded.max_length} tokens")
    context = RunContext(settings, loaded, store, console)
    names = expand_tasks(settings.tasks)
    arm = build_arms(settings, loaded, lambda arm, knob: knob_value(context, arm, knob, names))[-1]
    if arm.method is None:
        raise UserError(
            f"job=maps draws what a method keeps, and {arm.identity.method} keeps everything: name another, method=…"
        )
    heads = chosen("heads", settings.options["heads"], range(loaded.heads))
    try:
        found = look(context, arm.method, context.first_prompt(names), settings.options["layers"], heads)
    except UserError:
        raise
    except ValueError as error:  # methods/ and kernels/ raise plain ValueErrors, one line each
        raise UserError(str(error)) from error
    what = ", ".join(
        [arm.identity.method, *(f"{name} {value}" for name, value in _words(arm)), f"blocks of {arm.method.block_size}"]
    )
    what += "" if settings.sparsity is None else f", sparsity {settings.sparsity:g}"
    note = (
        f"{loaded.name} ({str(loaded.dtype).removeprefix('torch.')}), a prompt of {names[0]}, seed {settings.seed}, prefilled "
        f"densely. Commit {commit()}, {device_name(loaded.device)}.\n{command()}"
    )
    return PromptMaps(found, what, note, _stem(arm, settings.length))


def _stem(arm: RunnableArm, length: int) -> str:
    sparsity = "native" if arm.identity.sparsity is None else f"{arm.identity.sparsity:g}"
    words = [value for _, value in _words(arm)]
    return "_".join([arm.identity.method, *words, str(arm.identity.block_size), sparsity, str(length)])


def _words(arm: RunnableArm) -> list[tuple[str, str]]:
    """The knobs that say in a word which variant of the method it is."""
    return [(name, value) for name, value in arm.identity.knobs.items() if isinstance(value, str) and value.isidentifier()]


def chosen(name: str, given: Any, there: range | list[int], *, most: int = 4) -> list[int]:
    """The layers or heads to draw: those given, or `most` evenly spaced of those that are there. Raises UserError."""
    if given is None:
        last, count = len(there) - 1, min(most, len(there))
        return [there[round(i * last / max(1, count - 1))] for i in range(count)]
    listed = list(given) if isinstance(given, list | tuple) else [given]
    for one in listed:
        if isinstance(one, bool) or one not in there:
            raise UserError(f"job.{name}={given}: must be numbers among {', '.join(map(str, there))}, for example [{there[0]}]")
    if not listed:
        raise UserError(f"job.{name}={given}: name one at least, or null for {most} evenly spaced")
    return listed


@torch.inference_mode()
def look(context: RunContext, method: Method, prompt: Any, layers: Any, heads: list[int]) -> list[LayerMaps]:
    """The maps of the chosen layers. A layer with a sliding window has none: there is nothing to choose."""
    loaded = context.loaded
    method = method.to(loaded.device)
    ids = torch.tensor([list(prompt)], dtype=torch.int64, device=loaded.device)
    there: list[int] = []
    found: list[LayerMaps] = []

    def note(layer: int, *_: Any) -> None:
        there.append(layer)

    def observe(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
        rope = ModelRope(loaded.model, layer) if method.needs_rope else None
        x = LayerInputs(q=q, k=k, layer=layer, scale=scale, rope=rope)
        choice = method.select(x)  # in all layers: some methods take over what an earlier one selected
        if layer not in wanted:
            return
        index = None
        if choice is not None:
            index = what_runs(loaded, q, k, v, choice, scale=scale, kernel=context.kernels.sparse)
        found.append(layer_maps(x, method, index, heads))

    for observer in (note, observe):  # the first pass says which layers there are
        if observer is observe:
            wanted = chosen("layers", layers, there)
        with Bridge(loaded, None, dense_kernel=context.kernels.dense, observer=observer, record=False):
            loaded.model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return found


def layer_maps(x: LayerInputs, method: Method, index: SparseIndex | None, heads: list[int]) -> LayerMaps:
    """The maps of some heads of one layer (batch 1); index None: all is kept. Waits for the device."""
    group, tokens = x.q.shape[1] // x.k.shape[1], x.k.shape[2]
    q, k = x.q[:, heads], x.k[:, [head // group for head in heads]]
    tile = min(LARGEST_BLOCK, 1 << max(0, -(-tokens // PIXELS) - 1).bit_length())
    true = block_map(q, k, q_block=tile, k_block=tile, scale=x.scale)[0]
    truth = block_map(q, k, q_block=method.block_size, k_block=method.block_size, scale=x.scale)[0]
    truth = truth / truth.sum(-1, keepdim=True)
    expected = method.scores(x)
    if expected is not None:
        expected = expected[0, [head * expected.shape[1] // x.q.shape[1] for head in heads]]
    units = {"true": (tile, tile), "truth": (method.block_size, method.block_size)}
    units |= {"expected": units["truth"], "kept": units["truth"]}
    if index is None:
        kept = x.q.new_ones((len(heads), *truth.shape[1:]), dtype=torch.float32)
        mass = density = [1.0] * len(heads)
    else:
        mine = [head * index.heads // x.q.shape[1] for head in heads]
        kept = kept_keys(index, mine, tile)
        units["kept"] = (index.q_block, tile)
        mass = kept_mass(x.q, x.k, index, scale=x.scale, rows=ROWS)[0, heads].tolist()
        density = index.density()[0, mine].tolist()
    parts = [
        HeadMaps(
            head,
            shrink(true[i]),
            shrink(truth[i]),
            None if expected is None else shrink(expected[i]),
            shrink(kept[i], mean=True),
            mass[i],
            density[i],
        )
        for i, head in enumerate(heads)
    ]
    drawn = {"true": true, "truth": truth, "expected": truth if expected is None else expected, "kept": kept}
    cells = {
        name: (rows * pooled(drawn[name].shape[-2]), columns * pooled(drawn[name].shape[-1]))
        for name, (rows, columns) in units.items()
    }
    return LayerMaps(x.layer, tokens, cells["true"][0], method.block_size, parts, cells)


def kept_keys(index: SparseIndex, heads: list[int], tile: int) -> Tensor:
    """The share of keys that each query block keeps in each tile of keys: float32 [heads, Mq, Nk]."""
    rows = []
    for row in range(-(-index.q_len // index.q_block)):
        keys = index.row_keys(row)[0, heads].float()
        rows.append(avg_pool1d(keys[None], tile, ceil_mode=True)[0])
    return torch.stack(rows, 1)


def pooled(size: int) -> int:
    """So many rows, or columns, of a map of `size` are drawn as one."""
    return -(-size // PIXELS)


def shrink(found: Tensor, *, mean: bool = False) -> Tensor:
    """A map [rows, columns], at most PIXELS wide and high, on the CPU: the largest, or the mean, of what falls together."""
    by = [pooled(size) for size in found.shape]
    return (avg_pool2d if mean else max_pool2d)(found.float()[None, None], by, ceil_mode=True)[0, 0].cpu()
