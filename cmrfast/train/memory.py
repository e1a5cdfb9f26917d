"""How many samples fit: measured on one of them."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmrfast.tasks import Batch
from cmrfast.train.update import Update

_SHARE = 0.6  # of free memory that activations may take; gradients and others need the rest


def micro_batch_that_fits(update: Update, sample: Batch, batch: int) -> int:
    """The largest equal parts of a batch that fit in free memory, by what one sample keeps.

    Args:
        update: of the run; its network and state are left as they are.
        sample: a batch of one.
        batch: samples of this rank.
    """
    if update.own_step:  # it needs its batch whole
        return batch
    bytes_each = max(1, _kept_by(update, sample))
    fitting = max(1, int(_free_bytes(update.ranks.device) * _SHARE / bytes_each))
    if fitting >= batch:
        return batch
    parts = -(-batch // fitting)
    return -(-batch // parts)


def _kept_by(update: Update, sample: Batch) -> int:
    """Bytes that a forward pass of one sample keeps for its backward."""
    seen: dict[int, int] = {}
    # Sharded weights are put together for the pass and count with what it keeps.
    whole = [] if update.sharded else list(update.model.parameters())
    weights = {p.untyped_storage().data_ptr() for p in whole}

    def pack(tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    kept = {name: buffer.clone() for name, buffer in update.model.named_buffers()}
    was_training = update.model.training
    update.model.eval()  # batch norm refuses a single value a channel in training
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = update.model(**{n: sample[n] for n in update.task.inputs if n in sample})
    del outputs
    update.model.train(was_training)
    with torch.no_grad():
        for name, buffer in update.model.named_buffers():
            buffer.copy_(kept[name])
    return sum(seen.values())


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    control = Path("/sys/fs/cgroup")  # a container has a limit of its own
    with suppress(OSError, ValueError):
        limit, used = (control / f"memory.{name}" for name in ("max", "current"))
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(0, free)
