"""Files that others may have made: what does not end or does not fit is refused in words."""

import json
import os

import pytest

from cmrfast.files import file_digest, open_regular, path_digest, read_json, take


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(path)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(OSError, match="is not a file name"):
        open_regular("a\0b")
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"abc")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"abc"


def test_the_digest_is_that_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    digest = file_digest(tmp_path / "file")
    assert len(digest) == 40
    (tmp_path / "other").write_bytes(b"abd")
    assert file_digest(tmp_path / "other") != digest


def test_the_digest_of_a_folder_is_that_of_its_files(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder / "below").mkdir(parents=True)
        for name in ("1", "2"):
            (tmp_path / folder / name).write_bytes(name.encode())
    (tmp_path / "b" / "below" / "3").write_bytes(b"3")
    digest = path_digest(tmp_path / "a")
    assert digest == path_digest(tmp_path / "b") is not None
    (tmp_path / "b" / "2").write_bytes(b"1")
    assert path_digest(tmp_path / "b") not in (None, digest)
    (tmp_path / "a" / "2").rename(tmp_path / "a" / "3")
    assert path_digest(tmp_path / "a") not in (None, digest)
    assert path_digest(tmp_path / "a" / "1") == file_digest(tmp_path / "a" / "1")
    assert path_digest(tmp_path / "gone") is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "must hold a JSON object; it holds a list"),
        ("null", "it holds null"),
        ("3", "it holds a whole number"),
        ("{", "Expecting"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"a": ' + "[" * 60 + "]" * 60 + "}", "nested too deeply"),
        ('{"a": ' + '{"b":' * 60 + "1" + "}" * 60 + "}", "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ("\xff", "can't decode"),
    ],
)
def test_json_that_is_no_object_is_refused(tmp_path, text, problem):
    (tmp_path / "file.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=problem):
        read_json(tmp_path / "file.json")


def test_json_that_is_too_large_is_refused_unread(tmp_path):
    with (tmp_path / "file.json").open("wb") as file:
        file.truncate(1 << 40)  # a sparse file: reading it would end this process
    with pytest.raises(ValueError, match="larger than 256 MiB"):
        read_json(tmp_path / "file.json")


def test_entries_are_taken_by_type(tmp_path):
    content = {"a": 1, "b": 1.5, "c": "x", "d": None, "e": [1], "f": {}, "g": True}
    (tmp_path / "file.json").write_text(json.dumps(content))
    content = read_json(tmp_path / "file.json")
    assert take(content, "a", int) == take(content, "a", float) == 1
    assert take(content, "d", float, type(None)) is None
    assert take(content, "f", dict) == {}
    for name, kind, problem in (
        ("z", int, "z is missing; it must be a whole number"),
        ("b", int, "b must be a whole number; it is a number"),
        ("g", int, "g must be a whole number; it is true or false"),
        ("c", dict, "c must be an object; it is text"),
    ):
        with pytest.raises(ValueError, match=problem):
            take(content, name, kind)
    with pytest.raises(ValueError, match="c must be a number or null; it is text"):
        take(content, "c", float, type(None))
