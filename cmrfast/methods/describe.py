"""What a folder holds, and which methods can train on it or predict it."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cmrfast.data.datasets import OWN_LAYOUTS, Case, Dataset, guess_cases, recognise
from cmrfast.data.datasets.match import Values
from cmrfast.errors import FileError
from cmrfast.methods.cases import match_cases
from cmrfast.methods.registry import get
from cmrfast.models import MODELS

_LEAST = 3  # patients: one each to train, validate and test


@dataclass(frozen=True)
class Use:
    """What a method can do with a data set.

    Args:
        train, predict: how many cases have what it takes.
        missing: what cases lack for training → in how many.
        lacks: what cases lack for prediction → in how many.
    """

    train: int
    predict: int
    missing: Mapping[str, int]
    lacks: Mapping[str, int]


@dataclass(frozen=True)
class Description:
    """A data set and its use.

    Args:
        dataset: its cases, with the names of its layout; ``folder`` where it has none.
        images, labels: name → number of cases that have it.
        methods: method → what it can do with the data set.
        faults: of files and their headers, a line each.
    """

    dataset: Dataset
    images: Mapping[str, int]
    labels: Mapping[str, int]
    methods: Mapping[str, Use]
    faults: tuple[str, ...]

    def __str__(self) -> str:
        data = self.dataset
        layout = "no known layout" if data.name == "folder" else data.name
        lines = [f"{data.root}: {layout}, {_count(len(data), 'case')}"]
        lines.append(f"sequences: {_list(self.images)}")
        lines.append(f"labels: {_list(self.labels)}")
        lines += [f"  {name}: {meaning}" for name, meaning in _meanings(data.cases).items()]
        parts = Counter(case.info["split"] for case in data.cases if "split" in case.info)
        if parts:
            lines.append(f"split: {', '.join(f'{n} {part}' for part, n in parts.items())}")
        width = max(map(len, self.methods))
        for name, use in self.methods.items():
            few = f"; a random split needs {_LEAST}" if 0 < use.train < _LEAST and not parts else ""
            lines.append(f"{name:<{width}}  can train: {_answer(use.train, use.missing)}{few}")
            lines.append(f"{'':<{width}}  can predict: {_answer(use.predict, use.lacks)}")
        return "\n".join([*lines, *self.faults])


def describe(root: str | os.PathLike[str], values: Values | None = None) -> Description:
    """Say what a folder holds; reads file names and headers, but no voxels.

    Args:
        root: a data set, or any folder of NIfTI files.
        values: of structures in the masks, instead of those that the layout names.
    """
    require_structures(values or {})
    try:
        dataset = recognise(root)
    except FileError:
        if not os.path.isdir(root) or any(own.claims(Path(root)) for own in OWN_LAYOUTS.values()):
            raise
        dataset = guess_cases(root)
    known = {name: get(name) for name in MODELS}
    uses = {}
    for name, method in known.items():
        own = {s: v for s, v in (values or {}).items() if s in method.needs.structures}
        cases, needs = match_cases(method, dataset, own).cases, method.needs
        train = [needs.missing(case, needs.train) for case in cases]
        predict = [needs.missing(case, needs.predict) for case in cases]
        uses[name] = Use(
            train.count([]),
            predict.count([]),
            Counter(item for missing in train for item in missing),
            Counter(item for missing in predict for item in missing),
        )
    return Description(
        dataset,
        Counter(name for case in dataset.cases for name in case.images),
        Counter(name for case in dataset.cases for name in case.labels),
        uses,
        tuple(f"{case.name}: {fault}" for case in dataset.cases for fault in case.check()),
    )


def require_structures(values: Values) -> None:
    """Raise unless every name is a structure that some method takes."""
    structures = dict.fromkeys(s for name in MODELS for s in get(name).needs.structures)
    unknown = [name for name in values if name not in structures]
    if unknown:
        raise ValueError(
            f"labels: structures are {', '.join(structures)}; got {', '.join(unknown)}"
        )


def _meanings(cases: tuple[Case, ...]) -> dict[str, str]:
    """Label → the values in the file of each structure, of masks with several."""
    meanings = {}
    for name, labelling in (item for case in cases for item in case.labelling.items()):
        stored = {
            structure: [theirs for theirs, ours in labelling.ours.items() if ours in members]
            for structure, members in labelling.classes.items()
        }
        if len(stored) > 1:
            meanings[name] = " ".join(f"{s}={','.join(map(str, v))}" for s, v in stored.items())
        elif not stored:
            meanings[name] = "its values have no names; give those that a method takes as --labels"
    return meanings


def _answer(count: int, missing: Mapping[str, int]) -> str:
    lacking = ", ".join(missing)
    if not count:
        return f"no, missing {lacking}" if lacking else "no"
    return f"yes, {_count(count, 'case')}" + (f"; others lack {lacking}" if lacking else "")


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items()) or "none"


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
