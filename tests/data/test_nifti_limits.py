"""Bytes and memory of NIfTI files: what is too large is refused before it costs anything."""

import gzip
import math
import os
import time
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from nibabel.nifti1 import header_dtype as nifti1

from cmrfast import FileError
from cmrfast.data import read_nifti
from tests.support.nifti_files import broken


def test_a_bomb_is_refused_at_once_and_costs_nothing(tmp_path):
    """66 bytes that promise 2 GB."""
    header = np.zeros(1, nifti1)
    header["sizeof_hdr"], header["magic"] = 348, b"n+1"
    header["dim"] = [3, 2000, 1000, 1000, 0, 0, 0, 0]
    header["datatype"], header["bitpix"] = 2, 8
    header["pixdim"][0, 1:4] = 1
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(header.tobytes() + bytes(4), mtime=0))
    assert path.stat().st_size < 80
    with pytest.raises(FileError):
        read_nifti(path)  # imports happen once, outside the clock
    tracemalloc.start()
    times = []
    for _ in range(5):  # the shortest: a busy machine delays some
        begin = time.perf_counter()
        with pytest.raises(FileError, match=r"promises 2000000000 bytes of voxels, the \d\d bytes"):
            read_nifti(path)
        times.append(time.perf_counter() - begin)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert min(times) < 0.01
    assert peak < 1e6


def test_the_byte_limit(tmp_path, whole_nifti):
    (tmp_path / "a.nii").write_bytes(whole_nifti)
    assert read_nifti(tmp_path / "a.nii", max_bytes=96).shape == (2, 3, 4)
    with pytest.raises(FileError, match="holds 96 bytes of voxels, more than max_bytes=95"):
        read_nifti(tmp_path / "a.nii", max_bytes=95)


def test_a_sparse_file_of_3_gb_is_beyond_the_default_limit(tmp_path, whole_nifti):
    path = broken(tmp_path / "a.nii", whole_nifti, dim=[3, 1000, 1000, 750, 1, 1, 1, 1])
    os.truncate(path, 3_000_000_352)
    with pytest.raises(FileError, match="more than max_bytes=2147483648"):
        read_nifti(path)


def test_too_little_memory(tmp_path, whole_nifti, monkeypatch):
    def refused(*_):
        raise MemoryError

    path = broken(tmp_path / "a.nii", whole_nifti)
    monkeypatch.setattr("cmrfast.data.nifti.read.np.empty", refused)
    with pytest.raises(FileError, match=r"a\.nii holds 96 bytes of voxels, more than fits in mem"):
        read_nifti(path)


def test_what_precedes_the_voxels_counts_for_the_limit(tmp_path, whole_nifti):
    """Megabytes whose voxels may lie behind gigabytes of zeros."""
    path = tmp_path / "a.nii.gz"
    offset = 2**31 + (17 << 20)
    broken(tmp_path / "a.nii", whole_nifti, vox_offset=offset)
    head = (tmp_path / "a.nii").read_bytes()[:352] + bytes(600)
    path.write_bytes(gzip.compress(head) + bytes(3 << 20))  # large enough to hold that much
    begin = time.perf_counter()
    with pytest.raises(FileError, match=r"vox_offset \d+ puts the end of the voxels more"):
        read_nifti(path)
    assert time.perf_counter() - begin < 1
    broken(tmp_path / "a.nii", whole_nifti, vox_offset=1 << 20)
    raw = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").write_bytes(raw[:352] + bytes((1 << 20) - 352) + raw[352:])
    assert read_nifti(tmp_path / "a.nii", max_bytes=96).data.sum() == 276


@pytest.mark.parametrize(
    ("dtype", "size"), [("u1", 4), ("i2", 4), ("f4", 4), ("i4", 8), (">i2", 4)]
)
def test_scaling_takes_no_more_memory_than_the_result(tmp_path, dtype, size):
    shape = (300, 100, 100)
    data = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    header = nib.Nifti1Image(data, np.eye(4), dtype=data.dtype).header.as_byteswapped(
        data.dtype.byteorder if data.dtype.byteorder == ">" else "<"
    )
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = 0.25, -3, 352
    header["magic"] = b"n+1"
    path = tmp_path / "a.nii"
    path.write_bytes(header.binaryblock + bytes(4) + data.tobytes(order="F"))
    read_nifti(path)  # imports happen once, outside the measurement
    tracemalloc.start()
    volume = read_nifti(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    result = size * data.size
    assert volume.data.nbytes == result
    assert peak < result + (6 << 20)
    expected = data.astype("f8") * 0.25 - 3
    np.testing.assert_array_equal(volume.data[0].numpy(), expected.astype(f"f{size}"))
