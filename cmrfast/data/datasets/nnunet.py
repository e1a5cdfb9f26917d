"""nnU-Net's raw data sets (version 2): one folder with its own description, of any images.

::

    Dataset007_Scar/
      dataset.json              channel_names, labels, numTraining, file_ending
      imagesTr/CASE_0000.nii.gz     channel 0 of a training case, CASE_0001 channel 1, ...
      labelsTr/CASE.nii.gz
      imagesTs/  labelsTs/          the same of test cases; both are optional

Sequences are named by ``channel_names``; of names that occur several times, each gets its number:
``FLAIR 0``, ``FLAIR 1``. A case has one mask, on the grid of all its images, which is named as the
first sequence. Its structures are those of ``labels``, which may be regions of several values; the
reserved ``ignore`` is one of them. ``info`` tells ``training`` cases from ``test`` cases. Files
end in ``.nii.gz`` or ``.nii``; file lists in ``dataset.json`` are not supported.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cmrfast.atomic import atomic_write
from cmrfast.data.datasets.case import Case, Dataset, Labelling
from cmrfast.data.datasets.layout import natural_key
from cmrfast.data.nifti.write import write_nifti
from cmrfast.data.volume import Volume
from cmrfast.errors import FileError
from cmrfast.files import read_json, take
from cmrfast.ops import resample

_DESCRIPTION = "dataset.json"
_SETS = {"training": "Tr", "test": "Ts"}
_FOLDERS = r"(images|labels)(T[rs])"
_ENDINGS = (".nii.gz", ".nii")
_MAX_VALUE = 255  # masks are uint8 in memory


@dataclass(frozen=True)
class _Description:
    """What ``dataset.json`` says."""

    sequences: tuple[str, ...]
    labelling: Labelling
    training_cases: int
    ending: str


def read_nnunet(root: str | os.PathLike[str]) -> Dataset:
    """Find the cases of a raw data set of nnU-Net; ``open_dataset("nnunet", root)`` is the same.

    Reads ``dataset.json`` and file names, but no image.

    Args:
        root: the folder of the data set, or, for the training or test cases only, a folder of
            images or labels in it.

    Raises:
        FileError: it is not such a data set, or its ``dataset.json`` is wrong.
    """
    given = Path(root)
    folder = given.absolute()
    if not folder.is_dir():
        raise FileError(f"read_nnunet: {given} is not a folder")
    inner = re.fullmatch(_FOLDERS, folder.name)
    if inner:
        folder = folder.parent
    if not os.path.exists(folder / _DESCRIPTION):
        raise _no_case(given)
    description = _read_description(folder / _DESCRIPTION)
    training, test = (_find_cases(folder, kind, description) for kind in _SETS)
    if not training and not test:
        raise _no_case(given)
    with_images = sum(bool(case.images) for case in training.values())
    if with_images != description.training_cases:
        raise FileError(
            f"read_nnunet: {folder / _DESCRIPTION}: numTraining is {description.training_cases}; "
            f"imagesTr holds {with_images} cases"
        )
    both = sorted(training.keys() & test.keys(), key=natural_key)
    if both:
        raise FileError(
            f"read_nnunet: {folder}: training and test cases must have different names; "
            f"in both: {', '.join(both)}"
        )
    chosen = {None: training | test, "Tr": training, "Ts": test}
    cases = chosen[inner[2] if inner else None]
    ordered = (cases[name] for name in sorted(cases, key=natural_key))
    return Dataset(LAYOUT.name, given, tuple(ordered))


def write_nnunet(
    cases: Iterable[Case],
    out: str | os.PathLike[str],
    *,
    images: Sequence[str],
    label: str,
    number: int,
    name: str,
    structures: Sequence[str] | None = None,
    test: Iterable[Case] = (),
    resample_images: bool = False,
) -> Path:
    """Write cases as a raw data set of nnU-Net (version 2).

    Files are written atomically and ``dataset.json`` last, so that an incomplete data set has none.
    All files of a case get the geometry of the image that its mask lies on. Images on that grid
    keep their voxels and dtype.

    Args:
        cases: the training cases, such as a ``Dataset``; each needs all images and the label.
        out: the folder of nnU-Net's raw data sets; made if necessary.
        images: sequences in the order of the channels, whose names they become.
        label: the mask.
        number: of the data set, 1 to 999.
        name: of the data set: letters, digits and underscores.
        structures: of the mask, in the order of their values 1, 2, ...; default all. nnU-Net's
            labels exclude each other: where structures overlap, the last one is written. In
            ``("myocardium", "scar")``, myocardium thus becomes the part without scar.
        test: test cases; their label may be missing.
        resample_images: whether to resample images that lie on another grid than the mask, linearly
            (blurred first where voxels become larger) and as float32, 0 outside. Otherwise such
            images are refused. Both visits of ``msseg2`` and ``open_ms`` lie on one grid already.

    Returns:
        The folder of the data set, ``<out>/Dataset<number>_<name>``, for ``read_nnunet``.

    Raises:
        FileError: a file is missing or cannot be read or written, an image lies on another grid, or
            the folder exists and is not empty.

    Example:
        >>> import tempfile
        >>> from cmrfast.data.datasets import open_dataset, read_nnunet, write_nnunet
        >>> from cmrfast.data.phantom import write_phantoms
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     patients = open_dataset(
        ...         "emidec", write_phantoms("emidec", folder, cases=2, shrink=4)
        ...     )
        ...     root = write_nnunet(
        ...         patients, folder, images=("LGE",), label="LGE", number=7, name="Scar"
        ...     )
        ...     case = read_nnunet(root)[0]
        >>> root.name, case.labelling["LGE"].classes
        ('Dataset007_Scar', {'lv': (1,), 'myocardium': (2,), 'scar': (3,), 'no_reflow': (4,)})
    """
    training, test = list(cases), list(test)
    _require_arguments(training, test, images, number, name)
    first = training[0]
    first.require(labels=(label,))
    chosen = _choose_structures(first.labelling[label], structures)
    for case in training:
        case.require(images=images, labels=(label,))
    for case in test:
        case.require(images=images)
    root = Path(out) / f"Dataset{number:03d}_{name}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise FileError(
                f"write_nnunet: {root} is not empty; remove it, or choose another number or name"
            )
        for kind, group in (("training", training), ("test", test)):
            for case in group:
                _write_case(root, _SETS[kind], case, images, label, chosen, resample_images)
        content = {
            "name": name,
            "channel_names": {str(n): sequence for n, sequence in enumerate(images)},
            "labels": {s: value for value, s in enumerate(("background", *chosen))},
            "numTraining": len(training),
            "file_ending": _ENDINGS[0],
        }
        with atomic_write(root / _DESCRIPTION) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise FileError(f"write_nnunet: {root}: {error.strerror or error}") from error
    return root


def read_channels(
    folder: str | os.PathLike[str],
    sequences: Sequence[str],
    described_by: str | os.PathLike[str] | None = None,
) -> Dataset:
    """The cases of a folder of images that are named as nnU-Net's, ``CASE_0000.nii.gz``.

    Args:
        folder: of the images; it needs no ``dataset.json``.
        sequences: names of the channels in order, unless they are described.
        described_by: folder of a data set whose ``dataset.json`` describes channels and labels.

    Raises:
        FileError: the folder holds no such image.
    """
    root = Path(folder)
    if described_by is None:
        labelling = Labelling(sequences[0], {0: 0}, {}, on_all=True)
        descriptions = [_Description(tuple(sequences), labelling, 0, end) for end in _ENDINGS]
    else:
        descriptions = [_read_description(Path(described_by) / _DESCRIPTION)]
    for description in descriptions:
        images = _find_channels(root.absolute(), description)
        if images:
            key = description.labelling.on
            cases = (
                Case(name, images[name], {}, {key: description.labelling})
                for name in sorted(images, key=natural_key)
            )
            return Dataset(LAYOUT.name, root, tuple(cases))
    raise FileError(
        f"read_channels: {root} holds no case of nnunet; it should hold files such as "
        f"CASE_0000{descriptions[0].ending}"
    )


def _no_case(root: Path) -> FileError:
    return FileError(
        f"read_nnunet: {root} holds no case of nnunet; it should hold files such as "
        f"{_DESCRIPTION} and imagesTr/CASE_0000.nii.gz"
    )


def _read_description(path: Path) -> _Description:
    try:
        content = read_json(path)
        if "dataset" in content:
            raise ValueError("it lists files, which is not supported")
        sequences = _sequences(take(content, "channel_names", dict))
        ending = take(content, "file_ending", str)
        if ending not in _ENDINGS:
            raise ValueError(f"file_ending must be {' or '.join(_ENDINGS)}; it is {ending!r}")
        return _Description(
            sequences=sequences,
            labelling=_labelling(take(content, "labels", dict), on=sequences[0]),
            training_cases=take(content, "numTraining", int),
            ending=ending,
        )
    except OSError as error:
        raise FileError(f"read_nnunet: {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise FileError(f"read_nnunet: {path}: {error}") from error


def _sequences(channels: dict[str, Any]) -> tuple[str, ...]:
    try:
        names = [take(channels, str(n), str) for n in range(len(channels))]
    except ValueError as error:
        raise ValueError(f"channel_names: {error}") from error
    if not names or not all(names):
        raise ValueError("channel_names must name at least one channel, and none by an empty text")
    numbered = (f"{s} {n}" if names.count(s) > 1 else s for n, s in enumerate(names))
    sequences = tuple(numbered)
    if len(set(sequences)) < len(sequences):
        raise ValueError("channel_names must be distinct once repeated names are numbered")
    return sequences


def _labelling(labels: dict[str, Any], *, on: str) -> Labelling:
    classes: dict[str, tuple[int, ...]] = {}
    try:
        if take(labels, "background", int) != 0:
            raise ValueError("background must be 0")
        for structure in labels:
            value = take(labels, structure, int, list)
            values = tuple(value) if isinstance(value, list) else (value,)
            if structure != "background":
                classes[structure] = values
            # not isinstance: true is no number
            if not values or any(type(v) is not int or not 0 <= v <= _MAX_VALUE for v in values):
                raise ValueError(f"{structure} must have values from 0 to {_MAX_VALUE}")
    except ValueError as error:
        raise ValueError(f"labels: {error}") from error
    stored = {0, *(value for own in classes.values() for value in own)}
    return Labelling(on, {value: value for value in sorted(stored)}, classes, on_all=True)


def _find_cases(root: Path, kind: str, description: _Description) -> dict[str, Case]:
    """The cases of the training or the test set, by name."""
    ending = re.escape(description.ending)
    images = _find_channels(root / f"images{_SETS[kind]}", description)
    key = description.labelling.on
    labels: dict[str, Path] = {}
    for path in _list_files(root / f"labels{_SETS[kind]}"):
        match = re.fullmatch(rf"([^.].*){ending}", path.name)
        if match:
            labels[match[1]] = path
    cases = {}
    for name in images.keys() | labels.keys():
        own = images.get(name, {})
        missing = [f"{s} image is missing" for s in description.sequences if s not in own]
        if name not in labels:
            missing.append(f"{key} label is missing")
        cases[name] = Case(
            name=name,
            images=own,
            labels={key: labels[name]} if name in labels else {},
            labelling={key: description.labelling},
            info={"set": kind},
            faults=tuple(missing),
        )
    return cases


def _find_channels(folder: Path, description: _Description) -> dict[str, dict[str, Path]]:
    """Case → sequence → image."""
    images: dict[str, dict[str, Path]] = {}
    for path in _list_files(folder):
        match = re.fullmatch(rf"([^.].*)_(\d{{4}}){re.escape(description.ending)}", path.name, re.A)
        if match and int(match[2]) < len(description.sequences):
            images.setdefault(match[1], {})[description.sequences[int(match[2])]] = path
    return images


def _list_files(folder: Path) -> list[Path]:
    """What a folder holds, in a fixed order; nothing if it does not exist."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FileError(f"read_nnunet: {folder}: {error.strerror or error}") from error


