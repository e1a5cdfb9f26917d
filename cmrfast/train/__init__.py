"""Training: one loop for every method, checkpoints that survive a kill or a full disk, logs."""

from cmrfast.train.allocator import keep_freed_memory
from cmrfast.train.plan import Plan, TrainOptions
from cmrfast.train.ranks import Ranks, process_group
from cmrfast.train.run import Run
from cmrfast.train.trainer import train

__all__ = ["Plan", "Ranks", "Run", "TrainOptions", "keep_freed_memory", "process_group", "train"]
