"""Train the gates of a method for a frozen model, from its own attention (SeerAttention, arXiv 2410.13276, and -R, 2506.08889).

One forward pass a step trains the gates of all layers: a gate sees its layer's queries and keys while the pass is
there, and its gradient is taken at once, so that only one layer's attention map is in memory at a time. Nothing flows
back into the model, which stays as it is.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.errors import UserError
from harness.models import LoadedModel
from harness.rope import ModelRope
from harness.training.gate_report import Recall, gate_recall, mean_recall, recall_rows
from harness.training.gate_truth import Capture, gate_grid, gate_loss, target_map
from kernels.selection import row_budget, select_topk
from methods.gate import AttnGate, Gate, gate_state

FLOAT32_BYTES = 3 * 2**20
"""With dtype "auto", gates up to this size are saved in float32, larger ones in bfloat16."""

SAVED = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Dtypes of the file by name."""

STEP_DENSITY = 0.1
"""Density at which recall is shown while training."""


@dataclass(frozen=True)
class Step:
    """One training step: KL in nats and recall at STEP_DENSITY, both means over layers, heads and rows."""

    step: int
    loss: float
    recall: float
    lr: float
    tokens: int


@dataclass(frozen=True)
class Distilled:
    """What came out. parameters: of all gates. recall: on the held-out sequences, of the weights as saved."""

    path: Path
    gates: list[Gate]
    steps: list[Step]
    recall: list[Recall]
    parameters: int
    seconds: float


def distill(
    loaded: LoadedModel,
    tokens: Iterator[Tensor],
    *,
    out: Path,
    steps: int,
    held_out: Sequence[Tensor] = (),
    block_size: int = 64,
    lr: float = 1e-3,
    warmup: int = 20,
    pool: str = "max",
    skip_rows: float = 0.0,
    q_linear: bool = False,
    dtype: str = "auto",
    seed: int = 0,
    kind: type[Gate] = AttnGate,
    file: str = "gates-{block_size}.safetensors",
    on_step: Callable[[Step], None] | None = None,
) -> Distilled:
    """Train one gate per layer for `steps` batches of `tokens` ([N] or [B,N] int64 each); save them into folder `out`.

    pool: of the true attention map, "max" (SeerAttention's) or "mass". skip_rows: see gate_loss. held_out: sequences on
    which recall is measured at the end. AdamW without weight decay; the rate rises for `warmup` steps, then falls to 0
    along a cosine. kind: of gate; q_linear is an option of AttnGate alone. The file is named by the pattern `file`, of dtype
    "float32", "bfloat16" or "auto" (by size), with how it was made in its metadata.
    Raises UserError for settings out of range, or where `tokens` ends early.
    """
    _check(steps, lr, warmup, skip_rows, pool, dtype)
    began = time.perf_counter()
    options = {"q_linear": True} if q_linear else {}
    gates = new_gates(loaded, kind, block_size=block_size, seed=seed, **options)
    weights = [weight for gate in gates for weight in gate.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps, warmup))
    trainer = _Trainer(loaded, gates, pool=pool, skip_rows=skip_rows)
    history: list[Step] = []
    seen = 0
    with Capture(loaded.model, trainer.visit) as capture:
        for step in range(steps):
            batch = _next(tokens, step, steps).to(loaded.device)
            optimizer.zero_grad(set_to_none=True)
            capture.run(batch)
            loss, recall = trainer.finish()
            optimizer.step()
            seen += batch.numel()
            history.append(Step(step=step, loss=loss, recall=recall, lr=float(schedule.get_last_lr()[0]), tokens=seen))
            schedule.step()
            if on_step is not None:
                on_step(history[-1])
    for gate in gates:
        gate.requires_grad_(False)
    parameters = sum(weight.numel() for weight in weights)
    saved = _saved_dtype(dtype, parameters)
    for weight in weights:
        weight.data = weight.data.to(saved).float()  # recall below is that of the file
    report = gate_recall(loaded, gates, held_out) if held_out else []
    recipe = {
        "block_size": block_size, "steps": steps, "tokens": seen, "lr": lr, "warmup": warmup, "pool": pool,
        "skip_rows": skip_rows, "q_linear": q_linear, "seed": seed, "model": loaded.name,
        "model_hash": loaded.revision_hash, "model_dtype": str(loaded.dtype).removeprefix("torch."),
        "loss": history[-1].loss, "recall": mean_recall(report),
    }  # fmt: skip
    path = save_gates(gates, out / file.format(block_size=block_size), dtype=saved, recipe=recipe)
    return Distilled(path, gates, history, report, parameters, time.perf_counter() - began)


