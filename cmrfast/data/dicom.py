"""Read a folder of DICOM slices or frames into a Volume; T1 maps are converted to ms."""

import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from cmrfast.data.t1_units import t1_in_ms
from cmrfast.data.volume import Volume, fault_of_matrix
from cmrfast.errors import FileError
from cmrfast.files import open_regular

Vector = npt.NDArray[np.float64]

# DICOM's x and y point to the patient's left and back, NIfTI's to the right and front.
_RAS_FROM_LPS = np.array([[-1.0], [-1.0], [1.0]])
_DICOMDIR = "1.2.840.10008.1.3.10"
_DEFLATED = "1.2.840.10008.1.2.1.99"
#: Attribute of a frame → the functional group that it is in.
_GROUPS = {
    "PixelSpacing": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "ImagePositionPatient": "PlanePositionSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}
#: What a file may hold besides its pixels, where the whole of it is inflated to read any of it.
_HEADER_BYTES = 16 << 20
#: How far the directions of an image may be from unit length and from a right angle.
_MAX_SKEW = 1e-2
#: How far a slice may lie off its place in an evenly spaced stack, relative to the slice distance.
_MAX_UNEVEN = 0.02


@dataclass(frozen=True)
class Slice:
    """The parsed header of one file, or of one frame of it."""

    path: Path
    series: tuple[str, str, str]  # UID, number, description
    rows: int
    columns: int
    bits: int
    spacing_mm: Vector  # between rows, between columns
    axes: Vector  # (2, 3): along a row, down a column; x to the left, y to the back
    position_mm: Vector
    thickness_mm: float
    frames: int
    is_t1_map: bool
    rescale: tuple[float, float]  # slope and intercept
    frame: int | None = None  # of a file with many, from 0

    @property
    def normal(self) -> Vector:
        """Normal of the slice plane; slices are sorted along it."""
        return np.cross(*self.axes)


def read_dicom_folder(
    folder: str | os.PathLike[str], *, series: str | None = None, max_bytes: int = 2**31
) -> Volume:
    """Read one series of DICOM images, slices sorted along their normal.

    A file holds one slice or, as enhanced MR does, many frames with positions of their own.

    Args:
        folder: folder of the files; other files in it are ignored, subfolders are not searched.
        series: the UID, number or description of the series; required if there are several.
        max_bytes: limit for all pixels together; a larger series is refused, and so is a deflated
            file that inflates to 16 MiB more.

    Returns:
        (1, I, J, K) in the stored dtype, or float32 if the files rescale it; I runs along a row
        of pixels, J down a column. A series that calls itself a T1 map is in ms.

    Raises:
        FileError: if anything is wrong with the files, including uneven or duplicate slices.
    """
    folder = Path(folder)
    slices = read_slices(folder, series=series, max_bytes=max_bytes)
    promised = sum(s.rows * s.columns * s.bits // 8 for s in slices)
    if promised > max_bytes:
        raise _file_error(
            folder, f"holds {promised} bytes of pixels, more than max_bytes={max_bytes}"
        )
    world_from_vox = world_from_slices(folder, slices)
    planes = np.stack(_read_planes(slices, max_bytes))
    data = torch.from_numpy(planes).permute(2, 1, 0)[None]
    volume = Volume(data, torch.from_numpy(world_from_vox))
    if not slices[0].is_t1_map:
        return volume
    try:
        return t1_in_ms(volume, name=str(folder))
    except ValueError as error:
        raise _file_error(folder, str(error)) from error


def holds_dicom(folder: Path) -> bool:
    """Whether a folder has a file whose name or first bytes promise DICOM, not in a subfolder."""
    return any(map(_may_be_dicom, _list_files(folder)))


def read_slices(folder: Path, *, series: str | None = None, max_bytes: int = 2**31) -> list[Slice]:
    """The headers of one series' slices in the order of ``read_dicom_folder``, whose arguments
    these are."""
    slices = _select_series(folder, _read_headers(folder, max_bytes), series)
    normal = slices[0].normal
    # File names and instance numbers are not reliable.
    return sorted(slices, key=lambda s: float(s.position_mm @ normal))


@contextmanager
def _open(path: Path, max_bytes: int) -> Iterator[BinaryIO]:
    """A DICOM file that does not inflate beyond the limit: pydicom inflates all of it."""
    with open_regular(path) as file:
        meta = _import_pydicom().filereader.read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == _DEFLATED:
            _refuse_burst(path, file, max_bytes)
            file.seek(0)
        yield file


def _refuse_burst(path: Path, file: BinaryIO, max_bytes: int) -> None:
    """Count what a deflated file inflates to, piece by piece."""
    reader = _import_pydicom().filereader
    reader.read_preamble(file, force=False)
    reader.read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    piece = b""
    while not inflater.eof and (piece := inflater.unconsumed_tail or file.read(1 << 20)):
        size += len(inflater.decompress(piece, 1 << 20))
        if size > max_bytes + _HEADER_BYTES:
            raise _file_error(path, f"inflates to more than 16 MiB beyond max_bytes={max_bytes}")


def _list_files(folder: Path) -> list[Path]:
    """The files of a folder in a fixed order."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise _file_error(folder, error.strerror or str(error)) from error


def _read_headers(folder: Path, max_bytes: int) -> list[Slice]:
    """Read the header of every DICOM image in the folder."""
    paths = _list_files(folder)
    if not any(map(_may_be_dicom, paths)):  # said even where pydicom is not installed
        raise _file_error(folder, "holds no DICOM image")
    pydicom = _import_pydicom()
    slices: list[Slice] = []
    others: set[str] = set()
    for path in paths:
        try:
            with _open(path, max_bytes) as file:
                header = pydicom.dcmread(file, stop_before_pixels=True)
            if _is_image(header):
                slices += _parse_headers(path, header)
            elif "Modality" in header:
                others.add(str(header.Modality))
        except pydicom.errors.InvalidDicomError as error:
            if path.suffix.lower() in (".dcm", ".ima"):
                raise _file_error(path, "is not a DICOM file, despite its name") from error
        except FileError:
            raise
        except Exception as error:  # a damaged file can raise almost anything
            raise _file_error(path, f"its header is damaged ({error})") from error
    if not slices:
        kinds = f"MR image (Modality: {', '.join(sorted(others))})" if others else "DICOM image"
        raise _file_error(folder, f"holds no {kinds}")
    return slices


def _is_image(header: Any) -> bool:
    """Whether the file should hold a slice; a file truncated before its pixels counts too."""
    kind = str(header.file_meta.get("MediaStorageSOPClassUID", ""))
    return kind != _DICOMDIR and header.get("Modality", "MR") == "MR"


def _parse_headers(path: Path, header: Any) -> Iterator[Slice]:
    """The header of a file, or of each of its frames."""
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        yield _parse_header(path, header)
        return
    if len(groups) != int(header.get("NumberOfFrames") or 1):
        raise _file_error(path, f"describes {len(groups)} frames, not as many as it holds")
    shared = header.get("SharedFunctionalGroupsSequence") or [{}]
    for number, group in enumerate(groups):
        own = _FrameHeader((group, shared[0]), header)
        yield replace(_parse_header(path, own), frame=number, frames=1)


class _FrameHeader:
    """The attributes of a frame: from its functional groups, from those that all frames share, or
    from the file."""

    def __init__(self, groups: tuple[Any, ...], header: Any) -> None:
        self.groups, self.header = groups, header

    def get(self, name: str, default: Any = None) -> Any:
        for group in self.groups:
            sequence = group.get(_GROUPS.get(name, ""))
            if sequence and name in sequence[0]:
                return sequence[0].get(name)
        return self.header.get(name, default)


def _parse_header(path: Path, header: Any) -> Slice:
    def vector(name: str, count: int) -> Vector:
        value = header.get(name)
        if value in (None, ""):
            raise _file_error(path, f"has no {name}")
        numbers = np.array(value, np.float64, ndmin=1)
        if numbers.shape != (count,) or not np.isfinite(numbers).all():
            raise _file_error(path, f"{name} must be {count} numbers; it is {value}")
        return numbers

    def size(name: str) -> int:
        number = int(vector(name, 1)[0])
        if number < 1:
            raise _file_error(path, f"{name} must be positive; it is {number}")
        return number

    def number(name: str, default: float) -> float:
        value = header.get(name)
        return default if value in (None, "") else float(value)

    spacing_mm = vector("PixelSpacing", 2)
    if spacing_mm.min() < 0:
        raise _file_error(path, f"PixelSpacing must be positive; it is {spacing_mm.tolist()}")
    axes = vector("ImageOrientationPatient", 6).reshape(2, 3)
    if not np.abs(axes @ axes.T - np.eye(2)).max() <= _MAX_SKEW:
        raise _file_error(
            path,
            f"ImageOrientationPatient must be two unit vectors at a right angle; "
            f"it is {axes.ravel().tolist()}",
        )
    words = [*(header.get("ImageType") or []), header.get("ImageComments", "")]
    return Slice(
        path=path,
        series=(
            str(header.get("SeriesInstanceUID", "")),
            str(header.get("SeriesNumber", "")),
            str(header.get("SeriesDescription", "")),
        ),
        rows=size("Rows"),
        columns=size("Columns"),
        bits=size("BitsAllocated"),
        spacing_mm=spacing_mm,
        axes=axes,
        position_mm=vector("ImagePositionPatient", 3),
        # Some scanners give the spacing a sign.
        thickness_mm=abs(
            float(header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 1.0)
        ),
        frames=int(header.get("NumberOfFrames") or 1),
        is_t1_map=any("T1 MAP" in str(word).upper().replace("_", " ") for word in words),
        rescale=(
            number("RescaleSlope", 1.0),
            number("RescaleIntercept", 0.0),
        ),
    )


def _select_series(folder: Path, slices: list[Slice], wanted: str | None) -> list[Slice]:
    names = sorted({s.series for s in slices}, key=lambda s: (s[1].zfill(12), s[2], s[0]))
    chosen = [name for name in names if wanted is None or wanted in name]
    if len(chosen) != 1:
        available = "; ".join(f"{number} {text!r}" for _, number, text in names)
        hint = (
            "name one with series="
            if wanted is None
            else f"series={wanted!r} does not select exactly one"
        )
        raise _file_error(folder, f"holds {len(names)} series, {hint}: {available}")
    return [s for s in slices if s.series == chosen[0]]


def world_from_slices(folder: Path, slices: list[Slice]) -> Vector:
    """The voxel-to-world matrix of slices in order; they must share one grid."""
    first = slices[0]
    for other in slices:
        if other.frames > 1:
            raise _file_error(other.path, "holds many frames in one file without their positions")
        for name in ("rows", "columns", "spacing_mm", "axes"):
            if not np.allclose(getattr(other, name), getattr(first, name), rtol=0, atol=1e-4):
                raise _file_error(other.path, f"its {name} differ from those of {first.path.name}")
    matrix = np.eye(4)
    matrix[:3] = _RAS_FROM_LPS * np.column_stack(
        [
            first.axes[0] * first.spacing_mm[1],
            first.axes[1] * first.spacing_mm[0],
            _slice_step_mm(folder, slices),
            first.position_mm,
        ]
    )
    fault = fault_of_matrix(matrix)
    if fault:
        raise _file_error(folder, f"its geometry {fault}")
    return matrix


def _slice_step_mm(folder: Path, slices: list[Slice]) -> Vector:
    """The (3,) step from one slice to the next."""
    normal = slices[0].normal
    if len(slices) == 1:
        return normal * slices[0].thickness_mm
    positions = np.array([s.position_mm for s in slices])
    gaps = np.diff(positions @ normal)
    if gaps.min() < 1e-3:
        raise _file_error(folder, "two of its slices have the same position")
    step: Vector = (positions[-1] - positions[0]) / (len(positions) - 1)
    even = positions[0] + np.arange(len(positions))[:, None] * step
    if np.abs(positions - even).max() > _MAX_UNEVEN * np.linalg.norm(step):
        distances = ", ".join(f"{gap:.4g}" for gap in gaps)
        raise _file_error(folder, f"its slices are not evenly spaced: {distances} mm")
    return step


def _read_planes(slices: list[Slice], max_bytes: int) -> list[npt.NDArray[Any]]:
    """The pixels of each slice, (rows, columns); each file is read once."""
    planes: dict[int, npt.NDArray[Any]] = {}
    by_file: dict[Path, list[int]] = {}
    for number, header in enumerate(slices):
        by_file.setdefault(header.path, []).append(number)
    for path, numbers in by_file.items():
        try:
            with _open(path, max_bytes) as stream:
                file = _import_pydicom().dcmread(stream)
            for number in numbers:
                planes[number] = _read_plane(file, slices[number])
        except FileError:
            raise
        except Exception as error:  # a damaged file can raise almost anything
            raise _file_error(path, f"its pixels cannot be read ({error})") from error
    return [planes[number] for number in range(len(slices))]


def _read_plane(file: Any, header: Slice) -> npt.NDArray[Any]:
    plane: npt.NDArray[Any] = _import_pydicom().pixels.pixel_array(file, index=header.frame)
    slope, intercept = header.rescale
    if plane.shape != (header.rows, header.columns):
        raise _file_error(header.path, f"must hold one grey plane; it holds {plane.shape}")
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise _file_error(header.path, f"rescales by {slope} and {intercept}")
    if (slope, intercept) == (1, 0):
        return plane
    with np.errstate(over="ignore", invalid="ignore"):  # a value may overflow in float32
        return (plane * slope + intercept).astype(np.float32)


def _may_be_dicom(path: Path) -> bool:
    """Whether a file's name or its first bytes promise DICOM."""
    if path.suffix.lower() in (".dcm", ".ima"):
        return True
    try:
        with open_regular(path) as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return True  # to be reported when it is read


def _import_pydicom() -> Any:
    try:
        import pydicom
        import pydicom.errors
        import pydicom.filereader
        import pydicom.pixels
    except ImportError as error:
        raise ImportError(
            'read_dicom_folder: pydicom is needed; install it with pip install "cmrfast[dicom]"'
        ) from error
    return pydicom


def _file_error(path: Path, problem: str) -> FileError:
    return FileError(f"read_dicom_folder: {path}: {problem}")
