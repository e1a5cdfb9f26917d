"""Every kind of file that once failed: each function makes one in a folder and returns its reading.

``python -m tests.attack.corpus FOLDER`` writes them all, for other programs to try.
"""

import gzip
import io
import os
import pickle
import random
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydicom.dataelem import DataElement
from pydicom.uid import ExplicitVRLittleEndian

from cmrfast.data import Split, Volume, read_dicom_folder, read_nifti, write_nifti
from cmrfast.data.cache import Cache
from cmrfast.data.datasets.layout import Draft, read_pairs
from tests.attack import dicom, nifti, weights

Reading = Callable[[], object]
Maker = Callable[[Path], Reading]

#: Name → what makes the file; reading it must raise ``FileError``.
REFUSED: dict[str, Maker] = {}
#: The same of files that must be read, quickly and within little memory.
READ: dict[str, Maker] = {}


def _add(where: dict[str, Maker]) -> Callable[[Maker], Maker]:
    def register(make: Maker) -> Maker:
        where[make.__name__] = make
        return make

    return register


def _nifti_fields(**values: Any) -> tuple[bytes, bytes]:
    header, voxels = nifti._whole(1, "<")
    fields = np.frombuffer(header, nifti.nifti1).copy()
    for name, value in values.items():
        fields[name] = value
    return fields.tobytes() + bytes(4), voxels


@_add(REFUSED)
def nifti_voxels_behind_gigabytes(folder: Path) -> Reading:
    """10 MB that inflate to 10 GB before the first voxel."""
    header, _ = _nifti_fields(vox_offset=1e10)
    path = folder / "a.nii.gz"
    with path.open("wb") as file:
        file.write(gzip.compress(header + bytes(600)))
        file.truncate(10 << 20)
    return lambda: read_nifti(path)


@_add(REFUSED)
def nifti_singular_sform(folder: Path) -> Reading:
    """A matrix of which LAPACK divides by zero."""
    rows = {"srow_x": [1, 1, 0, 0], "srow_y": [1, 1, 0, 0], "srow_z": [0, 0, 1, 0]}
    path = folder / "a.nii"
    path.write_bytes(b"".join(_nifti_fields(qform_code=0, sform_code=1, **rows)))
    return lambda: read_nifti(path)


@_add(REFUSED)
def nifti_sibling_with_a_long_name(folder: Path) -> Reading:
    """The name of an .img file whose .hdr file could not exist."""
    return lambda: read_nifti(folder / ("a" * 300 + ".img"))


@_add(REFUSED)
def nifti_pipe(folder: Path) -> Reading:
    """A named pipe that nobody writes to."""
    os.mkfifo(folder / "a.nii")
    return lambda: read_nifti(folder / "a.nii")


@_add(REFUSED)
def nifti_long_gzip_name(folder: Path) -> Reading:
    """A gzip header with a file name of 600 kB, and nothing behind."""
    path = folder / "a.nii.gz"
    path.write_bytes(b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 600_000 + b"\0")
    return lambda: read_nifti(path)


@_add(READ)
def nifti_name_of_many_bytes(folder: Path) -> Reading:
    """A legal name of 254 bytes in 129 characters."""
    path = folder / ("é" * 125 + ".nii")
    return lambda: write_nifti(path, Volume(torch.zeros(1, 2, 2, 2), torch.eye(4)))


@_add(READ)
def nifti_scaled(folder: Path) -> Reading:
    """A result of 16 MiB from 4 MiB; float64 copies of it would take 96 MiB."""
    fields = {"dim": [3, 256, 128, 128, 1, 1, 1, 1], "datatype": 2, "bitpix": 8, "scl_slope": 0.5}
    fields["scl_inter"] = 0
    path = folder / "a.nii"
    path.write_bytes(_nifti_fields(**fields)[0] + bytes(1 << 22))
    return lambda: read_nifti(path)


def _split(text: str) -> Maker:
    def make(folder: Path) -> Reading:
        (folder / "split.json").write_text(text, "utf-8")
        return lambda: Split.load(folder / "split.json")

    return make


