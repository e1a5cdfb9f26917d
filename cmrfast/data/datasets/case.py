"""Case and Dataset: what lies where, known from names alone; images are read when asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cmrfast.data.nifti.header import read_header
from cmrfast.data.nifti.read import read_volume
from cmrfast.data.volume import Volume
from cmrfast.errors import FileError


@dataclass(frozen=True)
class Labelling:
    """What the values of a data set's masks mean.

    Args:
        ours: value in the files → value in ``Case.label``; any other value is an error.
        classes: structure → the values in ``Case.label`` that make it up. They may overlap: a scar
            belongs to the myocardium.
    """

    ours: Mapping[int, int]
    classes: Mapping[str, tuple[int, ...]]

    def mask(self, label: Volume, name: str) -> Volume:
        """One structure of a label volume as bool."""
        if name not in self.classes:
            raise ValueError(f"mask: name must be one of {', '.join(self.classes)}; got {name!r}")
        values = torch.tensor(self.classes[name], dtype=label.data.dtype)
        return label.with_data(torch.isin(label.data, values))


#: 0 and 1, one structure.
def binary(name: str) -> Labelling:
    """The labelling of masks that hold one structure."""
    return Labelling({0: 0, 1: 1}, {name: (1,)})


@dataclass(frozen=True)
class Case:
    """The files of one patient, or of one visit.

    Attributes:
        name: unique in its data set.
        patient: what a split keeps together.
        images: sequence → file.
        labels: mask → file.
        labelling: of each mask.
        info: what the set's own text files say, as written there.
        faults: what is missing or odd by the names alone; ``check`` looks into the headers too.
    """

    name: str
    patient: str
    images: Mapping[str, Path]
    labels: Mapping[str, Path]
    labelling: Mapping[str, Labelling]
    info: Mapping[str, str] = field(default_factory=dict)
    faults: tuple[str, ...] = ()

    def image(self, sequence: str) -> Volume:
        """Read one image; what is odd about its header is in ``check``, not warned about again."""
        return read_volume(read_header(self._path(self.images, "image", sequence)))

    def label(self, name: str) -> Volume:
        """Read one mask in cmrfast's values, as uint8."""
        path = self._path(self.labels, "label", name)
        stored = read_volume(read_header(path))
        known = self.labelling[name].ours
        data = torch.zeros(stored.data.shape, dtype=torch.uint8)
        unknown = torch.ones(stored.data.shape, dtype=torch.bool)
        for theirs, ours in known.items():
            here = stored.data == theirs
            unknown &= ~here
            data.masked_fill_(here, ours)
        if unknown.any():
            odd = stored.data[unknown][0].item()
            expected = ", ".join(str(value) for value in known)
            raise FileError(f"label: {path} holds the value {odd:g}; {name} masks hold {expected}")
        return stored.with_data(data)

    def check(self) -> list[str]:
        """Everything wrong or odd about this case, from names and headers; reads no voxels."""
        faults, headers = list(self.faults), {}
        for kind, files in (("image", self.images), ("label", self.labels)):
            for key, path in files.items():
                try:
                    headers[kind, key] = read_header(path)
                except FileError as error:
                    faults.append(str(error))
        for (kind, key), header in headers.items():
            faults.extend(f"{key} {kind}: {note}" for note in header.notes)
        return faults

    def _path(self, files: Mapping[str, Path], kind: str, key: str) -> Path:
        if key not in files:
            there = ", ".join(files) or "none"
            raise FileError(f"{kind}: {self.name} has no {kind} {key}; it has {there}")
        return files[key]
