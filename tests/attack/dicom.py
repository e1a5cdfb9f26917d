"""Hostile DICOM folders: series with lies, gaps and damage, deflated bombs, what is no DICOM."""

import os
import random
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

from cmrfast import FileError
from cmrfast.data import read_dicom_folder
from tests.attack.frame import Attack

_MAX_BYTES = 4 << 20
_BURST = 64  # MiB that a bomb would inflate to
_SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
_ENCAPSULATED = (RLELossless, JPEGBaseline8Bit, JPEG2000, "1.2.3.4", "")

_NUMBERS = (0, 1, 2, -1, 3, 4, 255, 32767, 65535)
_REALS = (0, 1, -1, 1e-300, 1e300, -1e9, "NaN", "inf", "-inf", "", "1e400", "x", "9" * 16)
#: Keyword → values that a scanner would not write.
_HOSTILE: dict[str, tuple[Any, ...]] = {
    "Rows": _NUMBERS,
    "Columns": _NUMBERS,
    "BitsAllocated": (0, 1, 7, 8, 12, 16, 32, 64, 65535),
    "BitsStored": _NUMBERS,
    "HighBit": _NUMBERS,
    "PixelRepresentation": _NUMBERS,
    "SamplesPerPixel": (0, 1, 2, 3, 65535),
    "NumberOfFrames": (0, 1, 2, -1, 2**31 - 1, "x", "9" * 12),
    "PhotometricInterpretation": (
        "",
        "RGB",
        "YBR_FULL_422",
        "PALETTE COLOR",
        "MONOCHROME1",
        "\x1b",
    ),
    "SliceThickness": _REALS,
    "SpacingBetweenSlices": _REALS,
    "RescaleSlope": _REALS,
    "RescaleIntercept": _REALS,
    "Modality": ("", "CT", "SR", "MR\\MR", "\0"),
    "ImageComments": ("T1 map", "x" * 10_000, "\x1b]0;owned\x07"),
    "SeriesDescription": ("", "\x1b[2J", "x" * 300),
    "SeriesNumber": ("", "-1", "x", "9" * 12),
    "SeriesInstanceUID": ("", "1.2.3", "1" * 64, "x"),
    "ImageType": ("", "T1 MAP", "ORIGINAL\\T1_MAP", "\\" * 40),
    "PixelData": (b"", b"1", bytes(23), bytes(25), bytes(100_000)),
    "SpecificCharacterSet": ("", "ISO 2022 IR 87", "ISO_IR 999", "x\\y\\z"),
}
_VECTORS = {"PixelSpacing": 2, "ImagePositionPatient": 3, "ImageOrientationPatient": 6}


def _slice(at: float, series: str, syntax: Any) -> FileDataset:
    """A good slice, ``at`` mm along the normal."""
    file = FileDataset(
        "",
        {},
        preamble=bytes(128),
        is_implicit_VR=syntax.is_implicit_VR,
        is_little_endian=syntax.is_little_endian,
    )
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = syntax
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = MRImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = generate_uid()
    file.Modality, file.SeriesInstanceUID, file.SeriesNumber = "MR", series, 7
    file.Rows, file.Columns = 3, 4
    file.PixelSpacing, file.ImageOrientationPatient = [1.5, 1.25], [1, 0, 0, 0, 1, 0]
    file.ImagePositionPatient = [-80, 20, 5 + at]
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 12, 11
    file.PixelRepresentation, file.SamplesPerPixel = 0, 1
    file.PhotometricInterpretation = "MONOCHROME2"
    kind = "<u2" if syntax.is_little_endian else ">u2"
    file.PixelData = (np.arange(12) + 100 * int(abs(at) % 30)).astype(kind).tobytes()
    file["PixelData"].VR = "OW"
    return file


def _lie(numbers: random.Random, file: FileDataset) -> None:
    """Change, remove or mistype an element, or the syntax that the file claims."""
    kind = numbers.randrange(10)
    if kind < 5:
        name = numbers.choice(list(_HOSTILE))
        setattr(file, name, numbers.choice(_HOSTILE[name]))
    elif kind < 7:
        name = numbers.choice(list(_VECTORS))
        count = numbers.choice((_VECTORS[name],) * 4 + (0, 1, 7))
        values = [str(numbers.choice((*_REALS, 0.5))) for _ in range(count)]
        if numbers.random() < 0.6 and getattr(file, name, None):  # one of them
            values = [str(value) for value in getattr(file, name)]
            values[numbers.randrange(len(values))] = str(numbers.choice(_REALS))
        file[name] = DataElement(name, "DS", "\\".join(values), validation_mode=0)
    elif kind == 7:
        name = numbers.choice([*_HOSTILE, *_VECTORS])
        if name in file:
            delattr(file, name)
    elif kind == 8:
        nested = Dataset()
        for _ in range(numbers.choice((1, 20))):
            outer = Dataset()
            outer.ReferencedImageSequence = [nested]
            nested = outer
        file.ReferencedImageSequence = [nested]
    else:
        file.file_meta.TransferSyntaxUID = numbers.choice(_ENCAPSULATED)


