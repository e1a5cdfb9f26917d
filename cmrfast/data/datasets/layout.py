"""How a published tree becomes cases: by the names of its files, from any level of it."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from cmrfast.data.datasets.case import Case, Dataset, Labelling
from cmrfast.errors import FileError

#: A text file of a data set is shorter than this.
_TEXT_LIMIT = 1 << 16
_DEEPEST = 8


class Place(NamedTuple):
    """What one file is."""

    case: str
    kind: Literal["image", "label"]
    key: str


@dataclass
class Draft:
    """A case while its files are being gathered."""

    name: str
    images: dict[str, Path] = field(default_factory=dict)
    labels: dict[str, Path] = field(default_factory=dict)
    info: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, place: Place, path: Path) -> None:
        """Take a file; the first of two that claim one place stays."""
        files = self.images if place.kind == "image" else self.labels
        if place.key in files:
            self.faults.append(f"{place.key} {place.kind} is there twice; {path} is not used")
        else:
            files[place.key] = path

    def folder(self) -> Path:
        """Of the first file."""
        return next(iter([*self.images.values(), *self.labels.values()])).parent


@dataclass(frozen=True)
class Layout:
    """One data set's names.

    Args:
        name: as in ``open_dataset``.
        example: a file name that a user would recognise, for the message when there is none.
        images: sequences that every case should have.
        labels: masks that every case should have.
        labelling: of every mask.
        place: what a file is, None when it is nothing of this set.
        finish: adds what text files say, once the files of a case are together.
        folders: inner folders of the published tree. A root of that name is searched together
            with its siblings, so that images find their masks in the folder beside.
    """

    name: str
    example: str
    images: tuple[str, ...]
    labels: tuple[str, ...]
    labelling: Mapping[str, Labelling]
    place: Callable[[Path], Place | None]
    finish: Callable[[Draft], None] = lambda draft: None
    folders: frozenset[str] = frozenset()

    def open(self, root: Path) -> Dataset:
        """Find the cases at or below a root."""
        drafts: dict[str, Draft] = {}
        for path in _walk_files(_search_roots(root.absolute(), self.folders)):
            place = self.place(path)
            if place:
                drafts.setdefault(place.case, Draft(place.case)).add(place, path)
        if not drafts:
            raise FileError(
                f"open_dataset: {root} holds no case of {self.name}; "
                f"it should hold files such as {self.example}"
            )
        cases = (self._case(drafts[name]) for name in sorted(drafts, key=natural_key))
        return Dataset(self.name, root, tuple(cases))

    def _case(self, draft: Draft) -> Case:
        self.finish(draft)
        missing = [f"{key} image is missing" for key in self.images if key not in draft.images]
        missing += [f"{key} label is missing" for key in self.labels if key not in draft.labels]
        return Case(
            name=draft.name,
            images=draft.images,
            labels=draft.labels,
            labelling=self.labelling,
            info=draft.info,
            faults=(*missing, *draft.faults),
        )


def natural_key(text: str) -> list[tuple[int, str]]:
    """A sorting key that puts patient2 before patient10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)
    ]


def stem(path: Path) -> str | None:
    """The name without .nii or .nii.gz; None when it ends otherwise, or the file is hidden."""
    match = re.fullmatch(r"([^.].*)\.nii(\.gz)?", path.name)
    return match[1] if match else None


def read_pairs(path: Path, separator: str, draft: Draft) -> dict[str, str]:
    """The ``key : value`` lines of a text file; a fault of the case when it cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(_TEXT_LIMIT).decode("utf-8", "replace")
    except OSError as error:
        draft.faults.append(f"{path}: {error.strerror}")
        return {}
    lines = (line.partition(separator) for line in text.splitlines())
    return {key.strip(): value.strip() for key, found, value in lines if found}


def _search_roots(root: Path, folders: frozenset[str]) -> list[Path]:
    """The root, and the published siblings of each of its levels."""
    if not root.is_dir():
        raise FileError(f"open_dataset: {root} is not a folder")
    roots = [root]
    while root.name in folders:
        beside = (root.with_name(name) for name in sorted(folders - {root.name}))
        roots += [folder for folder in beside if folder.is_dir()]
        root = root.parent
    return roots


def _walk_files(roots: list[Path]) -> Iterator[Path]:
    """All files below, in a fixed order. Links are followed; a folder is entered once."""
    entered: set[tuple[int, int]] = set()

    def walk(folder: Path, depth: int) -> Iterator[Path]:
        status = folder.stat()
        if depth > _DEEPEST or (status.st_dev, status.st_ino) in entered:
            return
        entered.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as found:
            entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
        for entry in entries:
            if entry.is_dir():
                yield from walk(folder / entry.name, depth + 1)
            else:
                yield folder / entry.name

    try:
        for root in roots:
            yield from walk(root, 0)
    except OSError as error:
        raise FileError(f"open_dataset: {error.filename}: {error.strerror}") from error
