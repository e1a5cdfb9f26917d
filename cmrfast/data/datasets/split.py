"""Splits of patients into training, validation and test parts, drawn from a seed."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cmrfast.atomic import atomic_write
from cmrfast.data.datasets.layout import natural_key
from cmrfast.errors import FileError
from cmrfast.files import read_json, take

_PARTS = ("train", "validate", "test")


@dataclass(frozen=True)
class Split:
    """Names of patients in three disjoint parts."""

    train: tuple[str, ...]
    validate: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        counts = Counter((*self.train, *self.validate, *self.test))
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise ValueError(f"Split: a patient belongs to one part; twice: {', '.join(twice)}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the split as JSON, atomically."""
        try:
            with atomic_write(Path(path)) as temporary:
                temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")
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
                f"load: {path} must map train, validate and test to lists of names: {error}"
            ) from error

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Split":
        """The split of a JSON object; anything but three lists of names raises ``ValueError``."""
        parts = [take(content, part, list) for part in _PARTS]
        names = [name for part in parts for name in part]
        if len(content) > len(_PARTS) or not all(isinstance(name, str) for name in names):
            raise ValueError("it must hold nothing but these lists of names")
        return cls(*map(tuple, parts))


def split_by_patient(
    names: Iterable[str], parts: Sequence[float] = (70, 15, 15), *, seed: int = 0
) -> Split:
    """Split patients into train, validate and test.

    The split depends on the seed and the names alone, not on the order in which they are listed.
    If ``parts`` add up to the number of patients, they are used as exact counts; otherwise they
    are proportions, with at least one patient in each part.

    Args:
        names: names of all patients; equal names are one patient.
        parts: sizes or proportions of train, validate and test, such as a paper's 35, 5, 5.

    Example:
        >>> split = split_by_patient([f"patient{n}" for n in range(1, 10)], (25, 15, 5))
        >>> len(split.train), len(split.validate), len(split.test)
        (5, 3, 1)
    """
    patients = set(names)
    if len(parts) != 3 or min(parts) <= 0:
        raise ValueError(f"split_by_patient: parts must be three positive numbers; got {parts}")
    if len(patients) < 3:
        raise ValueError(f"split_by_patient: three patients are needed; got {len(patients)}")

    def hashed(name: str) -> bytes:  # a fixed shuffle, whatever the order of ``names``
        return hashlib.sha256(f"{seed}/{name}".encode()).digest()

    shuffled = iter(sorted(patients, key=hashed))
    counts = _apportion(len(patients), parts)
    train, validate, test = ([next(shuffled) for _ in range(count)] for count in counts)
    return Split(*(tuple(sorted(part, key=natural_key)) for part in (train, validate, test)))


def _apportion(total: int, parts: Sequence[float]) -> list[int]:
    """Counts of at least 1 that add up to the total, by the largest-remainder method."""
    quotas = [total * part / sum(parts) for part in parts]
    counts = [max(1, int(quota)) for quota in quotas]
    while sum(counts) < total:
        smallest = max(range(3), key=lambda i: quotas[i] - counts[i])
        counts[smallest] += 1
    while sum(counts) > total:  # a part was raised to 1
        largest = max(range(3), key=lambda i: counts[i] - quotas[i] if counts[i] > 1 else -total)
        counts[largest] -= 1
    return counts
