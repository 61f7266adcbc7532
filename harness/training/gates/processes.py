"""Training with several processes, a GPU each: who does what, sums over all of them, and a model that they hold together.

`accelerate launch -m harness job=distill …` or `torchrun` starts them; accelerate reads what these set and joins them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from harness.core.errors import UserError
from harness.models.loading import LoadedModel


@dataclass(frozen=True)
class Processes:
    """This process among `count`, number `rank` (0: the one that writes), and its device. The default: it is alone."""

    rank: int = 0
    count: int = 1
    device: torch.device | None = None

    @property
    def main(self) -> bool:
        """Return whether this is the process that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes have come to this call."""
        if self.count > 1:
            torch.distributed.barrier()

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all processes into each tensor, in place, with one message. All of one dtype and device."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def agree(self, done: int) -> None:
        """Raise UserError unless all processes go on from the same step, `done`."""
        total = torch.tensor([float(done)], device=self.device)
        self.add_up([total])
        if self.count > 1 and float(total) != done * self.count:
            raise UserError("the processes find different checkpoints: job.out must be a folder that all of them see")

    def share(self, batch: Tensor) -> Tensor:
        """Return this process's rows of a step's batch [B,N], as many as every other has.

        Else processes would wait for a forward pass that others don't make. Raises UserError where the rows can't be shared
        equally.
        """
        if len(batch) % self.count:
            raise UserError(
                f"a step has {len(batch)} rows of {batch.shape[1]} tokens, which {self.count} processes can't share equally: "
                f"set job.tokens to a multiple of {self.count * batch.shape[1]}"
            )
        return batch[self.rank :: self.count]


def join(device: torch.device) -> Processes:
    """Return the processes that a launcher started, or this one alone. device: of the settings; CUDA gets its own index."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(device=device)
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    return Processes(rank=state.process_index, count=state.num_processes, device=torch.device(state.device))


def load_sharded(load: Callable[[], LoadedModel], processes: Processes) -> LoadedModel:
    """Return a model of which each process holds its share of every layer, gathered while the layer runs (FSDP).

    load: gives the model on the CPU; the processes call it in turn, so that the host holds one whole model at a time.
    Embeddings, norms outside the layers and the output head stay whole on every device. Raises UserError for one process.
    """
    if processes.count == 1:
        raise UserError(
            "job.shard=true: one process has nothing to share; start several, accelerate launch -m harness job=… job.shard=true"
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = cast(torch.device, processes.device)
    mesh = init_device_mesh(device.type, (processes.count,))
    loaded: LoadedModel | None = None
    for turn in range(processes.count):
        if turn == processes.rank:
            loaded = load()
            for layer in loaded.model.get_decoder().layers:
                fully_shard(layer, mesh=mesh, reshard_after_forward=True)
            loaded.model.to(device)
        processes.wait()
    return replace(cast(LoadedModel, loaded), device=device)
