"""Hostile NIfTI files: fields, bytes, gzip members and pairs, alone and combined."""

import functools
import random
import struct
import warnings
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.nifti1 import header_dtype as nifti1
from nibabel.nifti2 import header_dtype as nifti2

from cmrfast import FileError
from cmrfast.data import read_nifti
from cmrfast.data.nifti.header import DTYPES
from tests.attack.frame import Attack

_INTEGERS = (0, 1, 2, 3, 4, 7, 8, 16, 255, 256, 347, 348, 352, 540, 544, 4096, 32767, 65535)
_LARGE = (
    2**15,
    2**16 - 1,
    2**24,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    -1,
    -2,
    -(2**31),
)
_REALS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 1e38, -3e38, 1e300, float("nan"), float("inf"))
_REALS += (-float("inf"), 352.0, 352.5, 1e6, 2.0**31, 1e10, 1e-300, 0.1, 1e9)
_MAX_BYTES = 1 << 22


@functools.cache
def _whole(version: int, order: str) -> tuple[bytes, bytes]:
    """Header and voxels of a good file."""
    data = np.arange(60, dtype="i2").reshape(5, 4, 3)
    kind = nib.Nifti1Image if version == 1 else nib.Nifti2Image
    image = kind(data, np.diag([1.5, 1.5, 8, 1]))
    image.set_qform(image.affine, code=1)
    header = image.header.as_byteswapped(order)
    header["vox_offset"] = 352 if version == 1 else 544
    header["magic"] = b"n+1" if version == 1 else b"n+2"
    return bytes(header.binaryblock), data.astype(f"{order}i2").tobytes(order="F")


def _hostile_value(numbers: random.Random, dtype: np.dtype) -> object:
    if dtype.kind in "SV":
        choices = [b"", b"n+1", b"ni1", b"n+2", b"ni2", b"\0\0\0\0", numbers.randbytes(8)]
        return numbers.choice(choices)[: dtype.itemsize]
    if dtype.kind == "f":
        return numbers.choice([*_REALS, numbers.gauss(0, 100)])
    value = numbers.choice([*_INTEGERS, *_LARGE, numbers.getrandbits(63), *DTYPES])
    bounds = np.iinfo(dtype)
    return value if bounds.min <= value <= bounds.max else value % (bounds.max + 1)


def _change_fields(numbers: random.Random, header: bytes, version: int, order: str) -> bytes:
    """Set up to six fields, or single entries of them."""
    layout = (nifti1 if version == 1 else nifti2).newbyteorder(order)
    fields = np.frombuffer(header, layout).copy()
    often = ("dim", "datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "pixdim", "magic")
    often += ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "xyzt_units")
    for _ in range(numbers.choice((0, 0, 1, 1, 2, 6))):
        name = numbers.choice(often if numbers.random() < 0.8 else layout.names)
        column = fields[name]
        value = np.array(_hostile_value(numbers, column.dtype))
        with np.errstate(over="ignore"):  # infinite in float32
            index = 0 if column.ndim == 1 else (0, numbers.randrange(column.shape[1]))
            column[index] = value.astype(column.dtype)
    if numbers.random() < 0.3:  # a voxel type whose size is right
        code = numbers.choice(list(DTYPES))
        fields["datatype"], fields["bitpix"] = code, 8 * DTYPES[code].itemsize
    if numbers.random() < 0.3:
        fields["dim"] = [
            numbers.randint(1, 7),
            *(numbers.choice((1, 1, 2, 3, 30)) for _ in range(7)),
        ]
    return bytes(fields.tobytes())


def _damage(numbers: random.Random, raw: bytes) -> bytes:
    """Flip, cut, insert or repeat bytes, mostly near the start."""
    content = bytearray(raw)
    for _ in range(numbers.choice((0, 0, 0, 0, 1, 1, 2, 5))):
        if not content:
            break
        at = min(int(numbers.expovariate(1 / 150)), len(content) - 1)
        kind = numbers.randrange(5)
        if kind == 0:
            content[at] ^= 1 << numbers.randrange(8)
        elif kind == 1:
            content[at : at + 4] = numbers.choice((bytes(4), b"\xff" * 4, numbers.randbytes(4)))
        elif kind == 2:
            del content[numbers.randrange(len(content)) :]
        elif kind == 3:
            content[at:at] = numbers.randbytes(numbers.randrange(1, 40))
        else:
            content += content[at : at + 10_000]
    return bytes(content)


