"""Read a NIfTI-1 or NIfTI-2 header and check it field by field, before any voxel is read."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cmrfast.data.nifti.geometry import world_from_header
from cmrfast.data.nifti.source import Source, open_source
from cmrfast.errors import FileError

#: NIfTI code → dtype, for the voxel types that images and masks use.
DTYPES: dict[int, np.dtype[Any]] = {
    2: np.dtype("u1"),
    4: np.dtype("i2"),
    8: np.dtype("i4"),
    16: np.dtype("f4"),
    64: np.dtype("f8"),
    256: np.dtype("i1"),
    512: np.dtype("u2"),
    768: np.dtype("u4"),
    1024: np.dtype("i8"),
    1280: np.dtype("u8"),
}
_UNSUPPORTED = {
    1: "single bits",
    32: "complex",
    128: "RGB",
    1536: "128-bit",
    1792: "complex",
    2048: "complex",
    2304: "RGBA",
}
#: Header size → magic strings of a single file and of a .hdr/.img pair.
_VERSIONS = {348: (b"n+1\0", b"ni1\0"), 540: (b"n+2\0", b"ni2\0")}
_UNPACKED_ENDINGS = {".hdr": ".img", ".HDR": ".IMG"}


@dataclass(frozen=True)
class Header:
    """A checked header.

    Attributes:
        path: the requested file.
        voxel_path: the file that holds the voxels; differs from ``path`` for a .hdr/.img pair.
        fields: the header itself, in the file's byte order.
        offset: position of the first voxel in ``voxel_path``, in bytes.
        dtype: dtype of the stored voxels, with their byte order.
        shape: (C, I, J, K).
        scaling: (slope, intercept) of the stored values, None if they are not scaled.
        world_from_vox: (4, 4), in mm.
        notes: what is unusual but legal, in words.
    """

    path: Path
    voxel_path: Path
    fields: Any
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, int, int, int]
    scaling: tuple[float, float] | None
    world_from_vox: npt.NDArray[np.float64]
    notes: tuple[str, ...]

    @property
    def voxel_bytes(self) -> int:
        """Size of all voxels as stored."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check a header; also check that the file can hold the voxels it promises.

    Args:
        path: .nii, .nii.gz, or either file of a .hdr/.img pair.
    """
    requested = Path(path)
    with open_source(_header_path(requested)) as source:
        fields = _read_fields(source)
        header = _check_fields(requested, source.path, fields)
        if header.voxel_path == source.path:
            _require_capacity(header, source)
            return header
    with open_source(header.voxel_path) as source:
        _require_capacity(header, source)
    return header


def _read_fields(source: Source) -> Any:
    from nibabel.nifti1 import header_dtype as nifti1
    from nibabel.nifti2 import header_dtype as nifti2

    raw = source.read(540)  # the longer of the two headers
    orders: tuple[Literal["<"], Literal[">"]] = ("<", ">")
    for order in orders:  # the size field also reveals the byte order
        size = int(np.frombuffer(raw[:4].ljust(4, b"\0"), f"{order}i4")[0])
        if size not in _VERSIONS:
            continue
        if len(raw) < size:
            raise FileError(
                f"read_nifti: {source.path} ends inside its header, "
                f"after {len(raw)} of {size} bytes"
            )
        layout = (nifti1 if size == 348 else nifti2).newbyteorder(order)
        fields = np.frombuffer(raw[:size], layout)[0]
        # NumPy strips the trailing zero of the magic string; NIfTI-2's is four bytes longer.
        magic = bytes(fields["magic"])[:4].ljust(4, b"\0")
        if magic not in _VERSIONS[size]:
            raise FileError(f"read_nifti: {source.path}: magic {magic!r} is not NIfTI's")
        return fields
    raise FileError(
        f"read_nifti: {source.path} is not a NIfTI file: it must begin with the header's size, "
        f"348 or 540; it begins with {raw[:4].hex(' ') or 'nothing'}"
    )


def _check_fields(requested: Path, header_path: Path, fields: Any) -> Header:
    def error(field: str, problem: str) -> FileError:
        return FileError(f"read_nifti: {requested}: {field} {problem}")

    axes = int(fields["dim"][0])
    if not 1 <= axes <= 7:
        raise error("dim[0]", f"must be 1 to 7 axes; it is {axes}")
    sizes = [int(n) for n in fields["dim"][1 : axes + 1]]
    if min(sizes) < 1:
        raise error("dim", f"must be positive; it is {sizes}")
    space, others = [*sizes, 1, 1][:3], sizes[3:]
    if sum(n > 1 for n in others) > 1:
        raise error("dim", f"may have only one non-spatial axis longer than 1; it is {sizes}")

    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    if code not in DTYPES:
        known = ", ".join(str(d) for d in DTYPES.values())
        kind = _UNSUPPORTED.get(code, "unknown")
        raise error("datatype", f"{code} ({kind}) is none of {known}")
    dtype = DTYPES[code].newbyteorder(fields["dim"].dtype.byteorder)
    if bits != 8 * dtype.itemsize:
        raise error("bitpix", f"must be {8 * dtype.itemsize} for {DTYPES[code]}; it is {bits}")

    single = bytes(fields["magic"])[:2] == b"n+"
    offset = _check_offset(fields, single, error)
    fault, matrix, notes = world_from_header(fields)
    if matrix is None:
        raise error(*fault)
    return Header(
        path=requested,
        voxel_path=header_path if single else _voxel_path(requested, header_path),
        fields=fields,
        offset=offset,
        dtype=dtype,
        shape=(math.prod(others), space[0], space[1], space[2]),
        scaling=_check_scaling(fields, error),
        world_from_vox=matrix,
        notes=notes,
    )


def _check_offset(fields: Any, single: bool, error: Any) -> int:
    value = float(fields["vox_offset"])
    least = int(fields["sizeof_hdr"]) + 4 if single else 0
    if single and value == 0:  # some programs leave it unset
        return least
    if not (math.isfinite(value) and value >= least and value == int(value)):
        raise error("vox_offset", f"must be a whole number of at least {least}; it is {value}")
    return int(value)


def _check_scaling(fields: Any, error: Any) -> tuple[float, float] | None:
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or math.isnan(slope):  # by the standard: no scaling
        return None
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise error("scl_slope, scl_inter", f"must be finite; they are {slope}, {intercept}")
    return None if (slope, intercept) == (1, 0) else (slope, intercept)


def _require_capacity(header: Header, source: Source) -> None:
    promised = header.offset + header.voxel_bytes
    if promised > source.capacity:
        raise FileError(
            f"read_nifti: {header.path} promises {header.voxel_bytes} bytes of voxels, "
            f"the {source.size} bytes of {source.path.name} cannot hold them"
        )


def _header_path(requested: Path) -> Path:
    """The header file if the voxel file of a pair was requested, else the path itself."""
    gz, name = _split_gz(requested)
    for header, voxels in _UNPACKED_ENDINGS.items():
        if name.endswith(voxels):
            return _first_existing(requested, name[: -len(voxels)] + header, gz)
    return requested


def _voxel_path(requested: Path, header_path: Path) -> Path:
    gz, name = _split_gz(header_path)
    for header, voxels in _UNPACKED_ENDINGS.items():
        if name.endswith(header):
            return _first_existing(header_path, name[: -len(header)] + voxels, gz)
    raise FileError(
        f"read_nifti: {requested}: magic says .hdr/.img pair, but the name has another ending"
    )


def _split_gz(path: Path) -> tuple[str, str]:
    name = path.name
    return (name[-3:], name[:-3]) if name.lower().endswith(".gz") else ("", name)


def _first_existing(sibling: Path, name: str, gz: str) -> Path:
    """``name`` in the folder of ``sibling``, plain or gzip, whichever exists."""
    first, second = (sibling.with_name(name + end) for end in (gz, "" if gz else ".gz"))
    # Not Path.exists, which raises for a name that is too long.
    return second if os.path.exists(second) and not os.path.exists(first) else first
