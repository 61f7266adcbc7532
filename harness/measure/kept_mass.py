"""The attention mass that an arm keeps on real activations, by layer and head: a comparison that needs no task."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean

import torch
from attention_kernels.kept_mass import kept_mass
from torch import Tensor

from harness.arms.build import RunnableArm
from harness.core.device_memory import release_frames
from harness.core.errors import NotFiniteError, UserError
from harness.core.time_limit import time_limit
from harness.measure.cells import arm_label, note_failure
from harness.measure.context import RunContext
from harness.models.bridge import Bridge
from harness.models.loading import LoadedModel
from harness.models.observe import layer_inputs, what_runs
from harness.study.identity import digest
from harness.study.provenance import now
from harness.study.resume import Attempt, recorded
from harness.study.schema import MassRecord
from harness.tasks.sample import Sample
from methods.parts.base import Method


@dataclass
class KeptMass:
    """The attention mass that a method keeps in the layers of some prompts: mass[layer] holds a Tensor [heads] for each
    prompt, density[layer] a Tensor []. sparse_kernel: runs only where a method leaves the choice to it."""

    loaded: LoadedModel
    method: Method
    sparse_kernel: str = "auto"
    mass: dict[int, list[Tensor]] = field(default_factory=dict)
    density: dict[int, list[Tensor]] = field(default_factory=dict)

    def observe(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
        """Note what the method would keep of this layer, whose attention then runs dense: an observer of the Bridge."""
        choice = self.method.select(layer_inputs(self.loaded, self.method, layer, q, k, scale))
        if choice is None:
            mass, density = q.new_ones(q.shape[1], dtype=torch.float32), q.new_ones((), dtype=torch.float32)
        else:
            index = what_runs(self.loaded, q, k, v, choice, scale=scale, kernel=self.sparse_kernel)
            mass, density = kept_mass(q, k, index, scale=scale).mean(0), index.density().mean()
        self.mass.setdefault(layer, []).append(mass)
        self.density.setdefault(layer, []).append(density)

    def by_head(self) -> list[list[float]]:
        """Return the mass kept, [layers][heads], the mean over prompts."""
        return [torch.stack(self.mass[layer]).mean(0).tolist() for layer in sorted(self.mass)]

    def by_layer(self) -> list[float]:
        """Return the density of each layer, the mean over prompts."""
        return [float(torch.stack(self.density[layer]).mean()) for layer in sorted(self.density)]


@torch.inference_mode()
def keep(
    loaded: LoadedModel,
    method: Method,
    prompts: Sequence[Sequence[int]],
    *,
    sparse_kernel: str = "auto",
    advance: Callable[[], None] | None = None,
) -> KeptMass:
    """Prefill the prompts (token ids) with dense attention, and return what the method would have kept in each global layer.
    advance: called after each prompt."""
    observed = KeptMass(loaded, method.to(loaded.device), sparse_kernel)
    with Bridge(loaded, None, observer=observed.observe, record=False):
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], dtype=torch.int64, device=loaded.device)
            loaded.model(input_ids=ids, use_cache=False, logits_to_keep=1)
            if advance is not None:
                advance()
    return observed


def measure_mass(context: RunContext, arm: RunnableArm, task_names: Sequence[str]) -> int:
    """Record the mass that an arm keeps, once for its samples. Returns 1 where that failed, else 0. Dense attention keeps
    everything: it has no record."""
    if arm.method is None:
        return 0
    identity = {**arm.identity.as_dict(), **context.prompts_identity(task_names, context.sample_count)}
    key = digest(identity)
    if recorded(context.store.mass, key) is not None or key in context.failures.failed:
        return 0
    context.say(f"mass kept by {arm_label(arm)} on {context.sample_count} prompts of {context.length} tokens")
    with Attempt() as attempt, time_limit(context.cell_seconds):
        prompts = prompts_in_turn(context, task_names, context.sample_count)
        with context.progress() as progress:
            bar = progress.add_task(f"mass kept by {arm_label(arm)}", total=len(prompts))
            advance = partial(progress.advance, bar)
            mass = keep(context.loaded, arm.method, prompts, sparse_kernel=context.kernels.sparse, advance=advance)
        kept = mass.by_head()
        if not all(math.isfinite(share) for heads in kept for share in heads):
            raise NotFiniteError("the attention is NaN or infinite: a kernel, the dtype or the weights are at fault")
    if attempt.error is not None:
        release_frames(attempt.error, context.loaded.device)
        return note_failure(context, key, arm, "kept mass", attempt.error, label=f"mass kept by {arm_label(arm)}")
    context.store.mass.append(
        MassRecord(
            mass=key,
            arm=arm.identity.id,
            run=context.run.run,
            identity=identity,
            knobs=arm.identity.knobs,
            prompts=len(prompts),
            tokens=fmean(map(len, prompts)),
            layers=sorted(mass.mass),
            kept=kept,
            density=mass.by_layer(),
            date=now(),
            notices=list(arm.notices),
            neighbour=arm.neighbour,
        )
    )
    return 0


def prompts_in_turn(context: RunContext, task_names: Sequence[str], count: int) -> list[Sequence[int]]:
    """Return the first prompts (token ids) of the tasks, one of each in turn; a task that has none of this length is passed
    over. Raises UserError where no task has any."""
    samples_of_tasks: list[list[Sample]] = []
    first_error: UserError | None = None
    for name in task_names:
        try:
            samples_of_tasks.append(context.samples(name))
        except UserError as error:
            first_error = first_error or error
    if not samples_of_tasks:
        raise first_error or UserError("no task to take prompts from")
    turns = [samples[turn] for turn in range(count) for samples in samples_of_tasks if turn < len(samples)]
    return list(context.tokens(turns[:count]))
