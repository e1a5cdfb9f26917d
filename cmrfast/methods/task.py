"""Task: what stands between a method's network and images on disk."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from cmrfast.data.cache import Cache
from cmrfast.data.datasets.case import Case
from cmrfast.data.volume import Volume
from cmrfast.models import method

Batch = dict[str, Tensor]
#: One unit of an evaluation, such as a slice or a patient: ``case``, what else names it, scores.
Row = dict[str, str | int | float]


class Feed(Protocol):
    """The samples of one epoch; a batch is a function of the epoch and the samples' numbers."""

    def __len__(self) -> int:
        """Samples of an epoch."""
        ...

    def batch(self, epoch: int, samples: Tensor) -> Batch:
        """What the network and its loss get: called from any thread, on the task's device.

        Args:
            epoch: from 0; decides on random choices and augmentation.
            samples: (B,) numbers in the epoch.
        """
        ...


@dataclass(frozen=True)
class Output:
    """An image to write: on the grid of the input ``like``, whose header it takes over."""

    volume: Volume
    like: Path


@dataclass(frozen=True)
class Prediction:
    """What a method says of one case.

    Args:
        images: file name without ending → image, such as ``scar`` → mask.
        facts: whatever is not an image, such as a transform; JSON.
    """

    images: Mapping[str, Output]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """What a picture of one case shows: an image and, on its grid, both masks' labels."""

    image: Volume
    predicted: Volume
    reference: Volume | None = None


class Task(ABC):
    """A method's images: prepared, sampled, predicted and judged.

    A task is made anew for each run, with what the run's config and recipe say and, for anything
    but training, with the ``fitted`` facts that training stored.

    Args:
        config: of the method's module, ``Config``.
        recipe: of the method's module, ``Recipe``.
        fitted: what ``fit`` gave.
        device: where batches are made.
        cache: keeps prepared images between runs; None prepares them each time.
    """

    #: The method's name in ``cmrfast.models``.
    name: ClassVar[str]
    #: Data sets that it reads, by name.
    layouts: ClassVar[tuple[str, ...]]
    #: Keys of a batch that the network takes, by the names of its forward's arguments.
    inputs: ClassVar[tuple[str, ...]]
    #: The score in rows that validation maximises, or minimises if it starts with a minus.
    objective: ClassVar[str]
    #: The sequence of an image that alone makes a case for ``predict``; None if it takes several.
    single_image: ClassVar[str | None] = None
    #: Slices, patches or windows that the network gets at once outside training.
    predict_batch: int = 8
    #: Whether a batch's loss is the mean of its samples' losses, so that those of parts add up.
    separable: ClassVar[bool] = False
    #: Names of the label values that a picture shows.
    structures: ClassVar[Mapping[int, str]] = {}
    #: Rows of the paper's tables, {model: {metric: mean or "mean (SD)" as printed}}.
    published: ClassVar[Mapping[str, Mapping[str, str]]] = {}

    def __init__(
        self,
        config: Any,
        recipe: Any,
        fitted: Mapping[str, Any] | None = None,
        *,
        device: torch.device | str = "cpu",
        cache: Cache | None = None,
    ) -> None:
        self.config, self.recipe = config, recipe
        self.fitted: Mapping[str, Any] = fitted or {}
        self.device, self.cache = torch.device(device), cache

    @classmethod
    def module(cls) -> Any:
        """The method's module in ``cmrfast.models``."""
        return method(cls.name)

    def fit(self, cases: Sequence[Case]) -> dict[str, Any]:
        """What preparation has to learn from the training patients, as JSON; often nothing."""
        return {}

    @abstractmethod
    def feed(self, cases: Sequence[Case], *, seed: int) -> Feed:
        """Samples to train on.

        Args:
            cases: of the training patients.
            seed: of every random choice.
        """

    def step(self, epoch: int) -> dict[str, Any]:
        """Keyword arguments of the module's ``step`` in an epoch, of methods that have one."""
        return {}

    @abstractmethod
    def predict(self, model: nn.Module, case: Case) -> Prediction:
        """Apply a trained network, in evaluation mode, to a case; its labels are not looked at."""

    @abstractmethod
    def evaluate(self, model: nn.Module, case: Case) -> list[Row]:
        """Hold a prediction against a case's labels; no rows where it has none."""

    def pooled(self, rows: Sequence[Row]) -> dict[str, float]:
        """Scores of all rows together that are no means over them; often none."""
        return {}

    @abstractmethod
    def view(self, model: nn.Module, case: Case) -> View:
        """What a picture of the case shows."""
