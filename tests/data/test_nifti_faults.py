"""NIfTI files that lie, break off or cannot be reached: a FileError names them."""

import errno
import gzip
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.nifti1 import header_dtype as nifti1

from cmrfast import FileError
from cmrfast.data import Volume, read_nifti, write_nifti
from cmrfast.data.nifti import write
from tests.support.paths import ROOT


@pytest.fixture
def good(tmp_path):
    """A plain file of 2 x 3 x 4 voxels, as bytes to break."""
    write_nifti(tmp_path / "good.nii", Volume(torch.arange(24.0).view(1, 2, 3, 4), torch.eye(4)))
    return (tmp_path / "good.nii").read_bytes()


def broken(path, raw, **fields):
    """The file with some fields changed."""
    header = np.frombuffer(raw[:348], nifti1).copy()
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.tobytes() + raw[348:])
    return path


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
    ({"sform_code": 0, "quatern_b": np.inf}, "quatern, qoffset must be finite"),
    ({"sform_code": 0, "qoffset_y": np.nan}, "quatern, qoffset must be finite"),
]


@pytest.mark.parametrize(("fields", "message"), CASES, ids=lambda x: str(x)[:40])
def test_a_wrong_field_is_named(tmp_path, good, fields, message):
    path = broken(tmp_path / "a.nii", good, **fields)
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
def test_a_file_that_breaks_off(tmp_path, good, keep, message):
    (tmp_path / "a.nii").write_bytes(good[:keep])
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
def test_a_damaged_gzip_file(tmp_path, good, monkeypatch, damage, message, without_isal):
    if without_isal:
        monkeypatch.setitem(sys.modules, "isal", None)
        monkeypatch.setitem(sys.modules, "isal.igzip_lib", None)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(damage(gzip.compress(good)))
    with pytest.raises(FileError, match=message):
        read_nifti(path)


def test_voxels_that_end_early_inside_a_whole_gzip_file(tmp_path, good):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(good[:-40]))
    with pytest.raises(FileError, match="promises 96 bytes of voxels, but holds 56"):
        read_nifti(tmp_path / "a.nii.gz")


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


def test_the_byte_limit(tmp_path, good):
    (tmp_path / "a.nii").write_bytes(good)
    assert read_nifti(tmp_path / "a.nii", max_bytes=96).shape == (2, 3, 4)
    with pytest.raises(FileError, match="holds 96 bytes of voxels, more than max_bytes=95"):
        read_nifti(tmp_path / "a.nii", max_bytes=95)


def test_a_sparse_file_of_3_gb_is_beyond_the_default_limit(tmp_path, good):
    path = broken(tmp_path / "a.nii", good, dim=[3, 1000, 1000, 750, 1, 1, 1, 1])
    os.truncate(path, 3_000_000_352)
    with pytest.raises(FileError, match="more than max_bytes=2147483648"):
        read_nifti(path)


def test_too_little_memory(tmp_path, good, monkeypatch):
    def refused(*_):
        raise MemoryError

    path = broken(tmp_path / "a.nii", good)
    monkeypatch.setattr("cmrfast.data.nifti.read.np.empty", refused)
    with pytest.raises(FileError, match=r"a\.nii holds 96 bytes of voxels, more than fits in mem"):
        read_nifti(path)


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


def test_what_is_not_there_or_not_a_file(tmp_path):
    with pytest.raises(FileError, match=r"missing\.nii: No such file"):
        read_nifti(tmp_path / "missing.nii")
    with pytest.raises(FileError, match="Is a directory"):
        read_nifti(tmp_path)
    with pytest.raises(FileError, match="is not a regular file"):
        read_nifti("/dev/zero")
    with pytest.raises(FileError, match="is not a file name"):
        read_nifti("a\0.nii")
    with pytest.raises(FileError, match="File name too long"):
        read_nifti("a" * 5000)
    os.mkfifo(tmp_path / "pipe.nii")
    with pytest.raises(FileError, match="is not a regular file"):  # at once, nobody writes to it
        read_nifti(tmp_path / "pipe.nii")


def test_a_pair_without_its_voxels(tmp_path):
    nib.Nifti1Pair(np.zeros((2, 2, 2), "i2"), np.eye(4)).to_filename(tmp_path / "a.img")
    (tmp_path / "a.img").unlink()
    with pytest.raises(FileError, match=r"a\.img: No such file"):
        read_nifti(tmp_path / "a.hdr")


def test_links(tmp_path, good):
    (tmp_path / "a.nii").write_bytes(good)
    (tmp_path / "link.nii").symlink_to(tmp_path / "a.nii")
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    (tmp_path / "dangling.nii").symlink_to(tmp_path / "missing")
    assert read_nifti(tmp_path / "link.nii").shape == (2, 3, 4)
    with pytest.raises(FileError, match="Too many levels of symbolic links"):
        read_nifti(tmp_path / "loop.nii")
    with pytest.raises(FileError, match="No such file"):
        read_nifti(tmp_path / "dangling.nii")


