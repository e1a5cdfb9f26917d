"""NIfTI files that lie, break off or are damaged at random: a FileError names them."""

import gzip
import sys
import warnings

import nibabel as nib
import numpy as np
import pytest
from nibabel.nifti1 import header_dtype as nifti1

from cmrfast import FileError
from cmrfast.data import read_nifti
from tests.support.nifti_files import broken

CASES = [
    ({"sizeof_hdr": 77}, "is not a NIfTI file: it must begin with the header's size"),
    ({"magic": b"ana"}, "magic b'ana\\\\x00' is not NIfTI's"),
    ({"magic": b"ni1"}, "magic says .hdr/.img pair, but the name has another ending"),
    ({"dim": [0, 2, 3, 4, 1, 1, 1, 1]}, r"dim\[0\] must be 1 to 7 axes; it is 0"),
    ({"dim": [8, 2, 3, 4, 1, 1, 1, 1]}, r"dim\[0\] must be 1 to 7 axes; it is 8"),
    ({"dim": [3, 2, -3, 4, 1, 1, 1, 1]}, r"dim must be positive; it is \[2, -3, 4\]"),
    ({"dim": [5, 2, 1, 1, 3, 4, 1, 1]}, "dim may have only one non-spatial axis longer than 1"),
    ({"dim": [7, *[32767] * 3, 1, 1, 1, 1]}, "cannot hold them"),
    ({"datatype": 99}, r"datatype 99 \(unknown\) is none of uint8, int16"),
    ({"datatype": 32}, r"datatype 32 \(complex\)"),
    ({"datatype": 128}, r"datatype 128 \(RGB\)"),
    ({"bitpix": 16}, "bitpix must be 32 for float32; it is 16"),
    ({"vox_offset": 8}, "vox_offset must be a whole number of at least 352; it is 8"),
    ({"vox_offset": 352.5}, "vox_offset must be a whole number"),
    ({"vox_offset": np.nan}, "vox_offset must be a whole number"),
    ({"vox_offset": np.inf}, "vox_offset must be a whole number"),
    ({"vox_offset": 1e9}, "promises 96 bytes of voxels, the 448 bytes of a.nii cannot"),
    ({"scl_slope": np.inf}, "scl_slope, scl_inter must be finite; they are inf, 0"),
    (
        {"scl_slope": 2, "scl_inter": np.nan},
        "must be finite; they are 2.0, nan",
    ),
    ({"srow_x": [0, 0, 0, 0]}, "srow must"),
    ({"srow_x": [1, 1, 0, 0], "srow_y": [1, 1, 0, 0]}, "srow must be invertible"),
    ({"srow_z": [0, 0, 1, 1e10]}, "srow must have its origin within 1e9 mm"),
    ({"srow_z": [0, 0, np.nan, 0]}, "srow must be finite"),
    ({"sform_code": 0, "pixdim": [1, 0, 1, 1, 1, 1, 1, 1]}, "pixdim must be positive"),
    ({"sform_code": 0, "pixdim": [1, 1, 1, 0, 1, 1, 1, 1]}, "pixdim must be positive"),
    (
        {"dim": [2, 4, 3, 1, 1, 1, 1, 1], "sform_code": 0, "pixdim": [1, 1, 0, 0, 1, 1, 1, 1]},
        "pixdim must be positive",
    ),
    ({"sform_code": 0, "quatern_b": np.inf}, "quatern, qoffset must be finite"),
    ({"sform_code": 0, "qoffset_y": np.nan}, "quatern, qoffset must be finite"),
]


@pytest.mark.parametrize(("fields", "message"), CASES, ids=lambda x: str(x)[:40])
def test_a_wrong_field_is_named(tmp_path, whole_nifti, fields, message):
    path = broken(tmp_path / "a.nii", whole_nifti, **fields)
    with pytest.raises(FileError, match=rf"^read_nifti: .*/a\.nii.*{message}") as caught:
        read_nifti(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (0, "it begins with nothing"),
        (3, "ends inside its header, after 3 of 348"),
        (200, "ends inside its header, after 200 of 348 bytes"),
        (-1, "promises 96 bytes of voxels, the 447 bytes of a.nii cannot hold them"),
    ],
)
def test_a_file_that_breaks_off(tmp_path, whole_nifti, keep, message):
    (tmp_path / "a.nii").write_bytes(whole_nifti[:keep])
    with pytest.raises(FileError, match=message):
        read_nifti(tmp_path / "a.nii")


