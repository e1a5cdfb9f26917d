"""Method: the record of one paper, which is all that the rest of the package knows of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from torch import Tensor

from cmrfast.data.datasets import Needs
from cmrfast.methods.preparation import ConfigT, RecipeT
from cmrfast.methods.task import ModelT, Row, Task
from cmrfast.models._fields import require_fields

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Dataclass = TypeVar("Dataclass", bound="DataclassInstance")
ConfigT_contra = TypeVar("ConfigT_contra", contravariant=True)


@dataclass(frozen=True)
class Uniform:
    """A search range whose values are drawn uniformly."""

    low: float
    high: float


@dataclass(frozen=True)
class LogUniform:
    """A search range whose logarithms are drawn uniformly."""

    low: float
    high: float


Range = Uniform | LogUniform


@dataclass(frozen=True)
class Objective:
    """The score that validation optimises.

    Args:
        name: a score of the rows.
        maximise: whether higher is better.
        structure: in ``Row.present``, of a score of two masks that is perfect if both are empty;
            a ``Method`` takes it from its ``overlaps``.
    """

    name: str
    maximise: bool
    structure: str = ""

    def mean(self, rows: Sequence[Row]) -> float:
        """The mean over the rows that have the score; NaN where none has.

        Rows whose two masks are both empty do not count, as in an evaluation: a network that draws
        nothing is perfect on them.
        """
        values = [
            row.scores.get(self.name, float("nan"))
            for row in rows
            if row.present.get(self.structure) != "neither"
        ]
        values = [value for value in values if value == value]
        return sum(values) / len(values) if values else float("nan")

    def merit(self, mean: float) -> float:
        """A mean with the sign that makes higher better."""
        return mean if self.maximise else -mean


@dataclass(frozen=True)
class Published:
    """A row of a paper's table.

    Args:
        title: what was measured, in words.
        protocol: on whom and how it was measured.
        cells: score → mean or "mean (SD)", as printed.
    """

    title: str
    protocol: str
    cells: Mapping[str, str]


class Loss(Protocol[ConfigT_contra]):
    """A method's loss: ``loss``, which is minimised, and its parts under their own names."""

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        config: ConfigT_contra | None = None,
        *,
        group: Any = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch; ``group`` is the process group whose batches count as one."""
        ...


#: One update of a method that has several optimisers: ``step(model, batch, optimisers, *, group,
#: average, **recipe.step_options(epoch))`` returns the losses before the update, detached.
Step = Callable[..., dict[str, Tensor]]


@dataclass(frozen=True)
class Method(Generic[ModelT, ConfigT, RecipeT]):
    """Everything about one paper.

    Args:
        name: a key of ``cmrfast.models.MODELS``.
        paper: authors, year and title.
        model: makes the network from its config.
        config: of the network; its fields are options of the command.
        recipe: of the training; its fields are options of the command.
        loss: of the network's outputs.
        task: between images on disk and the network.
        datasets: public layouts that the task reads, the default first.
        needs: what it takes of a case in any other layout.
        inputs: keys of a batch that the network takes, by the names of its forward's arguments.
        objective: what validation optimises.
        search: what a search varies unless told otherwise.
        step: only where one loss and one optimiser do not do.
        mean_loss: whether, with a config, a batch's loss is the mean of its samples' losses, so
            that parts of a batch add up.
        structures: label value → name, for pictures.
        units: what the rows of an evaluation are, in the plural.
        overlaps: score of two masks, perfect if both are empty → the structure in ``Row.present``.
        published: rows of the paper's tables, by name.
        recipes: named sets of changes of Config and Recipe, where there is more than the default.
    """

    name: str
    paper: str
    model: Callable[[ConfigT], ModelT]
    config: type[ConfigT]
    recipe: Callable[..., RecipeT]
    loss: Loss[ConfigT]
    task: type[Task[ModelT, ConfigT, RecipeT]]
    datasets: tuple[str, ...]
    needs: Needs
    inputs: tuple[str, ...]
    objective: Objective
    search: Mapping[str, Range] = field(default_factory=dict)
    step: Step | None = None
    mean_loss: Callable[[ConfigT], bool] = lambda config: False
    structures: Mapping[int, str] = field(default_factory=dict)
    units: str = "patients"
    overlaps: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, Published] = field(default_factory=dict)
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"paper": {}})

    def __post_init__(self) -> None:
        structure = self.overlaps.get(self.objective.name, "")
        object.__setattr__(self, "objective", replace(self.objective, structure=structure))

    def configure(self, changes: Mapping[str, Any]) -> tuple[ConfigT, RecipeT]:
        """The published Config and Recipe with some fields changed, each by its name alone."""
        config, recipe = self.config(), self.recipe()
        require_fields(self.name, changes, type(config), type(recipe))
        return override_fields(config, changes), override_fields(recipe, changes)


#: A method, or a task, whatever its network, Config and Recipe are.
AnyMethod = Method[Any, Any, Any]
AnyTask = Task[Any, Any, Any]


def override_fields(values: Dataclass, changes: Mapping[str, Any]) -> Dataclass:
    """Replace the fields that ``changes`` names; names that are not fields are ignored."""
    own = {item.name for item in fields(values)}
    return replace(values, **{k: v for k, v in changes.items() if k in own})
