"""Training: one loop for every method, checkpoints that survive a kill or a full disk, logs."""

from cmrfast.train.plan import Plan, TrainOptions
from cmrfast.train.ranks import Ranks, process_group
from cmrfast.train.run import Run
from cmrfast.train.trainer import train

__all__ = ["Plan", "Ranks", "Run", "TrainOptions", "process_group", "train"]