def _require_arguments(
    training: Sequence[Case], test: Sequence[Case], images: Sequence[str], number: int, name: str
) -> None:
    if not training:
        raise ValueError("write_nnunet: cases must hold at least one training case")
    if isinstance(images, str) or not images or len(set(images)) < len(images):
        raise ValueError(f"write_nnunet: images must be distinct sequences; got {images!r}")
    if not 1 <= number <= 999:
        raise ValueError(f"write_nnunet: number must be 1 to 999; got {number}")
    if not re.fullmatch(r"\w+", name, re.ASCII):
        raise ValueError(
            f"write_nnunet: name must consist of letters, digits and underscores; got {name!r}"
        )
    names = [case.name for case in (*training, *test)]
    twice = sorted({case for case in names if names.count(case) > 1}, key=natural_key)
    if twice:
        raise ValueError(f"write_nnunet: cases must have different names; got {', '.join(twice)}")
    for case in names:
        if not case or case.startswith(".") or re.search(r"[/\\\0]", case):
            raise ValueError(f"write_nnunet: {case!r} cannot be the start of a file name")


def _choose_structures(labelling: Labelling, structures: Sequence[str] | None) -> tuple[str, ...]:
    """The structures to write; each must be visible where the later ones are drawn over it."""
    known: Mapping[str, tuple[int, ...]] = labelling.classes
    chosen = tuple(known if structures is None else structures)
    unknown = [structure for structure in chosen if structure not in known]
    if not chosen or unknown or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"write_nnunet: structures must be different ones of {', '.join(known)}; got {chosen}"
        )
    for n, structure in enumerate(chosen):
        after = {value for later in chosen[n + 1 :] for value in known[later]}
        if after.issuperset(known[structure]):
            raise ValueError(
                f"write_nnunet: structures: {structure} is hidden by those after it, of which it "
                "is a part; name it after them"
            )
    return chosen