def test_writing_replaces_a_link_and_spares_its_target(tmp_path, good):
    (tmp_path / "precious.nii").write_bytes(good)
    (tmp_path / "out.nii").symlink_to(tmp_path / "precious.nii")
    write_nifti(tmp_path / "out.nii", Volume(torch.zeros(1, 1, 1, 1), torch.eye(4)))
    assert (tmp_path / "precious.nii").read_bytes() == good
    assert not (tmp_path / "out.nii").is_symlink()


def test_unreadable(tmp_path, good, monkeypatch):
    (tmp_path / "a.nii").write_bytes(good)

    def refused(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refused)  # permissions would not stop root
    with pytest.raises(FileError, match=r"a\.nii: Permission denied"):
        read_nifti(tmp_path / "a.nii")
    with pytest.raises(FileError, match=r"b\.nii: Permission denied"):
        write_nifti(tmp_path / "b.nii", Volume(torch.zeros(1, 1, 1, 1), torch.eye(4)))


FULL = """
import sys, torch
from cmrfast import FileError
from cmrfast.data import Volume, write_nifti
try:
    write_nifti(sys.argv[1], Volume(torch.rand(1, 64, 64, 64), torch.eye(4)))
except FileError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_no_room_leaves_the_old_file_and_nothing_else(tmp_path, good, name):
    (tmp_path / name).write_bytes(good)

    def small_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / name)],
        capture_output=True,
        text=True,
        preexec_fn=small_disk,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.stdout.startswith(f"write_nifti: {tmp_path / name}: File too large"), done
    assert [p.name for p in tmp_path.iterdir() if p.name != "good.nii"] == [name]
    assert (tmp_path / name).read_bytes() == good


@pytest.mark.parametrize("name", ["nowhere/a.nii", "../escape\0.nii"])
def test_writing_where_nothing_can_be(tmp_path, name):
    with pytest.raises(FileError, match=r"^write_nifti: .*(No such file|is not a file name)"):
        write_nifti(tmp_path / name, Volume(torch.zeros(1, 1, 1, 1), torch.eye(4)))


@pytest.mark.parametrize(("at", "message"), [(-1, "voxels"), (295, "geometry")])
def test_what_does_not_read_back_is_not_kept(tmp_path, monkeypatch, at, message):
    write_file = write._write_file

    def failing_disk(path, *args, **options):
        write_file(path, *args, **options)
        raw = bytearray(path.read_bytes())
        raw[at] ^= 0x41
        path.write_bytes(raw)

    monkeypatch.setattr(write, "_write_file", failing_disk)
    volume = Volume(torch.zeros(1, 1, 1, 1), torch.eye(4))
    with pytest.raises(FileError, match=rf"write_nifti: .*a\.nii: the {message} read back d"):
        write_nifti(tmp_path / "a.nii", volume)
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_to_write(tmp_path):
    volume = Volume(torch.zeros(1, 2, 2, 2), torch.eye(4))
    with pytest.raises(ValueError, match=r"write_nifti: the name must end in .nii or .nii.gz; got"):
        write_nifti(tmp_path / "a.png", volume)
    with pytest.raises(ValueError, match="write_nifti: volume is empty"):
        write_nifti(tmp_path / "a.nii", Volume(torch.zeros(1, 0, 2, 2), torch.eye(4)))


@pytest.mark.parametrize(
    ("data", "matrix", "error", "message"),
    [
        (
            np.zeros((1, 2, 2, 2)),
            torch.eye(4),
            TypeError,
            "data must be a real tensor; got ndarray",
        ),
        (
            torch.zeros(1, 2, 2, 2, dtype=torch.cfloat),
            torch.eye(4),
            TypeError,
            "got torch.complex64",
        ),
        (torch.zeros(2, 2, 2), torch.eye(4), ValueError, r"data must be \(C, I, J, K\); got \(2,"),
        (torch.zeros(1, 2, 2, 2), torch.eye(3), ValueError, r"must be \(4, 4\); got \(3, 3\)"),
        (torch.zeros(1, 2, 2, 2), torch.ones(4, 4), ValueError, "must end in the row 0 0 0 1"),
        (torch.zeros(1, 2, 2, 2), torch.eye(4) * torch.nan, ValueError, "must be finite"),
        (
            torch.zeros(1, 2, 2, 2),
            torch.diag(torch.tensor([1.0, 1, 0, 1])),
            ValueError,
            "1e9 mm; got",
        ),
    ],
)
def test_a_volume_is_checked(data, matrix, error, message):
    with pytest.raises(error, match=message):
        Volume(data, matrix)


def test_volume_properties():
    volume = Volume(torch.zeros(2, 3, 4, 5), torch.diag(torch.tensor([-2.0, -3, 4, 1])))
    assert (volume.shape, volume.channels, volume.orientation) == ((3, 4, 5), 2, "LPS")
    assert volume.spacing_mm == (2, 3, 4)
    assert volume.shares_grid(volume.with_data(torch.zeros(1, 3, 4, 5)))
    moved = volume.world_from_vox.clone()
    moved[0, 3] += 0.01
    assert not volume.shares_grid(Volume(volume.data, moved))
    assert volume.shares_grid(Volume(volume.data, moved), tolerance_mm=0.02)
    with pytest.raises(ValueError, match="with_data: data must lie on the grid"):
        volume.with_data(torch.zeros(1, 3, 4, 6))


def test_what_precedes_the_voxels_counts_for_the_limit(tmp_path, good):
    """Megabytes whose voxels may lie behind gigabytes of zeros."""
    path = tmp_path / "a.nii.gz"
    offset = 2**31 + (17 << 20)
    broken(tmp_path / "a.nii", good, vox_offset=offset)
    head = (tmp_path / "a.nii").read_bytes()[:352] + bytes(600)
    path.write_bytes(gzip.compress(head) + bytes(3 << 20))  # large enough to hold that much
    begin = time.perf_counter()
    with pytest.raises(FileError, match=r"vox_offset \d+ puts the end of the voxels more"):
        read_nifti(path)
    assert time.perf_counter() - begin < 1
    broken(tmp_path / "a.nii", good, vox_offset=1 << 20)
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


@pytest.mark.parametrize("without_isal", [False, True])
def test_a_long_name_in_a_gzip_header(tmp_path, good, monkeypatch, without_isal):
    if without_isal:
        monkeypatch.setitem(sys.modules, "isal", None)
        monkeypatch.setitem(sys.modules, "isal.igzip_lib", None)
    plain = gzip.compress(good, mtime=0)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(plain[:3] + b"\x08" + plain[4:10] + b"n" * 600_000 + b"\0" + plain[10:])
    try:
        assert read_nifti(path).shape == (2, 3, 4)
    except FileError as error:
        assert "damaged gzip stream" in str(error)  # noqa: PT017


@pytest.mark.parametrize("ending", [".img", ".hdr", ".img.gz", ".nii"])
@pytest.mark.parametrize("mark", ["a", "é", "脳", "\udcff"])
def test_names_that_are_too_long(tmp_path, ending, mark):
    for length in (84, 127, 251, 300):
        with pytest.raises(FileError, match=r"read_nifti: .*(No such file|File name too long)"):
            read_nifti(tmp_path / (mark * length + ending))


def test_the_longest_names_are_written(tmp_path):
    for name in ("é" * 125 + ".nii", "x" * 248 + ".nii.gz"):
        write_nifti(tmp_path / name, Volume(torch.zeros(1, 1, 1, 1), torch.eye(4)))
        assert read_nifti(tmp_path / name).shape == (1, 1, 1)


def test_a_pair_whose_other_name_is_too_long(tmp_path):
    nib.Nifti1Pair(np.zeros((2, 2, 2), "i2"), np.eye(4)).to_filename(tmp_path / "a.img")
    name = "a" * 251 + ".hdr"  # its name with .gz would have 258 bytes
    (tmp_path / "a.hdr").rename(tmp_path / name)
    (tmp_path / "a.img").rename(tmp_path / f"{'a' * 251}.img")
    assert read_nifti(tmp_path / name).shape == (2, 2, 2)


OVERWRITE = """
import sys, torch
from cmrfast.data import Volume, write_nifti
print("ready", flush=True)
n = 0
while True:
    n += 1
    data = torch.full((1, 64, 64, 40), n % 2, dtype=torch.int16)
    write_nifti(sys.argv[1], Volume(data, torch.eye(4)))
    print(n, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_process_killed_while_it_writes_leaves_a_whole_image(tmp_path, name):
    """25 kills at random moments: the old image or the new one, and nothing but temporary files."""
    path, numbers = tmp_path / name, random.Random(name)
    write_nifti(path, Volume(torch.zeros(1, 64, 64, 40, dtype=torch.int16), torch.eye(4)))
    interrupted = 0
    for _ in range(25):
        writer = subprocess.Popen(
            [sys.executable, "-c", OVERWRITE, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        )
        for _ in range(1 + numbers.randrange(3)):  # until it writes
            writer.stdout.readline()
        time.sleep(numbers.uniform(0, 0.03))
        writer.kill()
        writer.communicate()
        values = read_nifti(path).data.unique().tolist()
        assert values in ([0], [1])
        left = [p for p in tmp_path.iterdir() if p != path]
        assert all(p.suffix == ".tmp" and p.name.startswith(f".{name}.") for p in left), left
        interrupted += len(left)
        for p in left:
            p.unlink()
    assert interrupted >= 5  # or the test shows nothing