def _written(file: FileDataset, path: Path) -> bytes:
    """The bytes of a file; a claimed syntax that pydicom would not write is put in at the end."""
    claimed = file.file_meta.TransferSyntaxUID
    if claimed not in _SYNTAXES:
        implicit, little = file.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        file.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    written = str(file.file_meta.TransferSyntaxUID)
    file.save_as(path, enforce_file_format=True)
    raw = path.read_bytes()
    if claimed not in _SYNTAXES:
        text = str(claimed).encode().ljust(len(written), b"\0")
        raw = raw.replace(written.encode(), text[: len(written)], 1)
    return raw


def _deflated(numbers: random.Random, raw: bytes) -> bytes:
    """The file with its data set deflated, cut short or followed by a flood of zeros."""
    start = raw.find(b"\x08\x00\x16\x00")  # the first element after the meta group
    plain, packed = ExplicitVRLittleEndian.encode() + b"\0", DeflatedExplicitVRLittleEndian.encode()
    meta = raw[:start].replace(
        struct.pack("<H", len(plain)) + plain, struct.pack("<H", len(packed)) + packed, 1
    )
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    body = packer.compress(raw[start:])
    if numbers.random() < 0.5:
        for _ in range(_BURST):
            body += packer.compress(bytes(1 << 20))
    body += packer.flush()
    return meta + (body[: numbers.randrange(len(body))] if numbers.random() < 0.2 else body)


def _damage(numbers: random.Random, raw: bytes) -> bytes:
    content = bytearray(raw)
    for _ in range(numbers.choice((1, 2, 6))):
        if len(content) < 200:
            break
        at = numbers.randrange(128, len(content))
        kind = numbers.randrange(4)
        if kind == 0:
            content[at] = numbers.randrange(256)
        elif kind == 1:
            content[at : at + 4] = numbers.choice((bytes(4), b"\xff" * 4, numbers.randbytes(4)))
        elif kind == 2:
            del content[at:]
        else:
            content[at : at + 2] = numbers.choice((b"SQ", b"UN", b"OB", b"FD", b"??", b"DS"))
    return bytes(content)


def one(numbers: random.Random, folder: Path) -> str:
    """One folder, which is a valid volume or is refused."""
    series = generate_uid(entropy_srcs=["series"])
    count = numbers.choice((1, 2, 3, 4))
    gap = numbers.choice((8, 8, 8, 0, 1e-4, 1e8, -5))
    for n in range(count):
        path = folder / f"{n}.dcm"
        at = n * gap + (numbers.choice((0.0, 0.0, 3.0, gap)) if numbers.random() < 0.1 else 0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = _slice(at, series, numbers.choice(_SYNTAXES))
            plain = _written(file, path)
            try:
                for _ in range(numbers.choice((0, 0, 0, 1, 1, 3))):
                    _lie(numbers, file)
                raw = _written(file, path)
            except Exception:  # pydicom refuses to write some lies
                raw = plain
        if numbers.random() < 0.08:
            file = _slice(at, series, ExplicitVRLittleEndian)
            raw = _deflated(numbers, _written(file, path))
        path.write_bytes(_damage(numbers, raw) if numbers.random() < 0.15 else raw)
    extra = numbers.randrange(12)
    if extra == 0:
        os.mkfifo(folder / "pipe.dcm")
    elif extra == 1:
        (folder / "zero.dcm").symlink_to("/dev/zero")
    elif extra == 2:
        (folder / "notes").write_bytes(numbers.randbytes(numbers.choice((0, 100, 5000))))
    elif extra == 3:
        (folder / "loop.dcm").symlink_to("loop.dcm")
    elif extra == 4:
        (folder / "x.dcm").write_bytes(bytes(128) + b"DICM" + numbers.randbytes(400))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            volume = read_dicom_folder(folder, max_bytes=_MAX_BYTES)
        except FileError as error:
            assert str(folder) in str(error), f"{error} names no file"  # noqa: PT017
            return "refused"
    assert volume.world_from_vox.isfinite().all()
    assert volume.channels == 1
    assert min(volume.shape) >= 1
    assert min(volume.spacing_mm) > 0
    assert volume.data.nbytes <= 2 * _MAX_BYTES
    volume.data.numpy().max()
    return "read"


ATTACK = Attack("dicom", one, seconds=5.0, mebibytes=32)