@contextmanager
def progress_bar(steps: int) -> Iterator[Callable[[Step], None]]:
    """A bar in the terminal with loss and recall; what it yields goes to distill as on_step."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("KL {task.fields[loss]:.4f}  recall {task.fields[recall]:.1%}")
    with Progress(TextColumn("gates"), BarColumn(), MofNCompleteColumn(), text, TimeRemainingColumn()) as bar:
        task = bar.add_task("gates", total=steps, loss=math.nan, recall=math.nan)
        yield lambda step: bar.update(task, completed=step.step + 1, loss=step.loss, recall=step.recall)


def new_gates(loaded: LoadedModel, kind: type[Any] = AttnGate, *, block_size: int, seed: int = 0, **options: Any) -> list[Gate]:
    """Untrained gates for every layer of a model, on its device; the same numbers for the same seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    gates = []
    for _ in range(loaded.layers):
        gate = kind(loaded.heads, loaded.kv_heads, loaded.head_dim, block_size=block_size, **options)
        gate.reset_parameters(generator)
        gates.append(gate.to(loaded.device))
    return gates


def rate(step: int, steps: int, warmup: int) -> float:
    """The learning rate of step 0, 1, … as a share of its peak: linear warm-up, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def save_gates(gates: Sequence[Gate], path: Path, *, dtype: torch.dtype, recipe: dict[str, object]) -> Path:
    """Write the file whole or not at all; each item of `recipe` as JSON in its metadata."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: weight.to("cpu", dtype).contiguous() for name, weight in gate_state(gates).items()}
    partial = path.with_suffix(".partial")
    save_file(state, str(partial), metadata={key: json.dumps(value) for key, value in recipe.items()})
    partial.replace(path)
    return path


class _Trainer:
    """Takes each layer's share of a step: its target, its gate's loss, and the gradient at once."""

    def __init__(self, loaded: LoadedModel, gates: Sequence[Gate], *, pool: str, skip_rows: float) -> None:
        self.loaded = loaded
        self.gates = gates
        self.pool = pool
        self.skip_rows = skip_rows
        self._ropes: dict[int, ModelRope] = {}
        self._values: list[Tensor] = []

    def visit(self, layer: int, q: Tensor, k: Tensor, scale: float) -> None:
        gate = self.gates[layer]
        if layer not in self._ropes:
            self._ropes[layer] = ModelRope(self.loaded.model, layer)
        q = gate.learns_from(q)
        target = target_map(q, k, gate, scale=scale, pool=self.pool)
        with torch.enable_grad():  # the model's forward pass around us has none
            logits = gate(q, k, self._ropes[layer])
            loss = gate_loss(target, logits, skip_rows=self.skip_rows)
            (loss / len(self.gates)).backward()
        grid = gate_grid(gate, q, k)
        budget = row_budget(STEP_DENSITY, **grid)
        found = recall_rows(select_topk(target, budget, **grid), select_topk(logits.detach(), budget, **grid))
        self._values.append(torch.stack((loss.detach(), found.mean())))

    def finish(self) -> tuple[float, float]:
        """Loss and recall of the step, means over the layers that were seen. Waits for the device."""
        if not self._values:
            raise UserError(f"no layer of {self.loaded.name} attends to the whole text: gates have nothing to learn")
        loss, recall = torch.stack(self._values).mean(0).tolist()
        self._values.clear()
        if not math.isfinite(loss):
            raise UserError(f"the loss of the gates is {loss}: lower lr, or load the model in float32 or bfloat16")
        return loss, recall


def _next(tokens: Iterator[Tensor], step: int, steps: int) -> Tensor:
    try:
        return torch.atleast_2d(next(tokens))
    except StopIteration:
        raise UserError(f"the text ended after {step} of {steps} steps: give more text, or fewer steps") from None


def _saved_dtype(name: str, parameters: int) -> torch.dtype:
    if name == "auto":
        return torch.float32 if parameters * 4 <= FLOAT32_BYTES else torch.bfloat16
    return SAVED[name]


def _check(steps: int, lr: float, warmup: int, skip_rows: float, pool: str, dtype: str) -> None:
    if steps < 1:
        raise UserError(f"steps={steps}: must be at least 1")
    if not lr > 0:
        raise UserError(f"lr={lr}: must be above 0, for example 1e-3")
    if warmup < 0:
        raise UserError(f"warmup={warmup}: must be at least 0 steps")
    if not 0 <= skip_rows < 1:
        raise UserError(f"skip_rows={skip_rows}: must be at least 0 and below 1")
    if pool not in ("max", "mass"):
        raise UserError(f"pool={pool}: must be one of max, mass")
    if dtype != "auto" and dtype not in SAVED:
        raise UserError(f"dtype={dtype} of the gates' file: must be one of auto, {', '.join(SAVED)}")
