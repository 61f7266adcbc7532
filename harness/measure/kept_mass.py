"""The attention mass that an arm keeps on real activations, by layer and head: a comparison that needs no task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from attention_kernels.kept_mass import kept_mass
from attention_kernels.skip_softmax import SkipRule
from attention_kernels.sparse_attention import Choice, SparseIndex, attend, resolve_kernel
from torch import Tensor

from harness.arms.build import RunnableArm
from harness.core.errors import UserError
from harness.measure.context import RunContext, one_line
from harness.models.bridge import Bridge
from harness.models.loading import LoadedModel
from harness.models.rope import ModelRope
from harness.study.identity import digest
from harness.study.provenance import now
from harness.study.schema import MassRecord
from methods.parts.base import LayerInputs, Method


@dataclass
class Kept:
    """What a method keeps in the layers of some prompts: kept[layer] a list of [heads] a prompt, density[layer] likewise.
    sparse_kernel: runs only where a method leaves the choice to it."""

    loaded: LoadedModel
    method: Method
    sparse_kernel: str = "auto"
    kept: dict[int, list[Tensor]] = field(default_factory=dict)
    density: dict[int, list[Tensor]] = field(default_factory=dict)

    def observe(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
        """The Bridge's observer: what the method would keep of this layer, whose attention then runs dense."""
        rope = ModelRope(self.loaded.model, layer) if self.method.needs_rope else None
        choice = self.method.select(LayerInputs(q=q, k=k, layer=layer, scale=scale, rope=rope))
        if choice is None:
            mass, density = q.new_ones(q.shape[1], dtype=torch.float32), q.new_ones((), dtype=torch.float32)
        else:
            index = what_runs(self.loaded, q, k, v, choice, scale=scale, kernel=self.sparse_kernel)
            mass, density = kept_mass(q, k, index, scale=scale).mean(0), index.density().mean()
        self.kept.setdefault(layer, []).append(mass)
        self.density.setdefault(layer, []).append(density)

    def by_head(self) -> list[list[float]]:
        """[layers][heads], the mean over prompts."""
        return [torch.stack(self.kept[layer]).mean(0).tolist() for layer in sorted(self.kept)]

    def by_layer(self) -> list[float]:
        """Density of each layer, the mean over prompts."""
        return [float(torch.stack(self.density[layer]).mean()) for layer in sorted(self.density)]


def what_runs(
    loaded: LoadedModel, q: Tensor, k: Tensor, v: Tensor, choice: Choice, *, scale: float, kernel: str
) -> SparseIndex:
    """What a choice comes to in one layer: itself, or of a rule that the kernel decides by what the kernel kept."""
    if not isinstance(choice, SkipRule):
        return choice
    kernel = resolve_kernel(
        kernel, choice, device=loaded.device, dtype=loaded.dtype, head_dim=loaded.head_dim, heads=q.shape[1]
    )
    return attend(q, k, v, choice, scale=scale, kernel=kernel)[1]


@torch.inference_mode()
def keep(
    loaded: LoadedModel,
    method: Method,
    prompts: Sequence[Sequence[int]],
    *,
    sparse_kernel: str = "auto",
    advance: Any = None,
) -> Kept:
    """Prefill the prompts (token ids) with dense attention, and note what the method would have kept in each global layer."""
    found = Kept(loaded, method.to(loaded.device), sparse_kernel)
    with Bridge(loaded, None, observer=found.observe, record=False):
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], dtype=torch.int64, device=loaded.device)
            loaded.model(input_ids=ids, use_cache=False, logits_to_keep=1)
            if advance is not None:
                advance()
    return found


def measure_mass(context: RunContext, arm: RunnableArm, names: list[str]) -> int:
    """Record the mass an arm keeps, once for its samples. Returns 1 where that failed, else 0. Dense attention keeps all."""
    if arm.method is None:
        return 0
    count = context.settings.samples
    prompts_of = {
        "tasks": names,
        "prompts": count,
        "text": context.text_of(names) | context.files(*names),
        "chat": context.chat,
    }
    identity = {**arm.identity.as_dict(), **prompts_of}
    key = digest(identity)
    context.store.mass.read()
    if context.store.mass.has(key):
        return 0
    try:
        prompts = prompts_in_turn(context, names, count)
        with context.progress() as progress:
            bar = progress.add_task(f"mass kept by {arm.identity.method}", total=len(prompts))
            found = keep(
                context.loaded,
                arm.method,
                prompts,
                sparse_kernel=context.settings.kernel,
                advance=lambda: progress.advance(bar),
            )
    except Exception as error:  # out of memory, a method that refuses: the sweep goes on, the next run tries again
        context.complain(f"failed: mass kept by {arm.identity.method}: {one_line(error)}")
        return 1
    context.store.mass.append(
        MassRecord(
            mass=key,
            arm=arm.identity.id,
            run=context.run.run,
            identity=identity,
            knobs=arm.identity.knobs,
            prompts=len(prompts),
            tokens=fmean(map(len, prompts)),
            layers=sorted(found.kept),
            kept=found.by_head(),
            density=found.by_layer(),
            date=now(),
        )
    )
    return 0


def prompts_in_turn(context: RunContext, names: list[str], count: int) -> list[Sequence[int]]:
    """The first prompts of the tasks, one of each in turn; a task that has none of this length is passed over."""
    drawn: list[list[Any]] = []
    error: UserError | None = None
    for name in names:
        try:
            drawn.append(context.samples(name))
        except UserError as found:
            error = error or found
    if not drawn:
        raise error or UserError("no task to take prompts from")
    turns = [samples[turn] for turn in range(count) for samples in drawn if turn < len(samples)]
    return list(context.tokens(turns[:count]))
