"""What a training is asked to do, and the plan that it follows: all that its result depends on."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TextIO, get_args

from cmrfast.data.cache import Cache
from cmrfast.data.datasets import LAYOUTS, Dataset, Split, split_by_patient
from cmrfast.data.datasets.match import Values
from cmrfast.errors import FileError
from cmrfast.files import take
from cmrfast.methods import AnyMethod, open_cases, trainable
from cmrfast.models import MODELS
from cmrfast.models._check import require_option
from cmrfast.models._fields import require_fields
from cmrfast.models.recipe import Recipe
from cmrfast.train.trackers import TRACKERS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Compiled = Literal["no", "default", "graphs"]
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class TrainOptions:
    """How a method is trained: the command's options and the keyword arguments of ``train``.

    Args:
        split: patients by name, or some of their sequences; default whole patients, split from the
            seed in the recipe's proportions.
        labels: structure → its values in the masks, instead of those that the data set names.
        steps: optimiser steps in all; default those of the epochs.
        epochs: passes over the training set; default the recipe's.
        seed: of weights, split, sampling, augmentation and dropout.
        device: auto, cpu, or a GPU: cuda, cuda:1.
        init: folder of a run, or a safetensors file, whose weights the network starts from, in
            place of those drawn from the seed; names and shapes must be the network's.
        resume: continue from the newest whole checkpoint, or start where there is none.
        micro_batch: samples of all ranks that go through the network at a time; None finds what
            fits. Methods with a step of their own take a batch whole.
        precision: float32, bfloat16 or float16; published recipes are float32.
        compiled: run the network through ``torch.compile``; ``graphs`` captures CUDA graphs.
        channels_last: memory format of 2-D features; None uses it in half precision on a GPU.
        sharded: shard weights and optimiser state over the ranks (FSDP), for large networks.
        save_every_s: seconds between checkpoints within an epoch; each epoch ends with one.
        timeout_s: how long a rank waits for the others before it ends.
        track: trackers that get losses and scores too: tensorboard, mlflow, wandb.
        cache: keeps prepared images between runs.
        stream: for progress; None is silent.
        watch: called with (step, validation score) after every epoch; may raise to end the run.
    """

    split: Split | None = None
    labels: Values = field(default_factory=dict)
    steps: int | None = None
    epochs: int | None = None
    seed: int = 0
    device: str = "auto"
    init: str | os.PathLike[str] | None = None
    resume: bool = False
    micro_batch: int | None = None
    precision: str = "float32"
    compiled: Compiled = "no"
    channels_last: bool | None = None
    sharded: bool = False
    save_every_s: float = 600.0
    timeout_s: float = 600.0
    track: tuple[str, ...] = ()
    cache: Cache | None = None
    stream: TextIO | None = None
    watch: Callable[[int, float], None] | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"train: {name} must be at least 1; got {value}")
        if not self.save_every_s >= 0:
            raise ValueError(f"train: save_every_s must be at least 0; got {self.save_every_s}")
        if not 0 < self.timeout_s < float("inf"):
            raise ValueError(f"train: timeout_s must be positive; got {self.timeout_s}")
        require_option("train", "precision", self.precision, PRECISIONS)
        require_option("train", "compiled", self.compiled, get_args(Compiled))
        for name in self.track:
            require_option("train", "track", name, list(TRACKERS))

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "TrainOptions":
        """Options by name; an unknown one raises."""
        known = [own.name for own in fields(cls)]
        for name in options:
            if name not in known:
                raise TypeError(f"train: options are {', '.join(known)}; got {name!r}")
        return cls(**options)


@dataclass(frozen=True)
class Plan:
    """What a run does: all that its result depends on besides the images.

    Args:
        method: a key of ``cmrfast.models.MODELS``.
        config: of the network, every field.
        recipe: of the training, every field.
        steps: optimiser steps in all.
        seed: of every random choice.
        layout: the data set, as ``open_dataset`` names it.
        split: patients by name, or some of their sequences.
        micro_batch: samples of all ranks that go through the network at a time.
        precision: of the network's arithmetic: float32, bfloat16 or float16.
        labels: structure → its values in the masks, where they were given.
        init: run or file whose weights the network starts from, where one was given.
    """

    method: str
    config: Mapping[str, Any]
    recipe: Mapping[str, Any]
    steps: int
    seed: int
    layout: str
    split: Split
    micro_batch: int
    precision: str = "float32"
    labels: Values = field(default_factory=dict)
    init: str | None = None

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Plan":
        """Read what ``as_json`` made; an entry of another kind raises ``ValueError``."""
        plan = cls(
            method=take(stored, "method", str),
            config=take(stored, "config", dict),
            recipe=take(stored, "recipe", dict),
            steps=take(stored, "steps", int),
            seed=take(stored, "seed", int),
            layout=take(stored, "layout", str),
            split=Split.from_json(take(stored, "split", dict)),
            micro_batch=take(stored, "micro_batch", int),
            precision=take(stored, "precision", str),
            labels=_labels(take(stored, "labels", dict) if "labels" in stored else {}),
            init=take(stored, "init", str) if "init" in stored else None,
        )
        require_option("plan", "method", plan.method, list(MODELS))
        require_option("plan", "layout", plan.layout, list(LAYOUTS))
        require_option("plan", "precision", plan.precision, PRECISIONS)
        if plan.steps < 1 or plan.micro_batch < 1:
            raise ValueError("plan: steps and micro_batch must be at least 1")
        return plan

    def as_json(self) -> dict[str, Any]:
        """The plan as ``run.json`` holds it."""
        labels = {name: list(values) for name, values in self.labels.items()}
        content = {**asdict(self), "split": self.split.as_json(), "labels": labels}
        for name in ("labels", "init"):
            if not content[name]:  # as in runs that began before there were any
                del content[name]
        return content

    @property
    def made_for(self) -> dict[str, Any]:
        """What a checkpoint must have been written for to be resumed under this plan."""
        plan = self.as_json()
        return {"method": plan.pop("method"), **{k: v for k, v in plan.items() if k != "steps"}}


def choose_split(
    method: AnyMethod,
    data: str | os.PathLike[str],
    recipe: Recipe,
    seed: int,
    split: Split | None = None,
    labels: Values | None = None,
) -> tuple[str, Split]:
    """The layout that a folder has, and its patients' split.

    One's own data is split as its table says. Otherwise patients are split at random; of layouts
    that are not the method's own, only those who have all that training takes.

    Raises:
        FileError: the method cannot read the folder, or it lacks patients or sequences of a given
            split.
    """
    dataset = open_cases(method, data, values=labels)
    if split is None:
        return dataset.name, _split_of(method, dataset, recipe, seed)
    missing = {*split.train, *split.validate, *split.test} - set(dataset.names)
    if missing:
        names = ", ".join(sorted(missing))
        raise FileError(f"train: {data} lacks patients of the split: {names}")
    for part in (split.train, split.validate, split.test):
        dataset.subset(part)  # raises where a sequence is missing
    return dataset.name, split


def _split_of(method: AnyMethod, dataset: Dataset, recipe: Recipe, seed: int) -> Split:
    if dataset.name in method.datasets:
        return split_by_patient(dataset.names, recipe.split, seed=seed)
    usable = trainable(method, dataset)
    if any("split" in case.info for case in dataset.cases):
        return Split(
            *(
                tuple(case.name for case in dataset.cases if case.info.get("split") == part)
                for part in ("train", "validate", "test")
            )
        )
    tested = tuple(n for n in usable if dataset.case(n).info.get("set") == "test")
    others = [name for name in usable if name not in tested]
    split = split_by_patient(others, recipe.split, seed=seed)
    if not tested:
        return split
    return Split((*split.train, *split.test), split.validate, tested)  # nnU-Net's own test cases


def _labels(stored: Mapping[str, Any]) -> Values:
    for name, values in stored.items():
        if not isinstance(values, list) or any(type(value) is not int for value in values):
            raise ValueError(f"plan: labels: {name} must be a list of whole numbers")
    return {name: tuple(values) for name, values in stored.items()}


def fields_from_json(kind: type[Any], stored: Mapping[str, Any]) -> Any:
    """A Config or Recipe from JSON; a field of another name or type raises."""
    require_fields(kind.__module__.rpartition(".")[2], stored, kind)
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})


def fields_as_json(values: "DataclassInstance") -> dict[str, Any]:
    """The fields of a Config or Recipe as they come back from JSON, tuples as lists."""
    stored: dict[str, Any] = json.loads(json.dumps(asdict(values)))
    return stored
