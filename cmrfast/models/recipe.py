"""What every method's recipe has: how its network is optimised, on which batches, for how long."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from cmrfast.models._check import require_option

Keep = Literal["last", "best"]


@dataclass(frozen=True)
class Recipe:
    """A method's own Recipe sets the published values and adds its sampling and augmentation.

    Args:
        lr: at the start.
        batch: samples an optimiser step.
        epochs: passes over the training set.
        lr_factor: multiplies the learning rate after every ``lr_every`` epochs.
        lr_every: in epochs.
        weight_decay: coupled, as an L2 term of the loss.
        drop_last: leave out an epoch's incomplete last batch.
        keep: the network that is used afterwards: of the ``last`` step, or of the ``best``
            validation score.
        split: patients to train, validate and test on; other cohorts are split in proportion.
    """

    lr: float
    batch: int
    epochs: int
    lr_factor: float = 1.0
    lr_every: int = 1
    weight_decay: float = 0.0
    drop_last: bool = False
    keep: Keep = "last"
    split: tuple[float, float, float] = (70, 15, 15)

    def __post_init__(self) -> None:
        require_option("Recipe", "keep", self.keep, ("last", "best"))
        for name in ("batch", "epochs", "lr_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"Recipe: {name} must be at least 1; got {getattr(self, name)}")
        for name in ("lr", "lr_factor"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"Recipe: {name} must be positive; got {getattr(self, name)}")
        if self.weight_decay < 0:
            raise ValueError(f"Recipe: weight_decay must be >= 0; got {self.weight_decay}")

    def lr_at(self, epoch: int, step: int) -> float:
        """The learning rate of an optimiser step: both count from 0, the step over all epochs."""
        return self.lr * self.lr_factor ** (epoch // self.lr_every)

    def step_options(self, epoch: int) -> dict[str, Any]:
        """Keyword arguments of the method's own ``step`` in an epoch, for methods that have one."""
        return {}

    def optimiser(self, network: str, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Adam for one network, which methods that train several tell apart by name."""
        return torch.optim.Adam(weights, self.lr, weight_decay=self.weight_decay, fused=True)
