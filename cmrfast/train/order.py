"""Which samples each step learns from, and its random numbers, as functions of its number."""

import torch
from torch import Tensor

from cmrfast.data.loading import batches
from cmrfast.data.random import uniforms
from cmrfast.models.recipe import Recipe


class SampleOrder:
    """The samples of every step, shuffled differently in each epoch.

    Args:
        seed: of the shuffles.
        samples: in an epoch.
        recipe: its batch, capped at the samples, and whether incomplete batches are dropped.
    """

    def __init__(self, seed: int, samples: int, recipe: Recipe) -> None:
        self.seed, self.total, self.recipe = seed, samples, recipe
        self.batch = min(recipe.batch, samples)
        whole, rest = divmod(samples, self.batch)
        self.steps_per_epoch = whole + (rest > 0 and not recipe.drop_last)
        self._epoch: tuple[int, list[Tensor]] = (-1, [])

    def epoch(self, step: int) -> int:
        """The epoch of a step."""
        return step // self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether so many steps are a whole number of epochs."""
        return step % self.steps_per_epoch == 0

    def samples(self, step: int) -> tuple[int, Tensor]:
        """The epoch and the samples of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            drop = self.recipe.drop_last
            shuffled = batches(self.seed, epoch, self.total, self.batch, drop_last=drop)
            self._epoch = (epoch, shuffled)
        return epoch, self._epoch[1][place]

    def count(self, step: int) -> int:
        """Number of samples of a step."""
        first = step % self.steps_per_epoch * self.batch
        return min(self.batch, self.total - first)


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed torch for a step: dropout and the like depend on it, not on what was drawn before."""
    draw = uniforms(seed, step, torch.tensor([rank]), 1, "step")
    torch.manual_seed(int(draw.item() * 2**53))
