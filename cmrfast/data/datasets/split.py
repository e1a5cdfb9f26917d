"""Splits of patients, or of their sequences, into training, validation and test parts."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmrfast.atomic import atomic_write
from cmrfast.data.datasets.layout import natural_key
from cmrfast.data.datasets.part import Part
from cmrfast.errors import FileError
from cmrfast.files import read_json, take

_PARTS = ("train", "validate", "test")
_UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Split:
    """Three disjoint parts: names of patients or, in a ``Part``, sequences of patients.

    A patient may be in two parts if each lists its sequences and they have none in common. Only the
    training part may have unlabelled sequences; another part may have the same ones with masks.
    """

    train: tuple[str, ...] | Part
    validate: tuple[str, ...] | Part
    test: tuple[str, ...] | Part

    def __post_init__(self) -> None:
        parts = (self.train, self.validate, self.test)
        whole = Counter(name for part in parts if not isinstance(part, Part) for name in part)
        listed = [part for part in parts if isinstance(part, Part)]
        in_listed = {name for part in listed for name in part}
        twice = sorted(name for name, count in whole.items() if count > 1 or name in in_listed)
        if twice:
            raise ValueError(f"Split: a patient belongs to one part; twice: {', '.join(twice)}")
        counts = Counter(
            (name, sequence)
            for part in listed
            for name, sequences in part.sequences.items()
            for sequence in sequences
        )
        shared = sorted(pair for pair, count in counts.items() if count > 1)
        if shared:
            words = ", ".join(f"{sequence} of {name}" for name, sequence in shared)
            raise ValueError(f"Split: a sequence belongs to one part; twice: {words}")
        for part in (self.validate, self.test):
            if isinstance(part, Part) and part.unlabelled:
                raise ValueError("Split: only the training part may have unlabelled sequences")

    @property
    def tested_unlabelled(self) -> dict[str, tuple[str, ...]]:
        """Sequences of the test part that train as well, without their masks, by patient."""
        if not (isinstance(self.train, Part) and isinstance(self.test, Part)):
            return {}
        tested, unlabelled = self.test.sequences, self.train.unlabelled
        both = {n: tuple(s for s in tested[n] if s in unlabelled.get(n, ())) for n in tested}
        return {name: sequences for name, sequences in both.items() if sequences}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the split as JSON, atomically."""
        try:
            with atomic_write(Path(path)) as temporary:
                temporary.write_text(json.dumps(self.as_json(), indent=1) + "\n", "utf-8")
        except OSError as error:
            raise FileError(f"save: {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Split":
        """Read a split that ``save`` wrote."""
        try:
            return cls.from_json(read_json(Path(path)))
        except OSError as error:
            raise FileError(f"load: {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise FileError(
                f"load: {path} must map train, validate and test to lists of names, or to objects "
                f"that map names to lists of sequences: {error}"
            ) from error

    def as_json(self) -> dict[str, Any]:
        """What ``from_json`` reads: lists of names, or objects of name → sequences."""
        content: dict[str, Any] = {}
        for name in _PARTS:
            part: tuple[str, ...] | Part = getattr(self, name)
            content[name] = _lists(part.sequences) if isinstance(part, Part) else list(part)
        if isinstance(self.train, Part) and self.train.unlabelled:
            content[_UNLABELLED] = _lists(self.train.unlabelled)
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Split":
        """The split of a JSON object; anything but what ``as_json`` makes raises ``ValueError``."""
        unknown = content.keys() - {*_PARTS, _UNLABELLED}
        if unknown:
            raise ValueError(f"it must hold nothing else; got {', '.join(sorted(unknown))}")
        unlabelled = take(content, _UNLABELLED, dict) if _UNLABELLED in content else {}
        parts: list[tuple[str, ...] | Part] = []
        for name in _PARTS:
            part = take(content, name, list, dict)
            if isinstance(part, dict):
                extra = _sequences(unlabelled) if name == "train" else {}
                parts.append(Part(_sequences(part), extra))
            elif name == "train" and unlabelled:
                raise ValueError("unlabelled goes with an object for train")
            else:
                parts.append(_texts(part, name))
        return cls(*parts)


def _lists(sequences: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    return {name: list(each) for name, each in sequences.items()}


def _sequences(content: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {name: _texts(take(content, name, list), name) for name in content}


def _texts(values: list[Any], name: str) -> tuple[str, ...]:
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name} must be a list of text")
    return tuple(values)


def split_by_patient(
    names: Iterable[str], parts: Sequence[float] = (70, 15, 15), *, seed: int = 0
) -> Split:
    """Split patients into train, validate and test.

    The split depends on the seed and the names alone, not on the order in which they are listed.
    If ``parts`` add up to the number of patients, they are used as exact counts; otherwise they
    are proportions, with at least one patient in each part that is not 0.

    Args:
        names: names of all patients; equal names are one patient.
        parts: sizes or proportions of train, validate and test, such as a paper's 35, 5, 5.

    Example:
        >>> split = split_by_patient([f"patient{n}" for n in range(1, 10)], (25, 15, 5))
        >>> len(split.train), len(split.validate), len(split.test)
        (5, 3, 1)
    """
    patients = set(names)
    if len(parts) != 3 or parts[0] <= 0 or min(parts) < 0:
        raise ValueError(
            "split_by_patient: parts must be three numbers, the first positive and none negative; "
            f"got {parts}"
        )
    if len(patients) < 3:
        raise ValueError(f"split_by_patient: three patients are needed; got {len(patients)}")

    def hashed(name: str) -> bytes:  # a fixed shuffle, whatever the order of ``names``
        return hashlib.sha256(f"{seed}/{name}".encode()).digest()

    shuffled = iter(sorted(patients, key=hashed))
    counts = apportion(len(patients), parts)
    train, validate, test = ([next(shuffled) for _ in range(count)] for count in counts)
    return Split(*(tuple(sorted(part, key=natural_key)) for part in (train, validate, test)))


def apportion(total: int, parts: Sequence[float]) -> list[int]:
    """Counts that add up to the total, by the largest-remainder method; 0 only of a part of 0."""
    quotas = [total * part / sum(parts) for part in parts]
    counts = [max(1, int(quota)) if quota else 0 for quota in quotas]
    each = range(len(parts))
    while sum(counts) < total:
        smallest = max(each, key=lambda i: quotas[i] - counts[i])
        counts[smallest] += 1
    while sum(counts) > total:  # a part was raised to 1
        largest = max(each, key=lambda i: counts[i] - quotas[i] if counts[i] > 1 else -total)
        counts[largest] -= 1
    return counts
