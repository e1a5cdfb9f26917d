"""Patients dealt out to training, validation and test."""

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrfast import FileError
from cmrfast.data import Split, split_by_patient


@given(st.integers(3, 200), st.tuples(*[st.integers(1, 100)] * 3), st.integers(0, 5))
def test_a_split_deals_out_everyone_once_in_proportion(count, parts, seed):
    names = [f"p{n}" for n in range(count)]
    split = split_by_patient(names, parts, seed=seed)
    dealt = [split.train, split.validate, split.test]
    assert sorted(name for part in dealt for name in part) == sorted(names)
    for part, share in zip(dealt, parts, strict=True):
        assert len(part) >= 1
        assert abs(len(part) - count * share / sum(parts)) < 3
    assert split == split_by_patient(reversed(names), parts, seed=seed)


def test_a_papers_counts_are_kept_and_seeds_differ():
    names = [f"patient{n}" for n in range(1, 46)]
    split = split_by_patient(names, (35, 5, 5))
    assert [len(split.train), len(split.validate), len(split.test)] == [35, 5, 5]
    assert split != split_by_patient(names, (35, 5, 5), seed=1)
    # A seed must mean the same split in every release.
    assert split.test == ("patient13", "patient21", "patient30", "patient38", "patient44")


def test_a_split_is_kept_in_a_file(tmp_path):
    split = split_by_patient(["a", "b", "c", "d"])
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must map train"),
        ("[]", "must map train, validate and test to lists of names"),
        ('{"train": ["a"], "validate": ["b"], "test": "c"}', "must map train"),
        ('{"train": ["a"], "validate": ["b"], "test": [1]}', "must map train"),
        ('{"train": ["a"], "validate": ["b"], "test": ["a"]}', "to one part; twice: a"),
        ("null", "must map train"),
        ('"text"', "must map train"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"a":' * 100_000, "is nested too deeply"),
        ('{"train": 5, "validate": null, "test": {}}', "must map train"),
        ('{"train": [["a"]], "validate": [], "test": []}', "must map train"),
        ("", "must map train"),
        ("\ufeff{}", "must map train"),
    ],
)
def test_a_damaged_split(tmp_path, content, message):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(FileError, match=message):
        Split.load(tmp_path / "split.json")


def test_a_split_that_is_not_there(tmp_path):
    with pytest.raises(FileError, match=r"load: .*split\.json: No such file"):
        Split.load(tmp_path / "split.json")
    with pytest.raises(FileError, match=r"save: .*split\.json: No such file"):
        Split(("a",), ("b",), ("c",)).save(tmp_path / "none/split.json")


def test_a_split_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/stdin"):
        with pytest.raises(FileError, match="is not a regular file"):
            Split.load(path)
    for path in (tmp_path, "a\0b", "a" * 300):
        with pytest.raises(FileError, match="load: "):
            Split.load(path)
    (tmp_path / "latin.json").write_bytes(b'{"train": ["\xff"]}')
    with pytest.raises(FileError, match="must map train"):
        Split.load(tmp_path / "latin.json")


def test_a_long_split_takes_no_long(tmp_path):
    names = [f"p{n}" for n in range(200_000)]
    Split(tuple(names), ("a",), ("b",)).save(tmp_path / "split.json")
    begin = time.perf_counter()
    assert len(Split.load(tmp_path / "split.json").train) == 200_000
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize("parts", [(1, 1), (1, 1, 0), (1, 1, -1)])
def test_wrong_parts(parts):
    with pytest.raises(ValueError, match="split_by_patient: parts must be three positive numbers"):
        split_by_patient(["a", "b", "c"], parts)
    with pytest.raises(ValueError, match="split_by_patient: three patients are needed; got 2"):
        split_by_patient(["a", "b", "b"])
