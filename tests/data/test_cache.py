"""The cache: made once, never stale, whole or not there, no larger than allowed."""

import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from cmrfast import FileError
from cmrfast.data import tensor_files
from cmrfast.data.cache import Cache
from tests.support.paths import ROOT


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "image.nii"
    path.write_bytes(b"first")
    return path


class Maker:
    def __init__(self, value=1.0, size=10):
        self.calls, self.value, self.size = 0, value, size

    def __call__(self):
        self.calls += 1
        return {"image": torch.full((self.size,), self.value), "mask": torch.ones(3).byte()}


def test_made_once_and_by_content(tmp_path, source):
    cache, make = Cache(tmp_path / "c"), Maker()
    first = cache.tensors([source], {"spacing_mm": 1.0}, make)
    again = Cache(tmp_path / "c").tensors([source], {"spacing_mm": 1.0}, make)
    assert make.calls == 1
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert tensor.dtype == again[name].dtype
    moved = source.rename(source.with_name("other.nii"))
    cache.tensors([moved], {"spacing_mm": 1.0}, make)
    assert make.calls == 1  # the content counts
    cache.tensors([moved], {"spacing_mm": 2.0}, make)
    assert make.calls == 2


def test_tensors_that_share_memory_are_kept(tmp_path, source):
    whole = torch.arange(6.0)
    made = {"whole": whole, "same": whole, "part": whole[:2], "rows": whole.view(2, 3).t()}
    cache = Cache(tmp_path / "c")
    for _ in range(2):
        found = cache.tensors([source], {}, lambda: made)
        assert all(torch.equal(found[name], tensor) for name, tensor in made.items())
    assert len(list((tmp_path / "c").iterdir())) == 1


def test_changed_sources_are_another_entry(tmp_path, source):
    cache = Cache(tmp_path / "c")
    cache.tensors([source], {}, Maker(1.0))
    status = source.stat()
    source.write_bytes(b"later")  # as long as before
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert cache.tensors([source], {}, Maker(2.0))["image"][0] == 2


@pytest.mark.parametrize("damage", [b"", b"\x00" * 40])
def test_damaged_entries_are_made_anew(tmp_path, source, damage):
    cache, make = Cache(tmp_path / "c"), Maker()
    cache.tensors([source], {}, make)
    entry = next((tmp_path / "c").iterdir())
    entry.write_bytes(damage or entry.read_bytes()[:-5])
    assert torch.equal(cache.tensors([source], {}, make)["image"], torch.ones(10))
    assert make.calls == 2


def test_the_entries_used_longest_ago_go(tmp_path):
    folder = tmp_path / "c"
    Cache(folder).tensors([], {"n": 0}, Maker(0, 1000))
    (entry,) = folder.iterdir()
    cache = Cache(folder, limit_bytes=3 * entry.stat().st_size)
    os.utime(entry, (1000, 1000))
    for n in (1, 2):
        before = set(folder.iterdir())
        cache.tensors([], {"n": n}, Maker(n, 1000))
        (entry,) = set(folder.iterdir()) - before
        os.utime(entry, (1000 + n, 1000 + n))
    cache.tensors([], {"n": 0}, Maker(0, 1000))  # used, so no longer the oldest
    cache.tensors([], {"n": 3}, Maker(3, 1000))
    calls = []
    for n in (0, 2, 3, 1):
        make = Maker(n, 1000)
        cache.tensors([], {"n": n}, make)
        calls.append(make.calls)
    assert calls == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")],
)
def test_a_failed_write_leaves_nothing_and_ends_nothing(
    tmp_path, source, monkeypatch, caplog, error
):
    def full(tensors, name):
        Path(name).write_bytes(b"half")
        raise error

    monkeypatch.setattr(tensor_files, "save_file", full)
    cache, make = Cache(tmp_path / "c"), Maker()
    for _ in range(2):
        assert torch.equal(cache.tensors([source], {}, make)["image"], torch.ones(10))
    assert make.calls == 2
    assert list((tmp_path / "c").iterdir()) == []
    (record,) = caplog.records  # once
    assert "does not keep what was prepared: " in record.message
    assert "No space left on device" in record.message
    assert str(tmp_path / "c") in record.message


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_an_entry_has_the_mode_of_the_umask(tmp_path, source, umask, mode):
    """Colleagues who share a cache read what the others made."""
    before = os.umask(umask)
    try:
        Cache(tmp_path / "c").tensors([source], {}, Maker())
        (entry,) = (tmp_path / "c").iterdir()
        assert entry.stat().st_mode & 0o777 == mode
        entry.write_bytes(b"damaged")
        entry.chmod(0o600)
        Cache(tmp_path / "c").tensors([source], {}, Maker())
    finally:
        os.umask(before)
    assert entry.stat().st_mode & 0o777 == mode
    assert list((tmp_path / "c").iterdir()) == [entry]


FULL = """
import sys, torch
from cmrfast.data.cache import Cache
cache = Cache(sys.argv[1])
for n in range(3):
    made = cache.tensors([], {"n": n}, lambda: {"image": torch.full((100_000,), float(n))})
    assert made["image"][0] == n
print("made")
"""


