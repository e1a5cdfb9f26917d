"""Read a NIfTI file into a Volume, or refuse it before anything is allocated."""

import os
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cmrfast.data.nifti.header import Header, read_header
from cmrfast.data.nifti.source import open_source
from cmrfast.data.volume import Volume
from cmrfast.errors import FileError


def read_nifti(path: str | os.PathLike[str], *, max_bytes: int = 2**31) -> Volume:
    """Read an image.

    The header is checked before memory is allocated: the voxel type, the sizes, the offset, an
    invertible matrix, and that the file, gzip or not, can hold the voxels it promises.

    Args:
        path: .nii, .nii.gz, or either file of a .hdr/.img pair.
        max_bytes: limit for the voxels as stored; a larger file is refused.

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
    try:
        data = _apply_scaling(_read_voxels(header), header)
    except MemoryError as error:  # max_bytes may be larger than this machine's memory
        raise FileError(
            f"read_nifti: {header.path} holds {header.voxel_bytes} bytes of voxels, "
            "more than fits in memory"
        ) from error
    return Volume(data, torch.from_numpy(header.world_from_vox))


def _read_voxels(header: Header) -> npt.NDArray[Any]:
    """The voxels as (C, K, J, I), in this machine's byte order."""
    buffer = np.empty(header.voxel_bytes, np.uint8)
    with open_source(header.voxel_path) as source:
        source.seek(header.offset)
        filled = source.fill(buffer.data)
        if filled < len(buffer):
            raise FileError(
                f"read_nifti: {header.path} promises {len(buffer)} bytes of voxels, "
                f"but holds {filled}"
            )
        source.read(1)  # gzip verifies its checksum only when read past the end
    voxels = buffer.view(header.dtype)
    if not header.dtype.isnative:
        voxels = voxels.byteswap(inplace=True).view(header.dtype.newbyteorder("="))
    return voxels.reshape(header.shape[0], *header.shape[:0:-1])


def _apply_scaling(voxels: npt.NDArray[Any], header: Header) -> Tensor:
    data = torch.from_numpy(voxels).permute(0, 3, 2, 1)
    if header.scaling is None:
        return data
    slope, intercept = header.scaling
    scaled = data.double().mul_(slope).add_(intercept)
    single = data.dtype == torch.float32 or data.dtype.itemsize <= 2  # float32 is precise enough
    return scaled.float() if single else scaled
