"""Sharding (FSDP): every rank holds a part of each weight and of the optimiser's state."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cmrfast.train.ranks import Ranks

_BLOCK_PARAMETERS = 1_000_000


def shard(model: nn.Module, ranks: Ranks) -> None:
    """Shard the weights over the ranks; large repeated layers, such as a transformer's, apart.

    Afterwards the backward pass averages the gradients, and all ranks have to take part in every
    forward pass.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    for module in reversed(list(model.modules())):  # the inner before the outer
        if isinstance(module, nn.ModuleList | nn.Sequential):
            for layer in module:
                if sum(p.numel() for p in layer.parameters()) > _BLOCK_PARAMETERS:
                    fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def reshard(model: nn.Module) -> None:
    """Free the gathered weights that a forward pass without a backward pass leaves.

    An optimiser made before that would hold them instead of this rank's parts.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[Any, Any]:
    """Weights and optimiser state in one piece, on the first rank; all ranks have to call it."""
    from torch.distributed.checkpoint import state_dict

    whole = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
    return (
        state_dict.get_model_state_dict(model, options=whole),
        state_dict.get_optimizer_state_dict(model, optimiser, options=whole),
    )


def load_whole_state(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    weights: Mapping[str, Any],
    state: Mapping[str, Any],
) -> None:
    """Shard what ``whole_state`` returned; the first rank's counts."""
    from torch.distributed.checkpoint import state_dict

    from_first = state_dict.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    state_dict.set_model_state_dict(model, dict(weights), options=from_first)
    state_dict.set_optimizer_state_dict(model, optimiser, dict(state), options=from_first)
