"""Layouts: how the file names of a published folder tree become cases."""

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from cmrfast.data.datasets.case import Case, Dataset, Labelling
from cmrfast.errors import FileError
from cmrfast.files import open_regular

#: At most this many bytes of a data set's text file are read.
_TEXT_LIMIT = 1 << 16
#: A larger table is refused.
_TABLE_LIMIT = 1 << 24
_MAX_DEPTH = 8


class Place(NamedTuple):
    """What a file holds: whose image or label, and which one.

    ``named_after`` is the folder that gives the case its name; None where file names do.
    """

    case: str
    kind: Literal["image", "label"]
    key: str
    named_after: Path | None = None


@dataclass
class Draft:
    """A case whose files are still being collected."""

    name: str
    named_after: Path | None = None
    images: dict[str, Path] = field(default_factory=dict)
    labels: dict[str, Path] = field(default_factory=dict)
    info: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, place: Place, path: Path) -> None:
        """Add a file; of two for the same place, the first is kept.

        Raises:
            FileError: it is of another folder that has the name of the case.
        """
        if place.named_after != self.named_after:
            raise FileError(
                f"open_dataset: {self.named_after} and {place.named_after} have the name of one "
                "case; rename one of them, or open each by itself"
            )
        files = self.images if place.kind == "image" else self.labels
        if place.key in files:
            self.faults.append(f"{place.key} {place.kind} occurs twice; {path} is not used")
        else:
            files[place.key] = path

    def folder(self) -> Path:
        """The folder of the first file."""
        return next(iter([*self.images.values(), *self.labels.values()])).parent


class DataLayout(Protocol):
    """What ``open_dataset`` needs of a layout."""

    @property
    def name(self) -> str:
        """The name that ``open_dataset`` takes."""
        ...

    def open(self, root: Path) -> Dataset:
        """Find the cases at or below a root, without reading any image."""
        ...


class MarkedLayout(DataLayout, Protocol):
    """A layout that a file of its own marks, so that a folder is or is not one."""

    def claims(self, root: Path) -> bool:
        """Whether a folder has this layout, whatever may be wrong with it."""
        ...


@dataclass(frozen=True)
class Layout:
    """The file names of one data set.

    Args:
        name: the name that ``open_dataset`` takes.
        example: a file name that a user would recognise, for the message if no case is found.
        images: sequences that every case should have.
        labels: masks that every case should have.
        labelling: the labelling of every mask.
        place: returns what a file holds, None if it is not part of the data set.
        finish: completes a case from text files, once all its files are collected.
        folders: inner folders of the published tree. A root with such a name is searched together
            with its siblings, as images and masks may be in different folders.
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
        for path in walk_files(_search_roots(root.absolute(), self.folders)):
            place = self.place(path)
            if place:
                draft = Draft(place.case, place.named_after)
                drafts.setdefault(place.case, draft).add(place, path)
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
    """A sort key that puts patient2 before patient10; equal for equal texts alone."""
    parts = re.split(r"(\d+)", text)
    keys = [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
    return [*keys, (-1, text)]  # of case_1 and case_01, the text decides


def stem(path: Path) -> str | None:
    """The name without .nii or .nii.gz; None for other endings and for hidden files."""
    match = re.fullmatch(r"([^.].*)\.nii(\.gz)?", path.name)
    return match[1] if match else None


def read_pairs(path: Path, separator: str, draft: Draft) -> dict[str, str]:
    """Read the ``key : value`` lines of a text file; add a fault if it cannot be read."""
    try:
        with open_regular(path) as file:
            text = file.read(_TEXT_LIMIT).decode("utf-8", "replace")
    except OSError as error:
        draft.faults.append(f"{path}: {error.strerror or error}")
        return {}
    lines = (line.partition(separator) for line in text.splitlines())
    return {key.strip(): value.strip() for key, separator, value in lines if separator}


def read_table_text(path: Path) -> str:
    """The text of a table, in UTF-8; the line breaks are those of the file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, or no text.
    """
    with open_regular(path) as file:
        text = file.read(_TABLE_LIMIT + 1)
    if len(text) > _TABLE_LIMIT:
        raise ValueError(f"it is larger than {_TABLE_LIMIT >> 20} MiB")
    return text.decode("utf-8-sig")


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table whose cells are separated by tabs, by column.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no table.
    """
    text = read_table_text(path)
    try:
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t"))
    except csv.Error as error:
        raise ValueError(str(error)) from error


def _search_roots(root: Path, folders: frozenset[str]) -> list[Path]:
    """The root, and the published siblings of it and of its parents."""
    if not os.path.isdir(root):  # Path.is_dir raises in a folder that is locked
        raise FileError(f"open_dataset: {root} is not a folder")
    roots = [root]
    while root.name in folders:
        siblings = (root.with_name(name) for name in sorted(folders - {root.name}))
        roots += [folder for folder in siblings if folder.is_dir()]
        root = root.parent
    return roots


def walk_files(roots: list[Path]) -> Iterator[Path]:
    """Yield all files below, in a fixed order. Links are followed; a folder is visited once."""
    visited: set[tuple[int, int]] = set()  # links may form a cycle

    def walk(folder: Path, depth: int) -> Iterator[Path]:
        status = folder.stat()
        if depth > _MAX_DEPTH or (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as scan:
            entries = sorted((e for e in scan if not e.name.startswith(".")), key=lambda e: e.name)
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
