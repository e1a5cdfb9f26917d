"""Case and Dataset: files found by name alone; images are read on request."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import NamedTuple, overload

import torch

from cmrfast.data.datasets.part import Part
from cmrfast.data.dicom import read_dicom_folder, read_slices, world_from_slices
from cmrfast.data.nifti.header import read_header
from cmrfast.data.nifti.read import read_volume
from cmrfast.data.notebook import pictures, table
from cmrfast.data.volume import Volume, count_non_finite, equals, is_finite, same_grid
from cmrfast.errors import FileError
from cmrfast.models.recipe import NonFinite

_SHOWN = 30  # cases in a notebook


@dataclass(frozen=True)
class Labelling:
    """The meaning of a mask's values.

    Args:
        on: the image whose grid the mask lies on.
        ours: value in the file → value in ``Case.label``.
        classes: structure → its values in ``Case.label``. Structures may overlap: scar is part of
            the myocardium.
        on_all: whether it lies on the grid of every image of its case.
        others: whether any other value in the file is background, not an error.
        drawn_over: masks of the case whose nonzero values replace this mask's, in drawing order.
    """

    on: str
    ours: Mapping[int, int]
    classes: Mapping[str, tuple[int, ...]]
    on_all: bool = False
    others: bool = False
    drawn_over: tuple[str, ...] = ()

    def mask(self, label: Volume, name: str) -> Volume:
        """The mask of one structure of a label volume, bool."""
        if name not in self.classes:
            raise ValueError(f"mask: name must be one of {', '.join(self.classes)}; got {name!r}")
        values = torch.tensor(self.classes[name], dtype=label.data.dtype)
        return label.with_data(torch.isin(label.data, values))


def binary(name: str, *, on: str) -> Labelling:
    """The labelling of a mask with values 0 and 1."""
    return Labelling(on, {0: 0, 1: 1}, {name: (1,)})


@dataclass(frozen=True, repr=False)
class Case:
    """The files of one patient.

    Attributes:
        name: unique in its data set; a split keeps its files together, unless it lists sequences.
        images: sequence → file, or folder of DICOM slices.
        labels: mask → file.
        labelling: mask → meaning of its values.
        info: fields of the data set's own text files, verbatim.
        faults: what is missing or unusual, judging by file names; ``check`` also reads headers.
        sequences: those that a split lists for its part; None where it has the whole patient.
        frame: the time point, from 1, to read of files with several; None refuses such files where
            one is required.
    """

    name: str
    images: Mapping[str, Path]
    labels: Mapping[str, Path]
    labelling: Mapping[str, Labelling]
    info: Mapping[str, str] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    sequences: tuple[str, ...] | None = None
    frame: int | None = None

    def __repr__(self) -> str:
        """Its name, images and labels; not their paths."""
        names = (", ".join(files) or "none" for files in (self.images, self.labels))
        return "Case({!r}; images: {}; labels: {})".format(self.name, *names)

    def _repr_html_(self) -> str:
        """The first image and the geometry of each file, for notebooks."""
        shown = ""
        rows = [("file", "voxels", "spacing in mm", "name")]
        for kind, files in (("image", self.images), ("label", self.labels)):
            for key, path in files.items():
                try:
                    header = read_header(path)
                    volume = read_volume(header) if not shown else None
                except FileError as error:
                    rows.append((f"{kind} {key}", str(error), "", path.name))
                    continue
                if volume is not None and volume.data.numel():
                    shown = pictures(volume.data[0], volume.spacing_mm)
                spacing = header.world_from_vox[:3, :3]
                rows.append(
                    (
                        f"{kind} {key}",
                        " x ".join(map(str, header.shape[1:])),
                        " x ".join(f"{mm:.3g}" for mm in (spacing**2).sum(0) ** 0.5),
                        path.name,
                    )
                )
        return f"<b>{escape(self.name)}</b><br>{shown}{table(rows)}"

    def only(self, sequences: Iterable[str], unlabelled: Iterable[str] = ()) -> "Case":
        """The case with the files of some sequences alone; a mask belongs to the image it lies on.

        Args:
            sequences: keys of ``images``.
            unlabelled: keys of ``images`` whose masks are left out.
        """
        labelled = tuple(sequences)
        shown = (*labelled, *unlabelled)
        self.require(images=shown)
        labels = [name for name in self.labels if self.labelling[name].on in labelled]
        return replace(
            self,
            images={name: path for name, path in self.images.items() if name in shown},
            labels={name: self.labels[name] for name in labels},
            labelling={name: self.labelling[name] for name in labels},
            sequences=labelled,
        )

    def require(self, *, images: Iterable[str] = (), labels: Iterable[str] = ()) -> None:
        """Raise ``FileError`` unless the case has these files."""
        for sequence in images:
            self._path("image", self.images, sequence)
        for name in labels:
            self._path("label", self.labels, name)

    def image(
        self, sequence: str, *, channels: int | None = None, non_finite: NonFinite = "refuse"
    ) -> Volume:
        """Read an image. Unlike ``read_nifti``, it does not warn: ``check`` reports oddities.

        Args:
            sequence: a key of ``images``.
            channels: required number of channels or time points; None accepts any number.
            non_finite: ``refuse`` an image with voxels that are not finite in float32, in which
                networks compute, or set these to ``zero``. Methods pass their recipe's choice.
        """
        path = self._path("image", self.images, sequence)
        image = read_dicom_folder(path) if path.is_dir() else read_volume(read_header(path))
        if channels == 1 < image.channels and self.frame is not None:
            image = _time_point(image, self.frame, path)
        if channels not in (None, image.channels):
            raise FileError(
                f"image: {path} must have {channels} channel{'' if channels == 1 else 's'}; "
                f"got {image.channels} channels or time points"
            )
        count = count_non_finite(image.data)
        if count and non_finite == "refuse":
            raise FileError(
                f"image: {path} holds {count} NaN or infinite voxels of {image.data.numel()}; "
                "non_finite=zero reads them as 0"
            )
        if count:
            image.data.masked_fill_(~is_finite(image.data), 0)
        return image

    def mask_on(self, image: Volume, name: str) -> Volume:
        """Read a mask that must have one channel and an image's grid; see ``label``."""
        mask = self.label(name)
        if mask.channels != 1 or not mask.shares_grid(image):
            raise FileError(
                f"label: {self.labels[name]} must be one mask on the grid of its image, "
                f"{image.shape}; got {tuple(mask.data.shape)}"
            )
        return mask

    def label(self, name: str) -> Volume:
        """Read a mask as uint8, with the values that ``labelling`` describes."""
        mask = self._read_label(name)
        for other in self.labelling[name].drawn_over:
            part = self._read_label(other)
            if not part.shares_grid(mask) or part.channels != mask.channels:
                raise FileError(
                    f"label: {self.labels[other]} must lie on the grid of {self.labels[name]}, "
                    "the same mask's other file"
                )
            mask = mask.with_data(torch.where(part.data != 0, part.data, mask.data))
        return mask

    def label_files(self, name: str) -> dict[str, Path]:
        """The files that a mask is read from, by their keys in ``labels``."""
        labelling = self.labelling.get(name)
        keys = (name, *(labelling.drawn_over if labelling else ()))
        return {key: self.labels[key] for key in keys if key in self.labels}

    def _read_label(self, name: str) -> Volume:
        path = self._path("label", self.labels, name)
        stored = read_volume(read_header(path))
        mapping = self.labelling[name].ours
        data = torch.zeros_like(stored.data, dtype=torch.uint8)
        unknown = torch.ones_like(stored.data, dtype=torch.bool)
        for theirs, ours in mapping.items():
            mask = equals(stored.data, theirs)
            data.masked_fill_(mask, ours)
            unknown.logical_and_(mask.logical_not_())
        if unknown.any() and not self.labelling[name].others:
            value = stored.data.double()[unknown][0].item()
            expected = ", ".join(str(value) for value in mapping)
            raise FileError(
                f"label: {path} holds the value {value:g}; {name} masks hold {expected}"
            )
        return stored.with_data(data)

    def check(self) -> list[str]:
        """Report what is wrong or unusual, from file names and headers; reads no voxels."""
        faults = list(self.faults)
        grids: dict[tuple[str, str], _Grid] = {}
        for kind, files in (("image", self.images), ("label", self.labels)):
            for key, path in files.items():
                try:
                    grids[kind, key] = _read_grid(path)
                except (FileError, ImportError) as error:
                    faults.append(str(error))
        for (kind, key), grid in grids.items():
            faults.extend(f"{key} {kind}: {note}" for note in grid.notes)
            image = grids.get(("image", self.labelling[key].on)) if kind == "label" else None
            if image and not _same_grid(image, grid):
                faults.append(f"{key} label does not lie on the grid of {self.labelling[key].on}")
        return faults

    def _path(self, kind: str, files: Mapping[str, Path], key: str) -> Path:
        if key not in files:
            available = ", ".join(files) or "none"
            raise FileError(f"{kind}: {self.name} has no {key} {kind}; it has {available}")
        return files[key]


