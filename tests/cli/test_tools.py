"""The commands about images and this machine: what they print, how they fail, their exit codes."""

import json
import re
import sys

import pytest
import torch

from cmrfast.data import Volume, write_nifti
from cmrfast.data.datasets import open_dataset


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


def test_compare_prints_overlap_and_distances(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grid = torch.diag(torch.tensor([1.5, 1.5, 8, 1.0]))
    mask = torch.zeros(1, 10, 10, 2, dtype=torch.uint8)
    mask[:, 2:6, 2:6] = 1
    write_nifti("a.nii.gz", Volume(mask, grid))
    write_nifti("b.nii.gz", Volume(mask.roll(1, 1), grid))
    code, out, _ = run("compare", "a.nii.gz", "b.nii.gz", "--json")
    scores = json.loads(out)["1"]
    assert code == 0
    assert scores["dice"] == pytest.approx(0.75)
    assert scores["hausdorff_mm"] == pytest.approx(1.5)
    assert scores["center_distance_mm"] == pytest.approx(1.5)
    code, out, _ = run("compare", "a.nii.gz", "b.nii.gz")
    assert out.splitlines()[0].split()[:3] == ["label", "dice", "jaccard"]
    write_nifti("c.nii.gz", Volume(mask[..., :1], grid))
    code, _, errors = run("compare", "a.nii.gz", "c.nii.gz")
    assert code == 1
    assert "must lie on one grid" in errors


def test_compare_reads_values_that_one_dtype_lacks(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mask = torch.zeros(1, 10, 10, 2, dtype=torch.uint8)
    mask[:, 2:6, 2:6] = 244
    write_nifti("a.nii", Volume(mask, torch.eye(4)))
    write_nifti("b.nii", Volume(mask.short() // 244 * 500, torch.eye(4)))
    code, out, _ = run("compare", "a.nii", "b.nii", "--json")
    assert code == 0
    scores = json.loads(out, parse_constant=pytest.fail)  # NaN is no JSON
    assert scores["244"]["dice"] == scores["500"]["dice"] == 0
    assert scores["500"]["hausdorff_mm"] is None


def test_compare_refuses_several_time_points(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for count in (1, 2, 3):
        mask = torch.zeros(count, 8, 8, 3, dtype=torch.uint8)
        mask[-1, 2:6, 2:6] = 1
        write_nifti(f"{count}.nii", Volume(mask, torch.eye(4)))
    assert run("compare", "1.nii", "1.nii")[0] == 0
    for pair, count in (("22", 2), ("12", 2), ("31", 3)):
        code, out, errors = run("compare", *(f"{name}.nii" for name in pair))
        assert (code, out) == (1, "")
        assert errors == (
            f"cmrfast: compare: {count}.nii must be one mask; it has {count} channels or time "
            "points\n"
        )


def test_compare_refuses_images(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mask = torch.zeros(1, 10, 10, 2, dtype=torch.uint8)
    many = torch.arange(200, dtype=torch.int16).view(1, 10, 10, 2) % 65
    for name, data in {"mask": mask, "many": many, "image": mask + 0.25}.items():
        write_nifti(f"{name}.nii", Volume(data, torch.eye(4)))
    write_nifti("labels.nii", Volume(many % 64, torch.eye(4)))
    assert run("compare", "labels.nii", "mask.nii")[0] == 0
    must = "must be a mask of whole numbers, at most 64 of them; it holds"
    for words, problem in {
        ("mask.nii", "many.nii"): f"many.nii {must} 65 values",
        ("image.nii", "mask.nii"): f"image.nii {must} the value 0.25",
    }.items():
        code, out, errors = run("compare", *words)
        assert (code, out) == (1, "")
        assert errors == f"cmrfast: compare: {problem}; is it an image?\n"


def test_check_of_a_folder_without_dicom(run, tmp_path, monkeypatch):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "pydicom", None)  # as where it is not installed
    code, out, _ = run("check", tmp_path)
    assert code == 1
    assert f"fault: read_dicom_folder: {tmp_path}: holds no DICOM image" in out


def test_info_tells_backends_and_reasons(run):
    code, out, _ = run("info", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["backends"]["dice_ce_sums"]["cpu"] in ("native", "reference")
    assert found["because"]["cuda"]
    assert "nt_xent" in run("info")[1]
