"""Two processes that talk through gloo."""

from pathlib import Path

import torch
from torch import multiprocessing


def _rank(rank, folder, work):
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.save(work(rank, torch.distributed.group.WORLD), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def on_two_ranks(work, folder: Path):
    """What ``work(rank, group)``, a function that stands in a module, returns on either rank."""
    multiprocessing.spawn(_rank, (folder, work), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