REFUSED |= {
    "split_nested": _split("[" * 500_000),
    "split_list": _split("[]"),
    "split_null": _split("null"),
    "split_of_lists": _split('{"train": [[]], "validate": [{}], "test": [null]}'),
}


@_add(READ)
def split_long(folder: Path) -> Reading:
    """As many names as took hours when each was counted."""
    names = ",".join(f'"p{n}"' for n in range(100_000))
    return _split(f'{{"train": [{names}], "validate": ["a"], "test": ["b"]}}')(folder)


@_add(REFUSED)
def split_endless(folder: Path) -> Reading:
    """A device that never ends."""
    (folder / "split.json").symlink_to("/dev/zero")
    return lambda: Split.load(folder / "split.json")


@_add(REFUSED)
def cache_source_pipe(folder: Path) -> Reading:
    """A source that nobody writes to."""
    os.mkfifo(folder / "a.nii")
    return lambda: Cache(folder / "c").tensors([folder / "a.nii"], {}, dict)


@_add(READ)
def text_pipe(folder: Path) -> Reading:
    """A data set's text file that nobody writes to: a fault of the case."""
    os.mkfifo(folder / "Info.cfg")
    return lambda: read_pairs(folder / "Info.cfg", ":", Draft("patient001"))


def _imagenet(folder: Path, **changed: bytes | list[bytes]) -> Reading:
    """The archive with the raw bytes of some members changed; ``__`` is a slash."""
    path = folder / "w.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in weights._arrays().items():
            stored = io.BytesIO()
            np.save(stored, array)
            key = name.replace("/", "__")
            pieces = changed.pop(key, stored.getvalue())
            with archive.open(f"{name}.npy", "w") as member:
                for piece in pieces if isinstance(pieces, list) else [pieces]:
                    member.write(piece)
        for name, pieces in changed.items():
            with archive.open(f"{name}.npy", "w") as member:
                for piece in pieces:
                    member.write(piece if isinstance(piece, bytes) else bytes([piece]))
    return lambda: weights._network().load_imagenet(path)


def _array(text: str, *, size: int | None = None) -> bytes:
    raw = text.encode("latin1")
    return b"\x93NUMPY\2\0" + struct.pack("<I", len(raw) if size is None else size) + raw


_ZEROS = [bytes(1 << 20)] * 128


@_add(READ)
def weights_unused_bomb(folder: Path) -> Reading:
    """An array that the network does not ask for inflates to 128 MiB."""
    return _imagenet(folder, more=_ZEROS)


@_add(REFUSED)
def weights_used_bomb(folder: Path) -> Reading:
    """An array that the network asks for inflates to 128 MiB."""
    shape = "{'descr': '<f4', 'fortran_order': False, 'shape': (33554432,), }"
    return _imagenet(folder, embedding__bias=[_array(shape), *_ZEROS])


@_add(REFUSED)
def weights_header_bomb(folder: Path) -> Reading:
    """A header that declares a length of 4 GB."""
    return _imagenet(folder, embedding__bias=[_array("", size=2**32 - 1), *_ZEROS])


for _name, _text in {
    "weights_header_of_tokens": "{'descr': '<f4', 'shape': (3L, }",
    "weights_header_not_text": "\xff\xfe\0",
    "weights_header_nested": "(" * 9000,
    "weights_header_empty": "",
    "weights_objects": "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
}.items():
    REFUSED[_name] = lambda folder, text=_text: _imagenet(folder, embedding__bias=_array(text))


@_add(REFUSED)
def weights_damaged_stream(folder: Path) -> Reading:
    """A member whose deflate stream is broken."""
    read = _imagenet(folder)
    path = folder / "w.npz"
    raw = bytearray(path.read_bytes())
    raw[100:140] = bytes(40)
    path.write_bytes(raw)
    return read


