"""Train the gates of a method for a frozen model, from its own attention (SeerAttention, arXiv 2410.13276, and -R, 2506.08889).

One forward pass trains the gates of all layers: a gate sees its layer's queries and keys while the pass is there, and its
gradient is taken at once, so that only one layer's attention map is in memory at a time. Nothing flows back into the
model, which stays as it is: several trainings learn from the same pass. With several processes each has its rows of a step,
and only the gates' gradients travel.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from harness.core.errors import UserError
from harness.models.loading import LoadedModel
from harness.training.gates.capture import Capture
from harness.training.gates.processes import Processes
from harness.training.gates.step_graph import PassGraphs
from harness.training.gates.trainer import GateTrainer
from harness.training.gates.training import Distilled, Plan, Training
from methods.gates.attn_gate import AttnGate
from methods.gates.gate import Gate


def distill(
    loaded: LoadedModel,
    tokens: Iterator[Tensor],
    plans: Sequence[Plan],
    *,
    out: Path,
    held_out: Sequence[Tensor] = (),
    kind: type[Gate] = AttnGate,
    processes: Processes | None = None,
    cuda_graph: bool = False,
) -> Iterator[Distilled]:
    """Train gates, one per layer, by each of the plans; yield each training as soon as its file is in folder `out`.

    tokens: the batches, [N] or [B,N] int64, of all processes together, the same in each and for all plans, which begin at
    their `first_step` (where a checkpoint is found, batches that it has seen are drawn and dropped). plans: at least one, all
    of one block size and `micro_rows`. held_out: sequences on which recall is measured at the end. kind: of gate. cuda_graph:
    whether passes are replayed (`harness.training.gates.step_graph`).

    A training whose numbers are not finite any more ends without a file, and the others go on; UserError says so at the end.
    Raises UserError where `tokens` ends early, or rows can't be shared among the processes.
    """
    began = time.perf_counter()
    processes = processes or Processes()
    trainings = [Training(plan, loaded, kind, processes) for plan in plans]
    trainer: GateTrainer[Training] = GateTrainer(loaded, processes, plans[0].recipe.micro_rows)
    capture = Capture(loaded.model, trainer.visit)

    def eager_pass(part: Tensor) -> Tensor:
        capture.run(part)
        return trainer.end_pass()

    def constants() -> tuple[object, ...]:
        return trainer.weight, tuple(trainings.index(training) for training in trainer.active)

    one_pass = PassGraphs(eager_pass, constants, loaded) if cuda_graph else eager_pass
    batches = _Batches(tokens, max(plan.end for plan in plans))
    left = list(trainings)
    while left:
        with capture:
            while all(training.next_batch is not None for training in left):
                number = _next_batch(left)
                assert number is not None  # each of them has one
                started = time.perf_counter()
                batch = batches.take(number)
                trainer.active = [training for training in left if training.next_batch == number]
                for training in trainer.active:
                    training.begin_step(keep_gradients=cuda_graph)
                passes = [one_pass(part.to(loaded.device)) for part in trainer.parts(batch)]
                sum_of_passes = torch.stack(passes).sum(0, dtype=torch.float64).float()
                # while a GPU is still at it, the host has time to draw text
                if (following := _next_batch(left, number)) is not None:
                    batches.draw(following)
                gathered = [training.gather_step(own) for training, own in zip(trainer.active, sum_of_passes, strict=True)]
                for training, numbers in zip(trainer.active, torch.stack(gathered).tolist(), strict=True):  # one wait for all
                    training.finish_step(numbers, batch.numel(), started)
        for training in [training for training in left if training.next_batch is None]:
            left.remove(training)
            if training.problem is None:
                yield training.end(out, held_out, began)
    problems = [training.problem for training in trainings if training.problem is not None]
    if problems:
        raise UserError("; ".join(problems))


def _next_batch(trainings: Sequence[Training], done: int | None = None) -> int | None:
    """Return the number of the batch that trainings learn from next, where those of batch `done` have learnt from it; None
    where there is none."""
    numbers = [
        number + 1 if number == done else number
        for training in trainings
        if (number := training.next_batch) is not None and not (number == done and number + 1 == training.plan.end)
    ]
    return min(numbers, default=None)


class _Batches:
    """The batches of a text by their numbers, [B,N] each; what lies between two that are asked for is drawn and dropped."""

    def __init__(self, tokens: Iterator[Tensor], steps: int) -> None:
        self.tokens, self.steps = tokens, steps
        self._drawn = 0
        self._batch: Tensor | None = None

    def draw(self, number: int) -> None:
        """Draw batches up to this one. Raises UserError where the text ended."""
        while self._drawn <= number:
            try:
                self._batch = torch.atleast_2d(next(self.tokens))
            except StopIteration:
                raise UserError(
                    f"the text ended after {self._drawn} of {self.steps} steps: give more text, or fewer steps"
                ) from None
            self._drawn += 1

    def take(self, number: int) -> Tensor:
        """Return a batch that is not before the last one that was drawn. Raises UserError where the text ended."""
        self.draw(number)
        assert self._batch is not None and self._drawn == number + 1
        return self._batch
