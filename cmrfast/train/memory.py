"""How many samples fit in memory, measured on one of them."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmrfast.methods import Batch
from cmrfast.train.allocator import give_back_freed_memory
from cmrfast.train.network import TrainingNetwork
from cmrfast.train.shard import reshard

_FRACTION = 0.6  # of free memory for activations; gradients and others need the rest


def micro_batch_that_fits(network: TrainingNetwork, sample: Batch, batch: int) -> int:
    """Size of the largest equal parts of a batch that fit in free memory, measured on one sample.

    Args:
        network: as it trains; its state is left as it is.
        sample: a batch of one.
        batch: samples of this rank.
    """
    bytes_each = max(1, _saved_bytes(network, sample))
    fitting = max(1, int(_free_bytes(network.device) * _FRACTION / bytes_each))
    if fitting >= batch:
        return batch
    parts = -(-batch // fitting)
    return -(-batch // parts)


def _saved_bytes(network: TrainingNetwork, sample: Batch) -> int:
    """Bytes that a forward pass of one sample saves for its backward."""
    model = network.model
    seen: dict[int, int] = {}
    # Sharded weights are gathered for the pass and count with what it saves.
    whole = [] if network.sharded else list(model.parameters())
    weights = {p.untyped_storage().data_ptr() for p in whole}

    def pack(tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    was_training = model.training
    model.eval()  # batch norm refuses a single value a channel in training
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(**network.inputs_of(sample))
    del outputs
    if network.sharded:
        reshard(model)
    model.train(was_training)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return sum(seen.values())


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    give_back_freed_memory()  # what preparation has left counts as free
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    control = Path("/sys/fs/cgroup")  # a container has a limit of its own
    with suppress(OSError, ValueError):
        limit, used = (control / f"memory.{name}" for name in ("max", "current"))
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(0, free)
