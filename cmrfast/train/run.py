"""Run: the folder of one training: its plan, log and checkpoints."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cmrfast import methods
from cmrfast.atomic import atomic_write
from cmrfast.data.cache import Cache
from cmrfast.data.datasets import Split, open_dataset
from cmrfast.data.datasets.case import Case
from cmrfast.errors import CheckpointError, FileError
from cmrfast.methods import AnyMethod, AnyTask
from cmrfast.models.recipe import Recipe
from cmrfast.train.checkpoint import Checkpoint, CheckpointFolder, load_checkpoint
from cmrfast.train.plan import Plan

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_FILE = "run.json"


class Run:
    """A run's folder.

    ::

        run.json       the plan, where the data is, what was fitted, versions
        log.jsonl      one line per optimiser step
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
            with atomic_write(self.path / _FILE) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        except OSError as error:
            raise FileError(f"save_run: {self.path}: {error.strerror or error}") from error

    @property
    def method(self) -> AnyMethod:
        """The method's record."""
        return methods.get(self.plan.method)

    @property
    def config(self) -> "DataclassInstance":
        """The network's ``Config``."""
        config: DataclassInstance = _from_json(self.method.config, self.plan.config)
        return config

    @property
    def recipe(self) -> Recipe:
        """The training's ``Recipe``."""
        recipe: Recipe = _from_json(self.method.recipe, self.plan.recipe)
        return recipe

    def task(self, *, device: torch.device | str = "cpu", cache: Cache | None = None) -> AnyTask:
        """The method's task, with what training fitted."""
        return self.method.task(self.config, self.recipe, self.fitted, device=device, cache=cache)

    def cases(self, part: str, data: str | os.PathLike[str] | None = None) -> list[Case]:
        """Patients of one part of the split, or ``all`` of a folder.

        Args:
            part: train, validate, test or all.
            data: root of the data set; default where it was in training.
        """
        dataset = open_dataset(self.plan.layout, data or self.data)
        if part == "all":
            return list(dataset)
        return list(dataset.subset(getattr(self.plan.split, part)))

    def checkpoint(self) -> Checkpoint:
        """The checkpoint that the recipe keeps: the last or the best."""
        if self.recipe.keep == "best":
            path = self.checkpoints.best()
            checkpoint = load_checkpoint(path) if path else None
        else:
            checkpoint = self.checkpoints.load_newest(None)
        if checkpoint is None:
            raise CheckpointError(f"open_run: {self.path} holds no checkpoint yet")
        return checkpoint

    def model(self, *, device: torch.device | str = "cpu") -> nn.Module:
        """The trained network, in evaluation mode."""
        model: nn.Module = self.method.model(self.config)
        model.load_state_dict(dict(self.checkpoint().state["model"]))
        return model.to(device).eval()


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    import platform

    import cmrfast

    return {
        "cmrfast": cmrfast.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _from_json(kind: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """A dataclass from JSON, whose lists were tuples."""
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
