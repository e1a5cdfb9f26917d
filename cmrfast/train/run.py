"""Run: the folder of one training: its plan, log and checkpoints."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cmrfast import methods
from cmrfast.atomic import atomic_write
from cmrfast.data.cache import Cache
from cmrfast.data.datasets import Case, Dataset, open_dataset, recognise
from cmrfast.data.datasets.match import Values
from cmrfast.data.notebook import table
from cmrfast.errors import CheckpointError, FileError
from cmrfast.files import read_json, take
from cmrfast.methods import AnyMethod, AnyTask, match_cases
from cmrfast.models.recipe import Recipe
from cmrfast.train.checkpoint import Checkpoint, CheckpointFolder, load_checkpoint
from cmrfast.train.conditions import Conditions
from cmrfast.train.inputs import Digests, digests_from_json
from cmrfast.train.plan import Plan, fields_from_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_FILE = "run.json"


class Run:
    """A run's folder.

    ::

        run.json       the plan, where the data is, what was fitted, hashes of files, conditions
        proof.json     hashes of the first step and of a prediction, for ``verify``
        log.jsonl      one line per optimiser step
        checkpoints/   the newest two and the best
        lock           held while it trains

    Args:
        path: of the folder.
        plan: what it does.
        data: root of the data set.
        fitted: what preparation learned from the training patients.
        inputs: hashes of the training and validation patients' files.
        conditions: what its bits depend on besides; None of a run from before they were stored.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        plan: Plan,
        data: str,
        fitted: Mapping[str, Any],
        inputs: Digests | None = None,
        conditions: Conditions | None = None,
    ) -> None:
        self.path, self.plan, self.data = Path(path), plan, data
        self.fitted, self.inputs, self.conditions = fitted, inputs or {}, conditions
        self.checkpoints = CheckpointFolder(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Run":
        """Read a run's folder.

        Raises:
            CheckpointError: it is no run, or its description is damaged.
        """
        file = Path(path) / _FILE
        try:
            stored = read_json(file)
            conditions = stored.get("conditions") and take(stored, "conditions", dict)
            run = cls(
                path,
                Plan.from_json(take(stored, "plan", dict)),
                take(stored, "data", str),
                take(stored, "fitted", dict),
                digests_from_json(take(stored, "inputs", dict) if "inputs" in stored else {}),
                Conditions.from_json(conditions) if conditions else None,
            )
            _ = run.config, run.recipe  # a field that does not fit is an error here, not later
        except FileNotFoundError:
            raise CheckpointError(f"open_run: {path} holds no {_FILE}; is it a run?") from None
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"open_run: {file} is damaged: {error}") from error
        return run

    def __repr__(self) -> str:
        """Its folder, method, steps and patients."""
        split = self.plan.split
        patients = "/".join(str(len(part)) for part in (split.train, split.validate, split.test))
        return (
            f"Run({str(self.path)!r}: {self.plan.method}, {self.plan.steps} steps, seed "
            f"{self.plan.seed}, {patients} patients)"
        )

    def _repr_html_(self) -> str:
        """What it trains and on whom, for notebooks."""
        split = self.plan.split
        parts = ("train", "validate", "test")
        return table(
            [
                ("run", str(self.path)),
                ("method", self.plan.method),
                ("data", f"{self.plan.layout}, {self.data}"),
                ("steps", str(self.plan.steps)),
                ("seed", str(self.plan.seed)),
                *((f"patients to {part}", str(len(getattr(split, part)))) for part in parts),
            ]
        )

    def save(self) -> None:
        """Write the description, whole or not at all."""
        content = {
            "plan": self.plan.as_json(),
            "data": self.data,
            "fitted": self.fitted,
            "inputs": self.inputs,
            "conditions": asdict(self.conditions) if self.conditions else None,
        }
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path / _FILE) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        except OSError as error:
            raise FileError(f"train: {self.path}: {error.strerror or error}") from error

    @property
    def method(self) -> AnyMethod:
        """The method's record."""
        return methods.get(self.plan.method)

    @property
    def config(self) -> "DataclassInstance":
        """The network's ``Config``."""
        config: DataclassInstance = fields_from_json(self.method.config, self.plan.config)
        return config

    @property
    def recipe(self) -> Recipe:
        """The training's ``Recipe``."""
        recipe: Recipe = fields_from_json(type(self.method.recipe()), self.plan.recipe)
        return recipe

    @property
    def changes(self) -> dict[str, Any]:
        """Every field of its Config and Recipe, as ``train`` takes them."""
        return {**asdict(self.config), **asdict(self.recipe)}

    @property
    def options(self) -> dict[str, Any]:
        """The fields of ``TrainOptions`` that it began with, of those that its bits depend on."""
        plan = self.plan
        return {
            **(self.conditions.options if self.conditions else {}),
            "steps": plan.steps,
            "seed": plan.seed,
            "micro_batch": plan.micro_batch,
            "precision": plan.precision,
            **({"init": plan.init} if plan.init else {}),
        }

    def task(self, *, device: torch.device | str = "cpu", cache: Cache | None = None) -> AnyTask:
        """The method's task, with what training fitted."""
        return self.method.task(self.config, self.recipe, self.fitted, device=device, cache=cache)

    def open_cases(self, root: str | os.PathLike[str], labels: Values | None = None) -> Dataset:
        """The cases of a folder in any layout that has the method's sequences.

        Args:
            root: of a data set.
            labels: structure → its values in the masks; default those that the run was trained
                with, for a folder in the same layout.
        """
        layout = self.plan.layout
        if Path(root).resolve() == Path(self.data):
            dataset = open_dataset(layout, root)
        else:
            dataset = recognise(root, (layout, *self.method.datasets))
        if labels is None and dataset.name == layout:
            labels = self.plan.labels
        return match_cases(self.method, dataset, labels)

    def cases(
        self,
        part: str,
        data: str | os.PathLike[str] | None = None,
        labels: Values | None = None,
    ) -> list[Case]:
        """Patients of one part of the split, or ``all`` of a folder.

        Args:
            part: train, validate, test or all.
            data: root of the data set; default where it was in training.
            labels: as in ``open_cases``.
        """
        dataset = self.open_cases(data or self.data, labels)
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
        try:
            weights: Mapping[str, Tensor] = dict(self.checkpoint().state["model"])
            with torch.device(
                "meta"
            ):  # a config that does not fit may ask for any amount of memory
                empty: nn.Module = self.method.model(self.config)
            empty.load_state_dict(weights, assign=True)
            model: nn.Module = self.method.model(self.config)
            model.load_state_dict(weights)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"open_run: the weights in {self.path} do not fit its network: {reason}"
            ) from error
        return model.to(device).eval()
