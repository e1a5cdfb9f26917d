"""Read a NIfTI file into a Volume, or refuse it before anything is allocated."""

import math
import os
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cmrfast.data.nifti.header import Header, read_header
from cmrfast.data.nifti.source import Source, open_source
from cmrfast.data.volume import Volume
from cmrfast.errors import FileError

#: What may precede the voxels beyond ``max_bytes``: header and extensions.
_PREFIX_BYTES = 16 << 20
#: Voxels that are scaled at a time.
_PIECE = 1 << 17


def read_nifti(path: str | os.PathLike[str], *, max_bytes: int = 2**31) -> Volume:
    """Read an image.

    The header is checked before memory is allocated: the voxel type, the sizes, the offset, an
    invertible matrix, and that the file, gzip or not, can hold the voxels it promises.

    Args:
        path: .nii, .nii.gz, or either file of a .hdr/.img pair.
        max_bytes: limit for the voxels as stored; a larger file is refused. What precedes them may
            take 16 MiB more than the limit leaves. Memory holds the result, 1 to 4 times the
            stored voxels, and 1 MiB for each of its few copies of a piece.

    Returns:
        The volume, on the CPU, in the stored dtype; if the header scales the values, float32, or
        float64 for voxels of more than 16 bits that are not float32. Its strides are those of the
        file: the first spatial axis varies fastest.

    Raises:
        FileError: if anything is wrong with the file.
    """
    header = read_header(path)
    for note in header.notes:
        warnings.warn(f"read_nifti: {header.path}: {note}", stacklevel=2)
    return read_volume(header, max_bytes=max_bytes)


def read_volume(header: Header, *, max_bytes: int = 2**31) -> Volume:
    """Read the volume of a checked header."""
    if header.voxel_bytes > max_bytes:
        raise FileError(
            f"read_nifti: {header.path} holds {header.voxel_bytes} bytes of voxels, "
            f"more than max_bytes={max_bytes}"
        )
    # The offset counts too: in a gzip file, all that precedes the voxels has to be inflated.
    if header.offset + header.voxel_bytes > max_bytes + _PREFIX_BYTES:
        raise FileError(
            f"read_nifti: {header.path}: vox_offset {header.offset} puts the end of the voxels "
            f"more than 16 MiB beyond max_bytes={max_bytes}"
        )
    try:
        data = _read_voxels(header)
    except MemoryError as error:  # max_bytes may be larger than this machine's memory
        raise FileError(
            f"read_nifti: {header.path} holds {header.voxel_bytes} bytes of voxels, "
            "more than fits in memory"
        ) from error
    return Volume(data, torch.from_numpy(header.world_from_vox))


def _read_voxels(header: Header) -> Tensor:
    """The voxels, scaled if the header says so, in this machine's byte order."""
    count = math.prod(header.shape)
    voxels = np.empty(count, _result_dtype(header))
    with open_source(header.voxel_path) as source:
        source.seek(header.offset)
        if header.scaling is None:
            filled = source.fill(voxels.view(np.uint8).data)
        else:
            filled = _fill_scaled(voxels, source, header.dtype, *header.scaling)
        if filled < header.voxel_bytes:
            raise FileError(
                f"read_nifti: {header.path} promises {header.voxel_bytes} bytes of voxels, "
                f"but holds {filled}"
            )
        source.read(1)  # gzip verifies its checksum only when read past the end
    if header.scaling is None and not header.dtype.isnative:
        voxels.byteswap(inplace=True)
    stored = voxels.reshape(header.shape[0], *header.shape[:0:-1])  # (C, K, J, I)
    return torch.from_numpy(stored).permute(0, 3, 2, 1)


def _result_dtype(header: Header) -> np.dtype[Any]:
    dtype = header.dtype.newbyteorder("=")
    if header.scaling is None:
        return dtype
    single = dtype == np.float32 or dtype.itemsize <= 2  # float32 is precise enough
    return np.dtype(np.float32 if single else np.float64)


def _fill_scaled(
    voxels: npt.NDArray[Any], source: Source, dtype: np.dtype[Any], slope: float, intercept: float
) -> int:
    """Read and scale in float64, piece by piece; returns the number of bytes read."""
    piece = np.empty(_PIECE, dtype)
    filled = 0
    for part in np.split(voxels, range(_PIECE, len(voxels), _PIECE)):
        stored = piece[: len(part)]
        filled += source.fill(stored.view(np.uint8).data)
        with np.errstate(over="ignore", invalid="ignore"):  # a value may overflow in float32
            part[:] = stored.astype(np.float64) * slope + intercept
    return filled
