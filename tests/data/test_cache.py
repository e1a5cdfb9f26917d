"""The cache: made once, never stale, whole or not there, no larger than allowed."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cmrfast.data import cache as module
from cmrfast.data.cache import Cache


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


def test_a_failed_write_leaves_nothing(tmp_path, source, monkeypatch):
    def full(tensors, name):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        Cache(tmp_path / "c").tensors([source], {}, Maker())
    assert list((tmp_path / "c").iterdir()) == []


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
