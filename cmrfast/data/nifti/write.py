"""Write a Volume as NIfTI, atomically and verified by reading it back."""

import gzip
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cmrfast.atomic import atomic_write
from cmrfast.data.nifti.geometry import set_geometry, step_lengths
from cmrfast.data.nifti.header import DTYPES, Header, read_header
from cmrfast.data.nifti.read import read_volume
from cmrfast.data.volume import Volume
from cmrfast.errors import FileError

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_FORMS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)
_SCANNER = 1  # the code NIFTI_XFORM_SCANNER_ANAT
#: Relative rounding error of float32, the precision of NIfTI-1's sform and qform.
_ROUNDING = 2.0**-23


def write_nifti(
    path: str | os.PathLike[str],
    volume: Volume,
    like: str | os.PathLike[str] | None = None,
    *,
    keep_dtype: bool = True,
) -> None:
    """Write an image, atomically, and check it by reading it back.

    Args:
        path: must end in .nii or .nii.gz; its folder must exist. A link at this path is replaced.
        volume: bool is stored as uint8, half precision as float32; channels become time points.
        like: a NIfTI file that the result must overlay. If the volume has its geometry, its sform,
            qform, codes, pixdim and units are kept bit for bit. Its voxel type is kept if it can
            represent every value, but integer labels never become floating point. Without
            ``like``, sform and qform are written from the volume.
        keep_dtype: whether to keep the voxel type of ``like``, not that of the volume.

    Raises:
        FileError: if ``like`` cannot be read, or the file cannot be written or read back.

    Example:
        >>> import tempfile
        >>> from cmrfast.data import read_nifti
        >>> mask = Volume(torch.ones(1, 4, 4, 2, dtype=torch.bool), torch.eye(4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_nifti(f"{folder}/mask.nii.gz", mask)
        ...     read_nifti(f"{folder}/mask.nii.gz").data.dtype
        torch.uint8
    """
    target = Path(path)
    if not target.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"write_nifti: the name must end in .nii or .nii.gz; got {target.name}")
    if "\0" in str(target):
        raise FileError(f"write_nifti: {str(target)!r} is not a file name")
    if not volume.data.numel():
        raise ValueError(f"write_nifti: volume is empty; its shape is {tuple(volume.data.shape)}")
    model = None if like is None else read_header(like)
    values = _to_storable(volume.data)
    data = _cast_like(values, model) if model is not None and keep_dtype else values
    fields = _make_fields(data, volume, model)
    try:
        with atomic_write(target) as temporary:
            _write_file(temporary, fields, data, compressed=target.name.endswith(".gz"))
            _verify(temporary, target, values, volume)
    except OSError as error:
        raise FileError(f"write_nifti: {target}: {error.strerror or error}") from error


def _to_storable(data: Tensor) -> Tensor:
    """The data in a dtype that NIfTI has."""
    data = data.detach().cpu()
    if data.dtype == torch.bool:
        return data.byte()
    return data.float() if data.dtype in (torch.float16, torch.bfloat16) else data


def _cast_like(data: Tensor, model: Header) -> Tensor:
    """The data in the model's dtype if that represents every value; integers stay integers."""
    values, dtype = data.numpy(), model.dtype.newbyteorder("=")
    if values.dtype.kind != "f":  # integers come back from a cast that wrapped them
        limits = None if dtype.kind == "f" else np.iinfo(dtype)
        exact = limits is not None and limits.min <= values.min() and values.max() <= limits.max
        return torch.from_numpy(values.astype(dtype)) if exact else data
    with np.errstate(invalid="ignore", over="ignore"):
        cast_values = values.astype(dtype)
        exact = np.array_equal(cast_values.astype(values.dtype), values, equal_nan=True)
    return torch.from_numpy(cast_values) if exact else data


def _make_fields(data: Tensor, volume: Volume, model: Header | None) -> npt.NDArray[Any]:
    """The header as a structured array with one entry."""
    from nibabel.nifti1 import header_dtype as nifti1
    from nibabel.nifti2 import header_dtype as nifti2

    channels, *space = data.shape
    requested = volume.world_from_vox.numpy()
    keep = model is not None and np.allclose(model.world_from_vox, requested, rtol=1e-6, atol=1e-6)
    # NIfTI-1 stores sizes as int16.
    nifti_2 = max(data.shape) > 32767 or (
        keep and model is not None and int(model.fields["sizeof_hdr"]) == 540
    )
    layout = (nifti2 if nifti_2 else nifti1).newbyteorder("<")
    fields = np.zeros(1, layout)
    dtype = data.numpy().dtype
    fields["sizeof_hdr"] = layout.itemsize
    fields["magic"] = b"n+2" if nifti_2 else b"n+1"
    if nifti_2:
        fields["eol_check"] = (13, 10, 26, 10)
    sizes = [3, *space] if channels == 1 else [4, *space, channels]
    fields["dim"] = sizes + [1] * (8 - len(sizes))
    fields["datatype"], fields["bitpix"] = _CODES[dtype], 8 * dtype.itemsize
    fields["vox_offset"] = layout.itemsize + 4
    fields["scl_slope"] = 1
    fields["pixdim"][0, 4:] = 1
    if keep and model is not None:
        fields["pixdim"][0] = model.fields["pixdim"]
        axes = min(int(model.fields["dim"][0]), 3)  # what is written has three
        fields["pixdim"][0, 1 + axes : 4] = step_lengths(model.fields)[axes:]
        for name in _FORMS:
            fields[name] = model.fields[name]
    else:
        set_geometry(fields[0], requested, _SCANNER)
    return fields


def _write_file(path: Path, fields: npt.NDArray[Any], data: Tensor, *, compressed: bool) -> None:
    voxels = np.ascontiguousarray(data.permute(0, 3, 2, 1).numpy())
    voxels = voxels.astype(voxels.dtype.newbyteorder("<"), copy=False)
    with path.open("wb") as file:
        stream = _gzip_writer(file) if compressed else file
        stream.write(fields.tobytes() + bytes(4))  # four zero bytes: no extension follows
        stream.write(voxels.reshape(-1).view(np.uint8).data)
        if compressed:
            stream.close()


def _gzip_writer(file: BinaryIO) -> BinaryIO:
    """A gzip stream without name and time stamp, so that equal images give equal bytes."""
    try:
        from isal import igzip
    except ImportError:
        return cast(BinaryIO, gzip.GzipFile("", "wb", compresslevel=4, fileobj=file, mtime=0))
    return cast(BinaryIO, igzip.IGzipFile("", "wb", compresslevel=2, fileobj=file, mtime=0))


def _verify(written: Path, target: Path, values: Tensor, volume: Volume) -> None:
    header = replace(read_header(written), path=target)
    stored = read_volume(header, max_bytes=header.voxel_bytes)
    requested = volume.world_from_vox
    error = (stored.world_from_vox - requested).abs()
    if (error > 1e-5 + _ROUNDING * requested.abs()).any():
        raise FileError(f"write_nifti: {target}: the geometry read back differs")
    if not np.array_equal(
        stored.data.numpy(), values.numpy(), equal_nan=values.is_floating_point()
    ):
        raise FileError(f"write_nifti: {target}: the voxels read back differ")
