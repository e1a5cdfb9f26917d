"""Two processes that talk through gloo."""

import os
from pathlib import Path

import torch
from torch import multiprocessing


def _rank(rank, folder, work):
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.save(work(rank, torch.distributed.group.WORLD), folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # threads of gloo that still run can abort an orderly exit, after all is done


def on_two_ranks(work, folder: Path):
    """What ``work(rank, group)``, a function that stands in a module, returns on either rank."""
    multiprocessing.spawn(_rank, (folder, work), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
