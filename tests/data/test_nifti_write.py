"""Writing NIfTI: a disk that is full or fails, or a kill, leaves the new image or the old one."""

import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

from cmrfast import FileError
from cmrfast.data import Volume, read_nifti, write_nifti
from cmrfast.data.nifti import write
from tests.support.paths import ROOT

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
def test_no_room_leaves_the_old_file_and_nothing_else(tmp_path, whole_nifti, name):
    (tmp_path / name).write_bytes(whole_nifti)

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
    assert [p.name for p in tmp_path.iterdir() if p.name != "whole.nii"] == [name]
    assert (tmp_path / name).read_bytes() == whole_nifti


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


def test_what_a_cast_has_changed_is_not_kept(tmp_path, monkeypatch):
    volume = Volume(torch.full((1, 1, 1, 1), -5, dtype=torch.int16), torch.eye(4))
    write_nifti(tmp_path / "like.nii", volume)
    monkeypatch.setattr(write, "_cast_like", lambda data, model: data.to(torch.uint16))
    with pytest.raises(FileError, match=r"b\.nii: the voxels read back differ"):
        write_nifti(tmp_path / "b.nii", volume, like=tmp_path / "like.nii")


def test_wrong_arguments_to_write(tmp_path):
    volume = Volume(torch.zeros(1, 2, 2, 2), torch.eye(4))
    with pytest.raises(ValueError, match=r"write_nifti: the name must end in .nii or .nii.gz; got"):
        write_nifti(tmp_path / "a.png", volume)
    with pytest.raises(ValueError, match="write_nifti: volume is empty"):
        write_nifti(tmp_path / "a.nii", Volume(torch.zeros(1, 0, 2, 2), torch.eye(4)))


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