@pytest.mark.parametrize("without_isal", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-12], r"96 bytes of voxels, but holds \d+|damaged gzip stream|end-of-"),
        (lambda raw: raw[:-8] + bytes(4) + raw[-4:], "CRC|damaged gzip stream"),
        (lambda raw: raw[:20] + bytes(20) + raw[40:], "damaged gzip stream|CRC|header"),
    ],
    ids=["short", "checksum", "content"],
)
def test_a_damaged_gzip_file(tmp_path, whole_nifti, monkeypatch, damage, message, without_isal):
    if without_isal:
        monkeypatch.setitem(sys.modules, "isal", None)
        monkeypatch.setitem(sys.modules, "isal.igzip_lib", None)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(damage(gzip.compress(whole_nifti)))
    with pytest.raises(FileError, match=message):
        read_nifti(path)


def test_voxels_that_end_early_inside_a_whole_gzip_file(tmp_path, whole_nifti):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(whole_nifti[:-40]))
    with pytest.raises(FileError, match="promises 96 bytes of voxels, but holds 56"):
        read_nifti(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("without_isal", [False, True])
def test_a_long_name_in_a_gzip_header(tmp_path, whole_nifti, monkeypatch, without_isal):
    if without_isal:
        monkeypatch.setitem(sys.modules, "isal", None)
        monkeypatch.setitem(sys.modules, "isal.igzip_lib", None)
    plain = gzip.compress(whole_nifti, mtime=0)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(plain[:3] + b"\x08" + plain[4:10] + b"n" * 600_000 + b"\0" + plain[10:])
    try:
        assert read_nifti(path).shape == (2, 3, 4)
    except FileError as error:
        assert "damaged gzip stream" in str(error)  # noqa: PT017


def mutated(raw, rng):
    """A file with random damage: header fields, bytes anywhere, cuts, copies, other endings."""
    raw = bytearray(raw)
    for _ in range(rng.integers(1, 4)):
        kind = rng.integers(7)
        at = int(rng.integers(len(raw)))
        if kind == 0:
            raw[at] = rng.integers(256)
        elif kind == 1:
            raw[at] ^= 1 << rng.integers(8)
        elif kind == 2:
            del raw[at:]
        elif kind == 3:
            raw[at:at] = rng.bytes(rng.integers(1, 30))
        elif kind == 4:
            extremes = [0, 0xFF, 0x7F, 0x80]
            raw[at : at + 4] = bytes([extremes[rng.integers(4)]] * 4)
        elif kind == 5 and len(raw) >= 348:
            name = nifti1.names[rng.integers(len(nifti1.names))]
            layout, offset = nifti1.fields[name][:2]
            raw[offset : offset + layout.itemsize] = rng.bytes(layout.itemsize)
        elif kind == 6 and len(raw) >= 348:
            numbers = np.array([0, 1, -1, np.nan, np.inf, 1e-40, 1e38, 32767], "<f4")
            offset = 76 + 4 * int(rng.integers(65))
            raw[offset : offset + 4] = numbers[rng.integers(8)].tobytes()
        if not raw:
            break
    return bytes(raw)


def seeds(folder):
    """Whole files of every kind to break."""
    data = np.arange(60, dtype="i2").reshape(5, 4, 3)
    for kind, order in ((nib.Nifti1Image, "<"), (nib.Nifti1Image, ">"), (nib.Nifti2Image, "<")):
        header = kind(data, np.eye(4)).header.as_byteswapped(order)
        path = folder / "seed.nii"
        kind(data, np.diag([1.5, 1.5, 8, 1]), header).to_filename(path)
        raw = path.read_bytes()
        yield from (raw, gzip.compress(raw))


def survive(folder, count, seed):
    """Each of ``count`` broken files reads as a valid volume or raises FileError."""
    rng = np.random.default_rng(seed)
    whole = list(seeds(folder))
    path, outcomes = folder / "a.nii", {True: 0, False: 0}
    for i in range(count):
        raw = mutated(whole[i % len(whole)], rng)
        if i % 4 == 3 and raw[:2] != b"\x1f\x8b":  # damage under an intact checksum
            raw = gzip.compress(raw, 1)
        path.write_bytes(raw)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                warnings.simplefilter("ignore", UserWarning)
                volume = read_nifti(path)
        except FileError as error:
            assert str(path) in str(error)  # noqa: PT017
            outcomes[False] += 1
            continue
        outcomes[True] += 1
        assert volume.data.untyped_storage().nbytes() == volume.data.nbytes
        assert volume.data.nbytes <= 1032 * len(raw) * 8
        assert min(volume.spacing_mm) > 0
        assert len(volume.orientation) == 3
        volume.data.double().sum()
    assert min(outcomes.values()) > count // 20  # both happen, or the test shows nothing


def test_two_thousand_mutated_files(tmp_path):
    survive(tmp_path, 2000, seed=0)


@pytest.mark.slow
def test_ten_thousand_mutated_files(tmp_path):
    survive(tmp_path, 10_000, seed=1)
