"""Paths of NIfTI files: missing, no file, a link, unreadable, with a name that is too long."""

import errno
import os

import nibabel as nib
import numpy as np
import pytest
import torch

from cmrfast import FileError
from cmrfast.data import Volume, read_nifti, write_nifti


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
    with pytest.raises(FileError, match="is not a regular file"):  # at once: nobody writes to it
        read_nifti(tmp_path / "pipe.nii")


def test_a_pair_without_its_voxels(tmp_path):
    nib.Nifti1Pair(np.zeros((2, 2, 2), "i2"), np.eye(4)).to_filename(tmp_path / "a.img")
    (tmp_path / "a.img").unlink()
    with pytest.raises(FileError, match=r"a\.img: No such file"):
        read_nifti(tmp_path / "a.hdr")


def test_links(tmp_path, whole_nifti):
    (tmp_path / "a.nii").write_bytes(whole_nifti)
    (tmp_path / "link.nii").symlink_to(tmp_path / "a.nii")
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    (tmp_path / "dangling.nii").symlink_to(tmp_path / "missing")
    assert read_nifti(tmp_path / "link.nii").shape == (2, 3, 4)
    with pytest.raises(FileError, match="Too many levels of symbolic links"):
        read_nifti(tmp_path / "loop.nii")
    with pytest.raises(FileError, match="No such file"):
        read_nifti(tmp_path / "dangling.nii")


def test_writing_replaces_a_link_and_spares_its_target(tmp_path, whole_nifti):
    (tmp_path / "precious.nii").write_bytes(whole_nifti)
    (tmp_path / "out.nii").symlink_to(tmp_path / "precious.nii")
    write_nifti(tmp_path / "out.nii", Volume(torch.zeros(1, 1, 1, 1), torch.eye(4)))
    assert (tmp_path / "precious.nii").read_bytes() == whole_nifti
    assert not (tmp_path / "out.nii").is_symlink()


def test_unreadable(tmp_path, whole_nifti, monkeypatch):
    (tmp_path / "a.nii").write_bytes(whole_nifti)

    def refused(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refused)  # permissions would not stop root
    with pytest.raises(FileError, match=r"a\.nii: Permission denied"):
        read_nifti(tmp_path / "a.nii")
    with pytest.raises(FileError, match=r"b\.nii: Permission denied"):
        write_nifti(tmp_path / "b.nii", Volume(torch.zeros(1, 1, 1, 1), torch.eye(4)))


@pytest.mark.parametrize("name", ["nowhere/a.nii", "../escape\0.nii"])
def test_writing_where_nothing_can_be(tmp_path, name):
    with pytest.raises(FileError, match=r"^write_nifti: .*(No such file|is not a file name)"):
        write_nifti(tmp_path / name, Volume(torch.zeros(1, 1, 1, 1), torch.eye(4)))


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