@_add(REFUSED)
def weights_method(folder: Path) -> Reading:
    """A member packed with bz2, whose decompressor has no limit."""
    path = folder / "w.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("embedding/bias.npy", bytes(1 << 20))
    return lambda: weights._network().load_imagenet(path)


def _official(path: Path, content: object) -> Reading:
    torch.save(content, path)
    return lambda: weights._network().load_official(path)


@_add(REFUSED)
def weights_number_as_name(folder: Path) -> Reading:
    """A state with a name that is no text."""
    return _official(folder / "w.pth", {5: torch.zeros(1)})


@_add(REFUSED)
def weights_sparse(folder: Path) -> Reading:
    """A tensor of the right shape that cannot be copied, met after others were."""
    state = weights._state()
    name = list(state)[-1]
    return _official(folder / "w.pth", state | {name: state[name].to_sparse()})


@_add(REFUSED)
def weights_expanded(folder: Path) -> Reading:
    """One value that claims to be a terabyte."""
    state = weights._state()
    return _official(folder / "w.pth", {name: torch.zeros(1).expand(10**12) for name in state})


@_add(REFUSED)
def weights_packed_state(folder: Path) -> Reading:
    """A saved state with deflated members."""
    path = folder / "w.pth"
    path.write_bytes(weights._packed_state(random.Random(1)))
    return lambda: weights._network().load_official(path)


@_add(REFUSED)
def weights_with_code(folder: Path) -> Reading:
    """A pickle that would create a file."""
    path = folder / "w.pth"
    path.write_bytes(pickle.dumps({"a": weights._Code(folder / "ran")}))
    return lambda: weights._network().load_official(path)


@_add(REFUSED)
def weights_pipe(folder: Path) -> Reading:
    """Weights that nobody writes."""
    os.mkfifo(folder / "w.pth")
    return lambda: weights._network().load_official(folder / "w.pth")


def _dicom(**values: str) -> Maker:
    def make(folder: Path) -> Reading:
        for n in range(2):
            file = dicom._slice(8.0 * n, "1.2.3", ExplicitVRLittleEndian)
            for name, value in values.items():
                file[name] = DataElement(name, "DS", value, validation_mode=0)
            file.save_as(folder / f"{n}.dcm", enforce_file_format=True)
        return lambda: read_dicom_folder(folder)

    return make


REFUSED |= {
    "dicom_negative_spacing": _dicom(PixelSpacing="-1.5\\1.25"),
    "dicom_nan_spacing": _dicom(PixelSpacing="NaN\\1.25"),
    "dicom_nan_position": _dicom(ImagePositionPatient="NaN\\0\\0"),
    "dicom_long_directions": _dicom(ImageOrientationPatient="2\\0\\0\\0\\2\\0"),
    "dicom_skewed": _dicom(ImageOrientationPatient="1\\0\\0\\0.7\\0.7\\0"),
    "dicom_nan_slope": _dicom(RescaleSlope="NaN"),
    "dicom_infinite_intercept": _dicom(RescaleIntercept="1e400"),
}


@_add(REFUSED)
def dicom_bomb(folder: Path) -> Reading:
    """A deflated data set with 64 MiB of zeros behind its elements."""
    file = dicom._slice(0.0, "1.2.3", ExplicitVRLittleEndian)
    path = folder / "0.dcm"
    raw = dicom._written(file, path)
    # The first numbers of this seed ask for the flood, and for no cut.
    path.write_bytes(dicom._deflated(random.Random(1), raw))
    return lambda: read_dicom_folder(folder, max_bytes=1 << 20)


@_add(REFUSED)
def dicom_pipe(folder: Path) -> Reading:
    """A folder with a pipe only."""
    os.mkfifo(folder / "0.dcm")
    return lambda: read_dicom_folder(folder)


def main() -> None:
    """Write every file into a folder of its own."""
    for name, make in {**REFUSED, **READ}.items():
        folder = Path(sys.argv[1]) / name
        folder.mkdir(parents=True)
        make(folder)


if __name__ == "__main__":
    main()
