"""Atomic writes: whole or not at all, with the permissions of the file that they replace."""

import os

import pytest

from cmrfast.atomic import atomic_write


def mode(path):
    return path.stat().st_mode & 0o777


def test_a_private_file_stays_private(tmp_path):
    path = tmp_path / "patient.nii.gz"
    path.write_text("old")
    path.chmod(0o600)
    with atomic_write(path) as temporary:
        assert mode(temporary) == 0o600  # before anything is in it
        temporary.write_text("new")
    assert (path.read_text(), mode(path)) == ("new", 0o600)


def test_a_new_file_has_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "new") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert mode(tmp_path / "new") == 0o640


def test_a_link_is_replaced_and_lends_no_mode(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o400)
    link.symlink_to(target)
    with atomic_write(link) as temporary:
        temporary.write_text("new")
    assert not link.is_symlink()
    assert (target.read_text(), link.read_text()) == ("old", "new")
    assert mode(link) & 0o200


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail_in_the_middle():
        with atomic_write(path) as temporary:
            temporary.write_text("ne")
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        fail_in_the_middle()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("name", ["é" * 125 + ".json", "x" * 255, "\udcff" * 255, "脳" * 85])
def test_every_name_that_a_disk_takes(tmp_path, name):
    with atomic_write(tmp_path / name) as temporary:
        temporary.write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == [name]
