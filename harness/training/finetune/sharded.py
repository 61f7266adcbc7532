"""A model whose layers are shared among processes (FSDP): its norms, and its state to and from what one process has."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(model: nn.Module) -> bool:
    """Return whether layers of a model are shared among processes."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def add_gradients_up(model: nn.Module) -> None:
    """Have the gradients of shared layers added up over the processes, as those of all else are, where FSDP takes means."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # Gloo has no sum that divides


def clip(weights: Sequence[Tensor], most: float) -> Tensor:
    """Scale the gradients of weights, shared or whole, to a norm of at most `most`; return the norm from before, a scalar, the
    same in all processes."""
    shared = [weight for weight in weights if isinstance(weight, DTensor)]
    if not shared:
        return torch.nn.utils.clip_grad_norm_(weights, most)
    parts: list[list[Tensor]] = [[*shared], [weight for weight in weights if not isinstance(weight, DTensor)]]
    norms = []
    for part in parts:
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in part if weight.grad is not None])
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    total = torch.linalg.vector_norm(torch.stack(norms))
    if math.isfinite(most):
        for part in parts:
            torch.nn.utils.clip_grads_with_norm_(part, most, total)
    return total


def are_finite(weights: Iterable[Tensor]) -> bool:
    """Return whether all numbers that this process has of weights are finite."""
    return all(bool(own_part(weight).isfinite().all()) for weight in weights)


def own_part(weight: Tensor) -> Tensor:
    """Return what this process has of a weight: all of one that is not shared."""
    if isinstance(weight, DTensor):
        local: Tensor = weight.to_local()
        return local.detach()
    return weight.detach()


def whole(state: Any, *, keep: bool) -> Any:
    """Return a state of nested dicts and lists with each shared tensor whole, on the CPU; all processes call it together.

    keep: whether this process wants them; another has None in their place, and does not hold them all.
    """
    if isinstance(state, DTensor):
        full = state.full_tensor()
        return full.cpu() if keep else None
    if isinstance(state, Mapping):
        return {name: whole(value, keep=keep) for name, value in state.items()}
    if isinstance(state, list):
        return [whole(value, keep=keep) for value in state]
    return state


def shared_as(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return the whole weights of a module, with those that it shares among processes shared as it has them."""
    own = module.state_dict()
    return {name: _shared_as(value, own[name]) for name, value in state.items()}


def optimizer_state_shared_as(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the whole state of an optimiser, with the moments of shared weights shared as these are."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    moments = {
        number: {
            name: _shared_as(value, weights[number]) if value.shape == weights[number].shape else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": moments}


def _shared_as(value: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor, each process having the same, shared as another is; itself where that is not."""
    if not isinstance(like, DTensor):
        return value
    on_device = value.to(like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)  # no message
