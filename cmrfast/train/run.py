"""Run: a folder that says what was trained, on whom, and holds everything that came of it."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmrfast.atomic import replacing
from cmrfast.data.cache import Cache
from cmrfast.data.datasets import Split, open_dataset, split_by_patient
from cmrfast.data.datasets.case import Case
from cmrfast.errors import CheckpointError, FileError
from cmrfast.models import MODELS, method
from cmrfast.tasks import Task, task_class
from cmrfast.train.checkpoint import Checkpoint, CheckpointFolder, load_checkpoint

_FILE = "run.json"


@dataclass(frozen=True)
class Plan:
    """What a run does: all that its result depends on besides the images.

    Args:
        method: a key of ``cmrfast.models.MODELS``.
        config: of the network, every field.
        recipe: of the training, every field.
        steps: optimiser steps in all.
        seed: of everything random.
        layout: the data set, as ``open_dataset`` names it.
        split: patients by name.
        micro_batch: samples that go through the network at once.
        precision: of the network's arithmetic: float32, bfloat16 or float16.
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


class Run:
    """A run's folder.

    ::

        run.json       the plan, where the data lay, what was fitted, versions
        log.jsonl      a line an optimiser step
        checkpoints/   the newest two and the best
    """

    def __init__(self, path: str | os.PathLike[str], plan: Plan, data: str, fitted: Any) -> None:
        self.path, self.plan, self.data = Path(path), plan, data
        self.fitted: Mapping[str, Any] = fitted
        self.checkpoints = CheckpointFolder(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Run":
        """Read a run's folder.

        Raises:
            CheckpointError: it is no run, or its description is damaged.
        """
        file = Path(path) / _FILE
        try:
            stored = json.loads(file.read_text("utf-8"))
            plan = dict(stored["plan"])
            plan["split"] = Split(**{part: tuple(n) for part, n in plan["split"].items()})
            return cls(path, Plan(**plan), stored["data"], stored["fitted"])
        except FileNotFoundError:
            raise CheckpointError(f"open_run: {path} holds no {_FILE}; is it a run?") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"open_run: {file} is damaged: {error}") from error

    def save(self) -> None:
        """Write the description, whole or not at all."""
        content = {
            "plan": asdict(self.plan),
            "data": self.data,
            "fitted": self.fitted,
            "versions": versions(),
        }
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with replacing(self.path / _FILE) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        except OSError as error:
            raise FileError(f"save_run: {self.path}: {error.strerror or error}") from error

    @property
    def config(self) -> Any:
        """The network's ``Config``."""
        return _filled(method(self.plan.method).Config, self.plan.config)

    @property
    def recipe(self) -> Any:
        """The training's ``Recipe``."""
        return _filled(method(self.plan.method).Recipe, self.plan.recipe)

    @property
    def made_for(self) -> dict[str, Any]:
        """What a checkpoint must have been written for to be continued by this run."""
        plan = asdict(self.plan)
        return {"method": plan.pop("method"), **{k: v for k, v in plan.items() if k != "steps"}}

    def task(self, *, device: torch.device | str = "cpu", cache: Cache | None = None) -> Task:
        """The method's task, with what training fitted."""
        cls = task_class(self.plan.method)
        return cls(self.config, self.recipe, self.fitted, device=device, cache=cache)

    def cases(self, part: str, data: str | os.PathLike[str] | None = None) -> list[Case]:
        """Patients of one part of the split, or ``all`` of a folder.

        Args:
            part: train, validate, test or all.
            data: root of the data set; default where it lay in training.
        """
        found = open_dataset(self.plan.layout, data or self.data)
        if part == "all":
            return list(found)
        return list(found.subset(getattr(self.plan.split, part)))

    def checkpoint(self) -> Checkpoint:
        """The checkpoint that the recipe keeps: the last or the best."""
        if self.recipe.keep == "best":
            path = self.checkpoints.best()
            found = load_checkpoint(path) if path else None
        else:
            found = self.checkpoints.load_newest(None)
        if found is None:
            raise CheckpointError(f"open_run: {self.path} holds no checkpoint yet")
        return found

    def model(self, *, device: torch.device | str = "cpu") -> nn.Module:
        """The trained network, in evaluation mode."""
        model = MODELS[self.plan.method](self.config)
        model.load_state_dict(dict(self.checkpoint().state["model"]))
        return model.to(device).eval()


def deal(
    method_name: str,
    data: str | os.PathLike[str],
    recipe: Any,
    seed: int,
    split: Split | None = None,
) -> tuple[str, Split]:
    """The layout that a folder has, of those the method reads, and its patients' split.

    Raises:
        FileError: the folder has none of them, or not the patients of a given split.
    """
    refused = []
    for layout in task_class(method_name).layouts:
        try:
            found = open_dataset(layout, data)
        except FileError as error:
            refused.append(str(error))
            continue
        if split is None:
            return layout, split_by_patient(found.names, recipe.split, seed=seed)
        missing = {*split.train, *split.validate, *split.test} - set(found.names)
        if missing:
            names = ", ".join(sorted(missing))
            raise FileError(f"train: {data} lacks patients of the split: {names}")
        return layout, split
    raise FileError("; ".join(refused))


def changed(method_name: str, changes: Mapping[str, Any]) -> tuple[Any, Any]:
    """A method's Config and Recipe with some fields changed, each by its name alone."""
    module = method(method_name)
    config, recipe = module.Config(), module.Recipe()
    for name in changes:
        if not any(name in vars(side) for side in (config, recipe)):
            known = ", ".join(field.name for side in (config, recipe) for field in fields(side))
            raise ValueError(f"{method_name}: fields are {known}; got {name!r}")
    config = replace(config, **{k: v for k, v in changes.items() if k in vars(config)})
    recipe = replace(recipe, **{k: v for k, v in changes.items() if k in vars(recipe)})
    return config, recipe


def plain(values: Any) -> dict[str, Any]:
    """The fields of a Config or Recipe as they come back from JSON, tuples as lists."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(values)))
    return found


def versions() -> dict[str, str]:
    """Of what a result may depend on."""
    import platform

    import cmrfast

    return {
        "cmrfast": cmrfast.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _filled(kind: Any, values: Mapping[str, Any]) -> Any:
    """A dataclass from JSON, whose lists were tuples."""
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