def _write_case(
    root: Path,
    suffix: str,
    case: Case,
    images: Sequence[str],
    label: str,
    structures: Sequence[str],
    resample_images: bool,
) -> None:
    folders = {kind: root / f"{kind}{suffix}" for kind in ("images", "labels")}
    on = case.labelling[label].on if label in case.labelling else images[0]
    grid = case.image(on, channels=1)
    for n, sequence in enumerate(images):
        image = grid if sequence == on else case.image(sequence, channels=1)
        if not image.shares_grid(grid):
            if not resample_images:
                raise FileError(
                    f"write_nnunet: {case.images[sequence]} must lie on the grid of {on}; "
                    "resample_images=True resamples it"
                )
            image = grid.with_data(_resample_onto(image, grid))
        folders["images"].mkdir(exist_ok=True)
        write_nifti(
            folders["images"] / f"{case.name}_{n:04d}{_ENDINGS[0]}", grid.with_data(image.data)
        )
    if label not in case.labels:
        return
    mask, labelling = case.mask_on(grid, label), case.labelling[label]
    values = torch.zeros_like(mask.data)
    for value, structure in enumerate(structures, start=1):
        values.masked_fill_(labelling.mask(mask, structure).data, value)
    folders["labels"].mkdir(exist_ok=True)
    write_nifti(folders["labels"] / f"{case.name}{_ENDINGS[0]}", grid.with_data(values))


def _resample_onto(image: Volume, grid: Volume) -> torch.Tensor:
    data: torch.Tensor = resample(
        image.data.float(), image.world_from_vox, grid.world_from_vox, grid.shape, antialias=True
    )
    return data


class _NnunetLayout:
    """``read_nnunet`` as a layout of ``open_dataset``."""

    name = "nnunet"

    def claims(self, root: Path) -> bool:
        """Whether a folder holds ``dataset.json``, or is a folder of images or labels beside it."""
        folder = root.parent if re.fullmatch(_FOLDERS, root.name) else root
        return os.path.isfile(folder / _DESCRIPTION)

    def open(self, root: Path) -> Dataset:
        """Find the cases of a data set."""
        return read_nnunet(root)


LAYOUT = _NnunetLayout()
