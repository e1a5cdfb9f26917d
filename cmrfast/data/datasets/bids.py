"""BIDS: images of subjects, and masks in the same tree or in one of its derivatives.

::

    dataset_description.json
    sub-01/anat/sub-01_LGE.nii.gz
    sub-02/ses-2/anat/sub-02_ses-2_FLAIR.nii.gz
    sub-01/anat/sub-01_label-scar_mask.nii.gz       0 and 1; likewise desc-brain_mask
    sub-01/anat/sub-01_dseg.nii.gz                  values named by sub-01_dseg.tsv or dseg.tsv
    derivatives/manual/sub-01/anat/...              the same

A case is a subject. A sequence is named by the suffix, after ``acq-`` where there is one; of a
subject with two sessions ``earlier`` or ``later`` comes first, with more sessions their labels do.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cmrfast.data.datasets.case import Case, Dataset, Labelling
from cmrfast.data.datasets.layout import natural_key, stem, walk_files
from cmrfast.data.datasets.table import labelling_of
from cmrfast.errors import FileError
from cmrfast.files import open_regular

DESCRIPTION = "dataset_description.json"
_MASKS = ("mask", "dseg")
_IGNORED = ("probseg",)
_LIMIT = 1 << 16  # bytes of a table of label values


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
    sessions = sorted({f.entities.get("ses", "") for f in files if not f.is_mask}, key=natural_key)
    names = ["earlier", "later"] if len(sessions) == 2 else [f"ses-{s}" for s in sessions]
    when = dict(zip(sessions, names if len(sessions) > 1 else [""], strict=False))
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    labelling: dict[str, Labelling] = {}
    faults = []
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
        if file.is_mask:
            on = _image_of(file, visit, list(images))
            if file.suffix == "dseg":
                labelling[key] = _labelling(root.absolute(), file, on)
            else:
                labelling[key] = labelling_of(structure, on=on)
    return Case(f"sub-{subject}", images, labels, labelling, faults=tuple(faults))


def _image_of(mask: _File, visit: str, images: list[str]) -> str:
    """The one image whose visit and acquisition are those of a mask; empty if there is not one."""
    same = [image for image in images if image.startswith(mask.name(visit, ""))]
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
        with open_regular(table) as file:
            lines = file.read(_LIMIT).decode("utf-8-sig").splitlines()
        rows = list(csv.DictReader(lines, delimiter="\t"))
        values = {row["name"].strip(): int(row["index"]) for row in rows}
    except OSError as error:
        raise FileError(f"read_bids: {table}: {error.strerror or error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, csv.Error) as error:
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
        return (root / DESCRIPTION).is_file()

    def open(self, root: Path) -> Dataset:
        """Find the subjects of a data set."""
        return read_bids(root)


LAYOUT = _BidsLayout()
