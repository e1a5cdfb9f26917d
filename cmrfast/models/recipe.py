"""Fields that all recipes share: optimiser, learning rate, batch size, epochs and split."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from cmrfast.models._check import require_option

Keep = Literal["last", "best"]
NonFinite = Literal["refuse", "zero"]


@dataclass(frozen=True)
class Recipe:
    """Base of the methods' recipes, which set published values and add sampling and augmentation.

    D: our decision, where a method's paper says nothing else.

    Args:
        lr: initial learning rate.
        batch: samples per optimiser step.
        epochs: passes over the training set.
        lr_factor: multiplies the learning rate after every ``lr_every`` epochs.
        lr_every: epochs from one change of the learning rate to the next.
        weight_decay: coupled weight decay, i.e. an L2 term of the loss.
        drop_last: drop the last batch of an epoch if it is incomplete.
        keep: which weights are used after training: those of the ``last`` step, or those with the
            ``best`` validation score.
        split: patients to train, validate and test on; other cohorts are split in proportion.
        non_finite: images with NaN or infinite voxels are refused, or such voxels become 0.
    """

    lr: float
    batch: int
    epochs: int
    lr_factor: float = 1.0  # D: a constant learning rate
    lr_every: int = 1  # D
    weight_decay: float = 0.0  # D
    drop_last: bool = False  # D
    keep: Keep = "last"  # D
    split: tuple[float, float, float] = (70, 15, 15)  # D
    non_finite: NonFinite = "refuse"  # D

    def __post_init__(self) -> None:
        require_option("Recipe", "keep", self.keep, get_args(Keep))
        require_option("Recipe", "non_finite", self.non_finite, get_args(NonFinite))
        for name in ("batch", "epochs", "lr_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"Recipe: {name} must be at least 1; got {getattr(self, name)}")
        for name in ("lr", "lr_factor"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"Recipe: {name} must be positive; got {getattr(self, name)}")
        if self.split[0] <= 0 or min(self.split) < 0:
            raise ValueError(
                "Recipe: split must start with a positive number and hold no negative one; "
                f"got {self.split}"
            )
        if self.weight_decay < 0:
            raise ValueError(f"Recipe: weight_decay must be >= 0; got {self.weight_decay}")

    def lr_at(self, epoch: int, step: int) -> float:
        """Learning rate of a step; epochs and steps count from 0, steps across all epochs."""
        return self.lr * self.lr_factor ** (epoch // self.lr_every)

    def step_options(self, epoch: int) -> dict[str, Any]:
        """Keyword arguments for the method's own ``step`` in an epoch, if it has one."""
        return {}

    def not_reached(self, config: Any, epoch: int) -> str:
        """What a training that ends in an epoch leaves out of the method, and the field to change.

        Empty if it leaves nothing out. ``config`` is that of the network.
        """
        return ""

    def files(self) -> dict[str, Path]:
        """Files that its fields name, by field."""
        return {}

    def initialise(self, network: nn.Module) -> None:
        """Set weights that training starts from, where they are not random."""

    def optimisers(self, networks: Mapping[str, nn.Module]) -> dict[str, torch.optim.Optimizer]:
        """All optimisers of a training, by name: one for each network, and what a method adds."""
        return {name: self.optimiser(name, network) for name, network in networks.items()}

    def optimiser(self, name: str, network: nn.Module) -> torch.optim.Optimizer:
        """Adam for a network; methods that train several with their own know them by name."""
        return torch.optim.Adam(
            network.parameters(), self.lr, weight_decay=self.weight_decay, fused=True
        )
