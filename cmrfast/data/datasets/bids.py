"""BIDS: images of subjects, and masks in the same tree or in one of its derivatives.

::

    dataset_description.json
    sub-01/anat/sub-01_LGE.nii.gz
    sub-02/ses-2/anat/sub-02_ses-2_FLAIR.nii.gz
    sub-02/sub-02_sessions.tsv                      acq_time of each session
    sub-01/anat/sub-01_label-scar_mask.nii.gz       0 and 1; likewise desc-brain_mask
    sub-01/anat/sub-01_dseg.nii.gz                  values named by sub-01_dseg.tsv or dseg.tsv
    derivatives/manual/sub-01/anat/...              the same

A case is a subject. A sequence is named by the suffix, after ``acq-`` where there is one; of a
subject with two sessions ``earlier`` or ``later`` comes first, with more sessions their labels do.
The earlier session is the one with the earlier ``acq_time`` in ``sub-02_sessions.tsv``. Without
that it is the one with the lower number, if the labels differ by a number alone, or the one that
is labelled ``baseline``, ``bl``, ``pre`` or ``screening``. Otherwise the case has a fault, and its
sequences are named by the labels.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cmrfast.data.datasets.case import Case, Dataset, Labelling
from cmrfast.data.datasets.layout import natural_key, read_rows, stem, walk_files
from cmrfast.data.datasets.sessions import order_sessions, read_times
from cmrfast.data.datasets.table import labelling_of
from cmrfast.errors import FileError

DESCRIPTION = "dataset_description.json"
_MASKS = ("mask", "dseg")
_IGNORED = ("probseg",)


@dataclass(frozen=True)
class _File:
    """A file and what its name says: entities such as ``ses`` and the suffix."""

    path: Path
    entities: dict[str, str]
    suffix: str

    @property
    def is_mask(self) -> bool:
        return self.suffix in _MASKS

    def name(self, when: str, what: str) -> str:
        """What it is called in the case: the visit, the acquisition, and what it shows."""
        return " ".join(filter(None, (when, self.entities.get("acq", ""), what)))


def read_bids(root: Path) -> Dataset:
    """Find the subjects of a BIDS data set, without reading any image.

    Raises:
        FileError: it holds none, or a table of label values is wrong.
    """
    if not root.is_dir():
        raise FileError(f"read_bids: {root} is not a folder")
    subjects: dict[str, list[_File]] = {}
    for file in _find_files(root.absolute()):
        subjects.setdefault(file.entities["sub"], []).append(file)
    if not subjects:
        raise FileError(
            f"read_bids: {root} holds no case of bids; it should hold files such as "
            "sub-01/anat/sub-01_LGE.nii.gz"
        )
    ordered = sorted(subjects, key=natural_key)
    return Dataset(
        LAYOUT.name, root, tuple(_make_case(root, name, subjects[name]) for name in ordered)
    )


def _find_files(root: Path) -> Iterator[_File]:
    """Images of subjects, those of the data set itself before those of its derivatives."""
    paths = sorted(walk_files([root]), key=lambda path: "derivatives" in path.parts)
    for path in paths:
        *pairs, suffix = (stem(path) or "").split("_")
        entities = dict(pair.partition("-")[::2] for pair in pairs)
        named = pairs and pairs[0].startswith("sub-") and all(entities.values())
        if named and suffix not in _IGNORED and "-" not in suffix:
            yield _File(path, entities, suffix)


def _make_case(root: Path, subject: str, files: list[_File]) -> Case:
    when, faults = _name_visits(root.absolute(), subject, files)
    images: dict[str, Path] = {}
    shown: dict[str, _File] = {}
    labels: dict[str, Path] = {}
    labelling: dict[str, Labelling] = {}
    for file in sorted(files, key=lambda file: file.is_mask):
        visit = when.get(file.entities.get("ses", ""), "")
        if not file.is_mask:
            key, kind, where = file.name(visit, file.suffix), "image", images
        else:
            structure = file.entities.get("label", file.entities.get("desc", ""))
            key, kind, where = file.name(visit, structure or "label"), "label", labels
        if key in where:
            faults.append(f"{key} {kind} occurs twice; {file.path} is not used")
            continue
        where[key] = file.path
        if not file.is_mask:
            shown[key] = file
        else:
            on = _image_of(file, shown)
            if file.suffix == "dseg":
                labelling[key] = _labelling(root.absolute(), file, on)
            else:
                labelling[key] = labelling_of(structure, on=on)
    return Case(f"sub-{subject}", images, labels, labelling, faults=tuple(faults))


def _name_visits(root: Path, subject: str, files: list[_File]) -> tuple[dict[str, str], list[str]]:
    """Session → the visit that its images are named after, and what is wrong with sessions."""
    images = [file for file in files if not file.is_mask]
    sessions = sorted({file.entities.get("ses", "") for file in images}, key=natural_key)
    if len(sessions) < 2:
        return dict.fromkeys(sessions, ""), []
    names = {session: f"ses-{session}" if session else "" for session in sessions}
    if len(sessions) > 2:
        return names, []
    table = f"sub-{subject}_sessions.tsv"
    folders = dict.fromkeys(folder for file in images for folder in file.path.parents)
    tables = [folder / table for folder in folders if folder.is_relative_to(root)]
    found = next((path for path in tables if path.is_file()), None)
    ordered = order_sessions(sessions, read_times(found) if found else {})
    if ordered:
        return dict(zip(ordered, ("earlier", "later"), strict=True)), []
    unordered = " and ".join(name or "files without a session" for name in names.values())
    return names, [
        f"which of {unordered} is earlier is not known; {table} in the subject's folder must give "
        "the acq_time of both, or their labels numbers, such as ses-1 and ses-2"
    ]


def _image_of(mask: _File, images: Mapping[str, _File]) -> str:
    """The one image of the session and acquisition that a mask names; empty if there is not one."""
    named = {name: mask.entities[name] for name in ("ses", "acq") if name in mask.entities}
    same = [key for key, image in images.items() if named.items() <= image.entities.items()]
    return same[0] if len(same) == 1 else ""


def _labelling(root: Path, mask: _File, on: str) -> Labelling:
    """The labelling that the nearest table of label values gives."""
    own = mask.path.with_name(re.sub(r"\.nii(\.gz)?$", ".tsv", mask.path.name))
    folders = [folder for folder in mask.path.parents if folder.is_relative_to(root)]
    tables = [own, *(folder / "dseg.tsv" for folder in folders)]
    table = next((table for table in tables if table.is_file()), None)
    if table is None:
        return labelling_of("", on=on)
    try:
        values = {row["name"].strip(): int(row["index"]) for row in read_rows(table)}
    except OSError as error:
        raise FileError(f"read_bids: {table}: {error.strerror or error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(
            f"read_bids: {table} must have the columns index, a whole number, and name: {error}"
        ) from error
    values = {name: value for name, value in values.items() if 0 < value <= 255}
    return Labelling(
        on,
        {0: 0, **{value: value for value in values.values()}},
        {name: (value,) for name, value in values.items()},
    )


class _BidsLayout:
    """``read_bids`` as a layout of ``open_dataset``."""

    name = "bids"

    def claims(self, root: Path) -> bool:
        """Whether a folder holds ``dataset_description.json``."""
        return os.path.isfile(root / DESCRIPTION)

    def open(self, root: Path) -> Dataset:
        """Find the subjects of a data set."""
        return read_bids(root)


LAYOUT = _BidsLayout()