def test_a_disk_that_fills_up(tmp_path):
    def small_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "c")],
        capture_output=True,
        text=True,
        preexec_fn=small_disk,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.stdout == "made\n", done.stderr
    assert done.stderr.count("does not keep what was prepared") == 1
    assert not list((tmp_path / "c").iterdir())


def test_an_entry_that_cannot_be_read_is_made(tmp_path, source):
    cache, make = Cache(tmp_path / "c"), Maker()
    cache.tensors([source], {}, make)
    (entry,) = (tmp_path / "c").iterdir()
    entry.unlink()
    entry.mkdir()
    assert torch.equal(cache.tensors([source], {}, make)["image"], torch.ones(10))
    assert [path.name for path in (tmp_path / "c").iterdir()] == [entry.name]


def test_sources_that_are_no_files(tmp_path):
    cache = Cache(tmp_path / "c")
    os.mkfifo(tmp_path / "pipe")
    for source, message in {
        tmp_path / "pipe": "is not a regular file",
        Path("/dev/zero"): "is not a regular file",
        tmp_path: "Is a directory",
        tmp_path / "missing": "No such file",
        Path("a\0b"): "null",
        Path("a" * 300): "File name too long",
    }.items():
        with pytest.raises(FileError, match=f"Cache: .*{message}"):
            cache.tensors([source], {}, Maker())


def test_a_folder_that_cannot_be_made(tmp_path, source):
    with pytest.raises(FileError, match=r"Cache: .*: (Not a directory|File exists)"):
        Cache(source / "c")


def fill(folder, count, size=1000):
    """A cache that takes two entries of this size, and the entries made in it, in order."""
    entries = []
    for n in range(count):
        before = set(folder.iterdir()) if folder.exists() else set()
        Cache(folder).tensors([], {"n": n}, Maker(n, size))
        entries += set(folder.iterdir()) - before
    return Cache(folder, limit_bytes=2 * entries[0].stat().st_size), entries


@pytest.mark.parametrize("clock", [0.0, 4e9], ids=["set back", "set forward"])
def test_a_clock_that_was_wrong(tmp_path, monkeypatch, clock):
    """Entries whose times are nonsense go before those that were just used, and do not stay."""
    cache, (wrong, fresh) = fill(tmp_path / "c", 2)
    os.utime(wrong, (clock, clock))
    making = tmp_path / "c" / "x.making"
    making.write_bytes(b"half")
    monkeypatch.setattr("time.time", lambda: clock)  # of this machine, not of the disk
    cache.tensors([], {"n": 7}, Maker(7, 1000))
    assert not wrong.exists()
    assert fresh.exists()
    assert making.exists()  # somebody is writing it


def test_the_order_of_entries_from_before_the_clock_was_set_back(tmp_path):
    cache, entries = fill(tmp_path / "c", 4)
    for entry in entries[:3]:
        os.utime(entry, (5e9, 5e9))
    cache.tensors([], {"n": 7}, Maker(7, 1000))
    assert entries[3].exists()
    assert len(list((tmp_path / "c").iterdir())) == 2


SHARED = """
import random, sys, torch
from cmrfast.data.cache import Cache
folder, seed, entry = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
cache, numbers = Cache(folder, limit_bytes=4 * entry), random.Random(seed)
for _ in range(400):
    n = numbers.randrange(12)
    made = cache.tensors([], {"n": n}, lambda: {"image": torch.full((1000,), float(n))})
    assert made["image"].eq(n).all() and len(made["image"]) == 1000
"""


@pytest.mark.slow
def test_two_processes_trim_one_folder(tmp_path):
    folder = tmp_path / "c"
    Cache(folder).tensors([], {"n": -1}, lambda: {"image": torch.zeros(1000)})
    (entry,) = folder.iterdir()
    size = entry.stat().st_size
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SHARED, str(folder), str(seed), str(size)],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        )
        for seed in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
    assert {path.suffix for path in folder.iterdir()} == {".safetensors"}
    # Each process leaves the limit and may add what it has just made.
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6 * size


def test_abandoned_files_are_cleared(tmp_path, source):
    cache = Cache(tmp_path / "c")
    old, fresh = tmp_path / "c" / "old.making", tmp_path / "c" / "fresh.making"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    cache.tensors([source], {}, Maker())
    assert not old.exists()
    assert fresh.exists()


def test_many_writers_agree(tmp_path, source):
    def one(n):
        return Cache(tmp_path / "c").tensors([source], {"shared": True}, Maker())["image"]

    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(image, torch.ones(10)) for image in pool.map(one, range(32)))
    assert len(list((tmp_path / "c").iterdir())) == 1


def test_messages(tmp_path, source):
    with pytest.raises(ValueError, match="limit_bytes must be >= 1"):
        Cache(tmp_path, limit_bytes=0)
    with pytest.raises(TypeError, match="options must be JSON"):
        Cache(tmp_path).tensors([source], {"a": torch.ones(1)}, Maker())
