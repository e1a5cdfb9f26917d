"""Describe an image file and what is wrong with it, in words."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cmrfast.data.dicom import read_dicom_folder
from cmrfast.data.nifti.geometry import world_from_header
from cmrfast.data.nifti.header import Header, read_header
from cmrfast.data.nifti.read import read_volume
from cmrfast.data.volume import Volume, same_grid
from cmrfast.errors import FileError

#: A grid tilted less than this against the patient's axes is not called oblique.
_STRAIGHT_DEGREES = 1.0
_FORMS_APART_MM = 0.5


@dataclass(frozen=True)
class Report:
    """Findings about one file.

    Attributes:
        path: the path passed to ``check``.
        facts: geometry and contents; of a file that cannot be read, what its header tells.
        faults: what is wrong or unusual.
        readable: whether a volume could be read.
    """

    path: Path
    facts: tuple[str, ...]
    faults: tuple[str, ...]
    readable: bool


def check(path: str | os.PathLike[str]) -> Report:
    """Read a NIfTI file or a folder of DICOM slices and report what it holds.

    Args:
        path: a file or a folder.
    """
    path = Path(path)
    facts: list[str] = []
    faults: list[str] = []
    try:
        if path.is_dir():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                volume = read_dicom_folder(path)
            faults += [str(warning.message) for warning in caught]
        else:
            header = read_header(path)
            faults += [*header.notes, *_compare_forms(header)]
            facts = _describe_geometry(_without_values(header))
            volume = read_volume(header)
    except FileError as error:
        return Report(path, tuple(facts), (*faults, str(error)), readable=False)
    values, notes = _describe_values(volume)
    return Report(path, (*_describe_geometry(volume), values), (*faults, *notes), readable=True)


def _without_values(header: Header) -> Volume:
    """A volume on the grid of a header that takes no memory."""
    data = torch.empty(header.shape, device="meta")
    return Volume(data, torch.from_numpy(header.world_from_vox))


def _describe_geometry(volume: Volume) -> list[str]:
    shape = " x ".join(str(n) for n in volume.shape)
    times = f", {volume.channels} time points or channels" if volume.channels > 1 else ""
    spacing = " x ".join(f"{mm:.4g}" for mm in volume.spacing_mm)
    extent = " x ".join(
        f"{n * mm:.4g}" for n, mm in zip(volume.shape, volume.spacing_mm, strict=True)
    )
    middle = np.array([*((n - 1) / 2 for n in volume.shape), 1])
    centre = ", ".join(f"{mm:.1f}" for mm in (volume.world_from_vox.numpy() @ middle)[:3])
    tilt = _tilt_degrees(volume)
    oblique = f", oblique by {tilt:.0f} degrees" if tilt > _STRAIGHT_DEGREES else ""
    return [
        f"{shape} voxels of {spacing} mm{times}",
        f"{extent} mm in all, centred at ({centre}) mm",
        f"axes run to {_spell_out(volume.orientation)} ({volume.orientation}){oblique}",
    ]


def _describe_values(volume: Volume) -> tuple[str, list[str]]:
    """Dtype and range of the stored values, and what is unusual about them."""
    data = volume.data.numpy()
    dtype = str(volume.data.dtype).removeprefix("torch.")
    finite = np.isfinite(data) if data.dtype.kind == "f" else None
    missing = 0 if finite is None else int((~finite).sum())
    if finite is not None and missing:
        notes = [f"{missing} of {data.size} voxels are NaN or infinite"]
        data = data[finite]
        if not data.size:
            return f"{dtype}, no finite value", notes
    else:
        notes = []
    low, high = data.min(), data.max()
    if low == high:
        notes.append(f"all voxels are {low}")
    return f"{dtype} from {low} to {high}", notes


def _compare_forms(header: Header) -> list[str]:
    """Report where sform and qform are both set but disagree."""
    if min(int(header.fields["sform_code"]), int(header.fields["qform_code"])) < 1:
        return []
    fields = header.fields.copy()
    fields["sform_code"] = 0
    _, qform_matrix, _ = world_from_header(fields)
    if qform_matrix is None:
        return ["the qform is set but unusable; the sform counts"]
    matrices = torch.from_numpy(header.world_from_vox), torch.from_numpy(qform_matrix)
    if same_grid(header.shape[1:], *matrices, tolerance_mm=_FORMS_APART_MM):
        return []
    return [f"sform and qform place voxels more than {_FORMS_APART_MM} mm apart; the sform counts"]


def _tilt_degrees(volume: Volume) -> float:
    """The largest angle between an image axis and the patient axis closest to it."""
    steps = volume.world_from_vox[:3, :3].numpy()
    cosines = np.abs(steps / np.linalg.norm(steps, axis=0)).max(axis=0)
    return float(np.degrees(np.arccos(np.clip(cosines.min(), -1, 1))))


def _spell_out(orientation: str) -> str:
    words = {"R": "right", "L": "left", "A": "front", "P": "back", "S": "head", "I": "feet"}
    return ", ".join(words[code] for code in orientation)
