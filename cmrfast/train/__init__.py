"""Training: one loop for every method, checkpoints that survive anything, logs."""

from cmrfast.train.loop import train
from cmrfast.train.ranks import Ranks, joined
from cmrfast.train.run import Plan, Run

__all__ = ["Plan", "Ranks", "Run", "joined", "train"]
