"""Task: what connects a method's network to images on disk."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, get_args

import torch
from torch import Tensor, nn

from cmrfast.data.cache import Cache, Tensors
from cmrfast.data.datasets.case import Case
from cmrfast.data.volume import Volume
from cmrfast.methods.preparation import ConfigT, Preparation, RecipeT, Source

ModelT = TypeVar("ModelT", bound=nn.Module)

Batch = dict[str, Tensor]
Facts = Mapping[str, Any]
#: Which of two masks, the reference or the prediction, has a structure.
Presence = Literal["both", "reference", "prediction", "neither"]
PRESENCES: tuple[Presence, ...] = get_args(Presence)


class Feed(Protocol):
    """The samples of one epoch; a batch is a function of the epoch and the sample numbers."""

    def __len__(self) -> int:
        """Samples in an epoch."""
        ...

    def batch(self, epoch: int, samples: Tensor) -> Batch:
        """What the network and its loss are given; called from any thread.

        Args:
            epoch: from 0; seeds random choices and augmentation.
            samples: (B,) numbers within the epoch.

        Returns:
            Tensors on the task's device.
        """
        ...


@dataclass(frozen=True)
class Row:
    """One unit of an evaluation, such as a slice or a patient.

    Args:
        ids: what the unit is (``case``, ``slice`` ...) and counts that describe it; never averaged.
        scores: NaN, or no entry, where the unit has no value.
        present: structure → which of its two masks have it; a score of two empty masks is perfect
            by definition, so tables count such units separately.
    """

    ids: Mapping[str, str | int]
    scores: Mapping[str, float]
    present: Mapping[str, Presence] = field(default_factory=dict)

    @property
    def case(self) -> str:
        """Name of the patient."""
        return str(self.ids["case"])


def presence(reference: object, prediction: object) -> Presence:
    """Which of two masks have a structure, from whether each has it."""
    if reference:
        return "both" if prediction else "reference"
    return "prediction" if prediction else "neither"


def rows_of_columns(
    case: str | Sequence[str],
    ids: Mapping[str, Sequence[int]],
    scores: Mapping[str, Tensor],
    present: Mapping[str, Sequence[Presence]],
) -> list[Row]:
    """Rows from columns of one length; a single case is that of all rows."""
    columns = {name: values.tolist() for name, values in scores.items()}
    count = len(next(iter(columns.values())))
    columns_of_ids: dict[str, Sequence[str | int]] = {
        "case": [case] * count if isinstance(case, str) else case,
        **ids,
    }
    return [
        Row(
            {name: column[n] for name, column in columns_of_ids.items()},
            {name: column[n] for name, column in columns.items()},
            {name: column[n] for name, column in present.items()},
        )
        for n in range(count)
    ]


@dataclass(frozen=True)
class Output:
    """An image to write on the grid of the input ``like``, whose header it takes over.

    Args:
        volume: integers or bool of a mask, floats of anything else.
        like: the input.
        structures: value → structure of a mask.
    """

    volume: Volume
    like: Path
    structures: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """A method's result for one case.

    Args:
        images: file name without suffix → image, such as ``scar`` → mask.
        facts: whatever is not an image, such as a transform; JSON.
    """

    images: Mapping[str, Output]
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """What a report shows of one case.

    Args:
        image: of the case.
        predicted: its labels, on its grid.
        reference: its reference labels, on its grid, where there are any.
        maps: structure → its probability, on its grid, of networks that give it.
        before: the predicted labels before a registration moved them, on its grid.
    """

    image: Volume
    predicted: Volume
    reference: Volume | None = None
    maps: Mapping[str, Volume] = field(default_factory=dict)
    before: Volume | None = None

    def masks(self) -> dict[str, Volume]:
        """What is drawn on the image, by name, from left to right."""
        named = {
            "before registration": self.before,
            "prediction": self.predicted,
            "reference": self.reference,
        }
        return {name: mask for name, mask in named.items() if mask is not None}


class Task(ABC, Generic[ModelT, ConfigT, RecipeT]):
    """A method's images: how they are prepared, sampled, predicted and scored.

    A task is created for each run from the run's config and recipe and, for anything but training,
    from the ``fitted`` facts that training stored.

    Args:
        config: of the network.
        recipe: of the training.
        fitted: what ``fit`` returned.
        device: where batches are made.
        cache: keeps prepared images between runs; None prepares them each time.
    """

    #: Everything that is prepared, each with the files and fields that it depends on.
    preparations: ClassVar[tuple[Preparation[Any, Any], ...]] = ()
    #: Slices, patches or windows that the network is given at a time, outside training.
    predict_batch: int = 8
    #: Whether scores of a case depend on the cases it is evaluated with.
    mixes_cases: ClassVar[bool] = False

    def __init__(
        self,
        config: ConfigT,
        recipe: RecipeT,
        fitted: Facts | None = None,
        *,
        device: torch.device | str = "cpu",
        cache: Cache | None = None,
    ) -> None:
        self.config, self.recipe = config, recipe
        self.fitted: Facts = fitted or {}
        self.device, self.cache = torch.device(device), cache

    def files(self, case: Case) -> dict[str, Path]:
        """The files of a case that preparations may read, such as ``image LGE``, or all files."""
        kinds = (("image", case.images), ("label", case.labels))
        every = {f"{kind} {key}": path for kind, files in kinds for key, path in files.items()}
        if not self.preparations:
            return every
        read = {name for preparation in self.preparations for name in preparation.files(case)}
        return {name: path for name, path in every.items() if name in read}

    def fit(self, cases: Sequence[Case]) -> dict[str, Any]:
        """What preparation learns from the training patients, as JSON; often nothing."""
        return {}

    @abstractmethod
    def feed(self, cases: Sequence[Case], *, seed: int) -> Feed:
        """Samples to train on.

        Args:
            cases: of the training patients.
            seed: of every random choice.
        """

    def arrange(self, feed: Feed, epoch: int, samples: Tensor) -> Tensor:
        """The samples of a whole batch, before ranks share them; by default those that are given.

        Args:
            feed: what ``feed`` returned.
            epoch, samples: as in ``Feed.batch``.
        """
        return samples

    @abstractmethod
    def predict(self, model: ModelT, case: Case) -> Prediction:
        """Apply a trained network, in evaluation mode, to a case; its labels are not read."""

    def require_scorable(self, case: Case) -> None:
        """Read what ``evaluate`` reads of a case, to name its faults before a training.

        By default nothing is read: faults then show in the first validation.

        Raises:
            FileError: a file is missing or cannot be used.
        """
        return

    @abstractmethod
    def evaluate(self, model: ModelT, case: Case) -> list[Row]:
        """Score a prediction against the case's labels; no rows where it has none."""

    def evaluate_all(self, model: ModelT, cases: Sequence[Case]) -> list[Row]:
        """Score several cases; a method whose scores depend on which are together overrides it."""
        return [row for case in cases for row in self.evaluate(model, case)]

    def pooled(self, rows: Sequence[Row]) -> dict[str, float]:
        """Scores of all rows together that are not means over rows; often none."""
        return {}

    @abstractmethod
    def picture(self, model: ModelT, case: Case) -> Picture:
        """What a report shows of the case."""

    def prepared(self, preparation: Preparation[ConfigT, RecipeT], case: Case) -> Tensors:
        """A case prepared with this task's config, recipe and fitted facts."""
        source = Source(case, self.config, self.recipe, self.fitted, self.cache)
        return preparation(source)
