"""What an ordinary user may not read or write: one line that names it, or a warning."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from cmrfast.data import Volume, write_nifti
from tests.support.paths import ROOT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

NOBODY = 65534
AS_NOBODY = f"""
import os, sys
import torch
from pathlib import Path
from cmrfast import FileError
from cmrfast.data import Split, Volume, read_nifti, write_nifti
from cmrfast.data.cache import Cache
from cmrfast.data.datasets import read_table, recognise
from cmrfast.data.dicom import holds_dicom
import encodings.utf_8_sig
import nibabel
from safetensors.torch import load, save
load(save({{"a": torch.ones(1)}}))  # whatever else is imported, while it can be read
folder = Path(sys.argv[1])
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
try:
    %s
except FileError as error:
    print(error)
"""


@pytest.fixture
def folder():
    """A folder that others can enter, with an image; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        base.chmod(0o755)
        write_nifti(base / "a.nii.gz", Volume(torch.zeros(1, 2, 2, 2), torch.eye(4)))
        yield base


def as_nobody(folder, code):
    """Run some code as an ordinary user: what it prints, and its errors."""
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY % code.replace("\n", "\n    "), str(folder)],
        capture_output=True,
        text=True,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_an_image_that_cannot_be_read(folder):
    (folder / "a.nii.gz").chmod(0o600)
    out, errors = as_nobody(folder, 'read_nifti(folder / "a.nii.gz")')
    assert out == f"read_nifti: {folder}/a.nii.gz: Permission denied\n"
    assert not errors
    (folder / "split.json").write_text("{}")
    (folder / "split.json").chmod(0o600)
    out, _ = as_nobody(folder, 'Split.load(folder / "split.json")')
    assert out == f"load: {folder}/split.json: Permission denied\n"


def test_a_folder_that_cannot_be_written_to(folder):
    code = 'write_nifti(folder / "b.nii", read_nifti(folder / "a.nii.gz"))'
    out, errors = as_nobody(folder, code)
    assert out == f"write_nifti: {folder}/b.nii: Permission denied\n"
    assert not errors
    assert [path.name for path in folder.iterdir()] == ["a.nii.gz"]


def test_an_image_of_somebody_else_is_not_replaced(folder):
    """In a folder that all may write to, such as /tmp, only the owner replaces a file."""
    (folder / "all").mkdir()
    (folder / "all").chmod(0o1777)
    (folder / "a.nii.gz").rename(folder / "all/a.nii.gz")
    before = (folder / "all/a.nii.gz").read_bytes()
    code = 'write_nifti(folder / "all/a.nii.gz", Volume(torch.ones(1, 2, 2, 2), torch.eye(4)))'
    out, _ = as_nobody(folder, code)
    assert out == f"write_nifti: {folder}/all/a.nii.gz: Operation not permitted\n"
    assert [path.name for path in (folder / "all").iterdir()] == ["a.nii.gz"]
    assert (folder / "all/a.nii.gz").read_bytes() == before


def test_a_data_set_in_a_locked_folder(folder):
    (folder / "locked").mkdir()
    (folder / "locked").chmod(0o700)
    out, _ = as_nobody(folder, 'recognise(folder / "locked")')
    assert out.startswith(f"recognise: {folder}/locked has no known layout; ")
    out, _ = as_nobody(folder, 'recognise(folder / "locked" / "in")')
    assert out == f"recognise: {folder}/locked/in: Permission denied\n"
    out, _ = as_nobody(folder, 'holds_dicom(folder / "locked")')
    assert out == f"read_dicom_folder: {folder}/locked: Permission denied\n"
    (folder / "cases.csv").write_text("case,LGE\np,locked/a.nii\n")
    out, _ = as_nobody(folder, "print(read_table(folder).faults)")
    assert out == "['p: LGE image is missing: there is no file locked/a.nii']\n"


def test_a_cache_that_cannot_be_written_to(folder):
    (folder / "c").mkdir()
    code = """
cache = Cache(folder / "c")
for n in range(3):
    made = cache.tensors([folder / "a.nii.gz"], {"n": n}, lambda: {"a": torch.ones(2)})
    print(made["a"].sum().item())
"""
    out, errors = as_nobody(folder, code.strip())
    assert out == "2.0\n" * 3
    assert errors.count("\n") == 1
    assert f"{folder}/c does not keep what was prepared: " in errors
    assert "Permission denied" in errors
    assert not list((folder / "c").iterdir())


def test_a_cache_with_entries_of_somebody_else(folder):
    """They are used, though they can neither be marked as used nor be removed."""
    code = """
cache = Cache(folder / "c", limit_bytes=1)
for n in range(2):
    made = cache.tensors([folder / "a.nii.gz"], {"n": n}, lambda: {"a": torch.full((2,), n)})
    print(made["a"].sum().item())
"""
    (folder / "c").mkdir()
    (folder / "c").chmod(0o777)
    as_nobody(folder, code.strip())
    entries = list((folder / "c").iterdir())
    assert len(entries) == 1
    (folder / "c").chmod(0o1777)
    os.chown(folder / "c", 0, 0)
    os.chown(entries[0], 0, 0)
    entries[0].chmod(0o644)
    out, errors = as_nobody(folder, code.strip())
    assert out == "0\n2\n"
    assert not errors
    entries[0].chmod(0o600)
    assert as_nobody(folder, code.strip())[0] == "0\n2\n"


def test_a_cache_that_cannot_be_made(folder):
    out, errors = as_nobody(folder, 'Cache(folder / "c")')
    assert out == f"Cache: {folder}/c: Permission denied\n"
    assert not errors