def _packed(numbers: random.Random, raw: bytes) -> bytes:
    """One or several gzip members, whose headers and ends may lie."""
    parts = [raw]
    if numbers.random() < 0.3:
        cut = numbers.randrange(len(raw) + 1)
        parts = [raw[:cut], raw[cut:]]
    return b"".join(_member(numbers, part) for part in parts)


def _member(numbers: random.Random, raw: bytes) -> bytes:
    flags = numbers.choice((0, 0, 0, 0, 0, 2, 4, 8, 16, 28, 0xFF))
    head = b"\x1f\x8b" + bytes([numbers.choice((*[8] * 20, 0, 9)), flags]) + bytes(6)
    if flags & 4:
        extra = numbers.randbytes(numbers.choice((0, 3, 500)))
        head += struct.pack("<H", numbers.choice((len(extra), 65535))) + extra
    for flag in (8, 16):
        if flags & flag:
            name = b"n" * numbers.choice((0, 5, 300, 600_000))
            head += name + (b"\0" if numbers.random() < 0.9 else b"")
    if flags & 2:
        head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    packer = zlib.compressobj(numbers.choice((0, 1, 9)), zlib.DEFLATED, -15)
    body = packer.compress(raw) + packer.flush()
    size = numbers.choice((len(raw), len(raw), len(raw), 0, 2**32 - 1))
    return head + body + struct.pack("<II", zlib.crc32(raw), size)


def one(numbers: random.Random, folder: Path) -> str:
    """One file, or pair of files, that is a volume or is refused."""
    version, order = numbers.choice((1, 2)), numbers.choice("<>")
    header, voxels = _whole(version, order)
    header = _change_fields(numbers, header, version, order)
    extension = bytes(4)
    if numbers.random() < 0.2:  # an extension, perhaps with a wrong size
        size = numbers.choice((16, 32, 0, -1, 2**31 - 1))
        extension = b"\1\0\0\0" + struct.pack(f"{order}ii", size, 6) + numbers.randbytes(24)
    if numbers.random() < 0.3:
        voxels = bytes(numbers.choice((0, 1, 119, 4096, 1 << 20)))
    ending = numbers.choice((".nii", ".nii.gz", ".nii.gz", ".hdr", ".img", ".img.gz", ".nii.GZ"))
    path = folder / f"a{ending}"
    files = {path: header + extension + voxels}
    if ending.startswith((".hdr", ".img")):
        if numbers.random() < 0.8:
            fields = bytearray(header)
            at = 344 if version == 1 else 4
            fields[at : at + 4] = b"ni1\0" if version == 1 else b"ni2\0"
            header = bytes(fields)
        gz = ".gz" * (numbers.random() < 0.5)
        files = {folder / f"a.hdr{gz}": header + extension, folder / f"a.img{gz}": voxels}
        path = numbers.choice([*files, path])
        if numbers.random() < 0.1:
            files.pop(numbers.choice(list(files)))
    for name, raw in files.items():
        damaged = _damage(numbers, raw)
        if name.name.lower().endswith(".gz") or numbers.random() < 0.05:
            damaged = _packed(numbers, damaged)
            damaged = _damage(numbers, damaged) if numbers.random() < 0.5 else damaged
        name.write_bytes(damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)
        try:
            volume = read_nifti(path, max_bytes=_MAX_BYTES)
        except FileError as error:
            assert str(folder / "a.") in str(error), f"{error} names no file"  # noqa: PT017
            assert "\n" not in str(error), error  # noqa: PT017
            return "refused"
    assert volume.world_from_vox.isfinite().all()
    assert volume.data.dim() == 4
    assert min(volume.data.shape) >= 1
    assert volume.data.nbytes <= 8 * _MAX_BYTES
    assert volume.data.untyped_storage().nbytes() == volume.data.nbytes
    assert min(volume.spacing_mm) > 0
    assert len(volume.orientation) == 3
    volume.data.numpy().max()
    return "read"


ATTACK = Attack("nifti", one, seconds=1.0, mebibytes=48)