@dataclass(frozen=True, repr=False)
class Dataset(Sequence[Case]):
    """Cases ordered by number; files are read on request."""

    name: str
    root: Path
    cases: tuple[Case, ...]

    def __repr__(self) -> str:
        """Its layout, folder and number of cases."""
        return f"Dataset({self.name!r}, {str(self.root)!r}, {len(self)} cases)"

    def _repr_html_(self) -> str:
        """What each case has, for notebooks."""
        rows = [
            (case.name, ", ".join(case.images), ", ".join(case.labels), "; ".join(case.faults))
            for case in self.cases[:_SHOWN]
        ]
        more = len(self) - len(rows)
        return (
            f"<b>{escape(repr(self))}</b>"
            + table([("case", "images", "labels", "faults"), *rows])
            + (f"<p>and {more} more</p>" if more else "")
        )

    def __len__(self) -> int:
        return len(self.cases)

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> "Dataset": ...
    def __getitem__(self, index: int | slice) -> "Case | Dataset":
        if isinstance(index, slice):
            return replace(self, cases=self.cases[index])
        return self.cases[index]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all cases."""
        return tuple(case.name for case in self.cases)

    @property
    def faults(self) -> list[str]:
        """What is missing or unusual, judging by file names; one line per fault."""
        return [f"{case.name}: {fault}" for case in self.cases for fault in case.faults]

    def case(self, name: str) -> Case:
        """The case of a name."""
        return self.subset([name])[0]

    def subset(self, names: Iterable[str]) -> "Dataset":
        """The named cases, such as one part of a split, in the order of the names.

        Args:
            names: of cases; of those of a ``Part``, only the part's images and masks are left.
        """
        by_name = {case.name: case for case in self.cases}
        wanted = list(names)
        missing = [name for name in wanted if name not in by_name]
        if missing:
            raise FileError(
                f"subset: every name must be a case of {self.name} in {self.root}; "
                f"not there: {', '.join(missing)}"
            )
        cases = [by_name[name] for name in wanted]
        if isinstance(names, Part):
            cases = [
                case.only(names.sequences[case.name], names.unlabelled.get(case.name, ()))
                for case in cases
            ]
        return replace(self, cases=tuple(cases))


def _time_point(image: Volume, frame: int, path: Path) -> Volume:
    if not 1 <= frame <= image.channels:
        raise FileError(
            f"image: {path} holds the time points 1 to {image.channels}; got frame {frame}"
        )
    return replace(image, data=image.data[frame - 1 : frame].clone())


class _Grid(NamedTuple):
    """What headers alone tell of an image."""

    shape: tuple[int, ...]
    world_from_vox: torch.Tensor
    notes: tuple[str, ...]


def _read_grid(path: Path) -> _Grid:
    """The grid of a file, or of a folder of DICOM slices."""
    if path.is_dir():
        slices = read_slices(path)
        shape = (slices[0].columns, slices[0].rows, len(slices))
        return _Grid(shape, torch.from_numpy(world_from_slices(path, slices)), ())
    header = read_header(path)
    return _Grid(header.shape[1:], torch.from_numpy(header.world_from_vox), header.notes)


def _same_grid(image: _Grid, label: _Grid) -> bool:
    return image.shape == label.shape and same_grid(
        label.shape, image.world_from_vox, label.world_from_vox
    )
