"""The command line: what it prints, how it fails, its exit codes."""

import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

from cmrfast import cli
from cmrfast.data import Volume, write_nifti
from cmrfast.data.check import check
from cmrfast.data.datasets import open_dataset
from tests.support.paths import ROOT


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command in this process: exit code, output, errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["cmrfast", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def image(tmp_path):
    matrix = torch.diag(torch.tensor([-1.5, -1.5, 8, 1.0]))
    data = torch.arange(24, dtype=torch.int16).view(1, 2, 3, 4)
    write_nifti(tmp_path / "a.nii.gz", Volume(data, matrix))
    return tmp_path / "a.nii.gz"


def test_check_says_what_a_file_is(run, image):
    code, output, errors = run("check", image)
    assert (code, errors) == (0, "")
    assert output.splitlines() == [
        str(image),
        "  2 x 3 x 4 voxels of 1.5 x 1.5 x 8 mm",
        "  3 x 4.5 x 32 mm in all, centred at (-0.8, -1.5, 12.0) mm",
        "  axes run to left, back, head (LPS)",
        "  int16 from 0 to 23",
    ]


def test_check_goes_on_after_a_fault_and_fails(run, image, tmp_path):
    code, output, errors = run("check", tmp_path / "none.nii", image)
    assert code == 1
    assert f"  fault: read_nifti: {tmp_path}/none.nii: No such file or directory" in output
    assert "int16 from 0 to 23" in output
    assert errors == "1 of 2 could not be read\n"


def test_check_without_files_is_bad_usage(run):
    code, _, errors = run("check")
    assert code == 2
    assert "Missing argument 'FILE'" in errors


@pytest.mark.parametrize("arguments", [["frobnicate"], ["--frobnicate"], ["check", "--x", "a"]])
def test_bad_usage(run, arguments):
    code, _, errors = run(*arguments)
    assert code == 2
    assert "No such" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("arguments", [["--help"], ["check", "--help"], ["check", "-h"]])
def test_help(run, arguments):
    code, output, _ = run(*arguments)
    assert code == 0
    assert "Usage: cmrfast" in output


def test_every_command_shows_an_example():
    for command in cli.app.registered_commands:
        assert command.epilog.startswith("Example: cmrfast ")


def test_an_error_is_one_line_and_debug_shows_more(run, image, monkeypatch):
    def fail(path):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("cmrfast.data.check.check", fail)
    code, _, errors = run("check", image)
    assert (code, errors) == (1, "cmrfast: two lines\n")
    monkeypatch.setattr(sys, "argv", ["cmrfast", "check", str(image), "--debug"])
    with pytest.raises(RuntimeError, match="two"):
        cli.main()


def test_as_a_module(image):
    command = [sys.executable, "-m", "cmrfast", "check", str(image)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "2 x 3 x 4 voxels" in done.stdout


def saved(path, data, *, pixdim=None, sform=None, qform=None):
    image = nib.Nifti1Image(data, None)
    image.set_sform(sform, code=1 if sform is not None else 0)
    image.set_qform(qform, code=1 if qform is not None else 0)
    if pixdim:
        image.header["pixdim"][1:4] = pixdim
    image.to_filename(path)
    return path


RAMP = np.arange(8, dtype="f4").reshape(2, 2, 2)
HOLED = np.array([[[0, np.nan], [1, np.inf]]], "f4")


@pytest.mark.parametrize(
    ("data", "forms", "fault"),
    [
        (np.ones((2, 2, 2), "i2"), {"sform": np.eye(4)}, "all voxels are 1"),
        (HOLED, {"sform": np.eye(4)}, "2 of 4 voxels are NaN or infinite"),
        (HOLED + np.inf, {"sform": np.eye(4)}, "4 of 4 voxels are NaN or infinite"),
        (RAMP, {}, "neither sform nor qform is set"),
        (RAMP, {"sform": np.eye(4), "pixdim": [2, 2, 2]}, "sform steps 1 x 1 x 1 differ"),
        (RAMP, {"sform": np.eye(4), "qform": np.diag([1, 1, -1, 1])}, "more than 0.5 mm apart"),
    ],
)
def test_check_names_what_is_odd(tmp_path, data, forms, fault):
    report = check(saved(tmp_path / "a.nii", data, **forms))
    assert report.readable
    assert any(fault in text for text in report.faults), report


def test_check_finds_nothing_where_nothing_is(tmp_path):
    forms = {"sform": np.diag([1, 2, 3, 1]), "qform": np.diag([1, 2, 3, 1])}
    assert check(saved(tmp_path / "a.nii", RAMP, **forms)).faults == ()


def test_check_of_real_files(real_images):
    emidec = check(next(real_images.glob("emidec_samples/*/Images/*.nii.gz")))
    assert [fault.partition(" differ")[0] for fault in emidec.faults] == ["sform steps 1 x 1 x 1"]
    cine = check(real_images / "sunnybrook_cine/SCD0000101/SCD0000101_4d.nii.gz")
    assert "20 time points" in cine.facts[0]
    assert "oblique by 48 degrees" in cine.facts[2]
    pytest.importorskip("pydicom")
    folder = check(real_images / "synthetic_lge_t1/dicom_T1map")
    assert folder.facts[0].startswith("204 x 256 x 3 voxels of 1.367 x 1.367 x 10 mm")
    assert not folder.faults


def test_phantoms_are_written_and_read_back(run, tmp_path):
    arguments = ("phantom", "joint_scar", tmp_path / "new", "--cases", 2, "--shrink", 4)
    code, output, errors = run(*arguments, "--layout", "myops", "--seed", 5)
    assert (code, output) == (0, f"{tmp_path}/new: 2 synthetic patients as myops\n")
    assert errors.splitlines() == ["patients 1 of 2", "patients 2 of 2"]
    data = open_dataset("myops", tmp_path / "new")
    assert len(data) == 2
    assert not any(case.check() for case in data)


def test_phantoms_show_a_bar_on_a_terminal(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, output, errors = run("phantom", "siamese_lesion", tmp_path / "new", "--cases", 1)
    assert (code, output) == (0, f"{tmp_path}/new: 1 synthetic patients as t1_lge\n")
    assert "patients 1 of 1" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gan"], "METHOD must be one of siamese_lesion, joint_scar, .*; got 'gan'"),
        (["joint_scar", "--layout", "acdc"], "--layout of joint_scar must be one of emidec, myops"),
        (["joint_scar", "--cases", "0"], "--cases"),
        (["joint_scar", "--seed", "-1"], "--seed"),
        (["joint_scar", "--shrink", "9"], "--shrink"),
    ],
)
def test_phantoms_that_do_not_exist(run, tmp_path, arguments, message):
    method, *options = arguments
    code, _, errors = run("phantom", method, tmp_path / "new", *options)
    assert code == 2
    assert re.search(message, " ".join(errors.split()))
    assert not (tmp_path / "new").exists()


def test_phantoms_never_among_other_files(run, image):
    code, _, errors = run("phantom", "joint_scar", image.parent)
    assert code == 1
    assert errors == (
        f"cmrfast: write_phantoms: {image.parent} must be a new or empty folder; it holds files\n"
    )
