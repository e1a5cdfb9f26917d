"""What is odd about a file, and that nothing is where nothing is."""

import nibabel as nib
import numpy as np
import pytest

from cmrfast.data.check import check


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


def test_check_describes_what_is_too_large_to_read(tmp_path):
    path = saved(tmp_path / "a.nii", RAMP, sform=np.eye(4))
    with path.open("r+b") as file:
        file.seek(42)
        file.write(np.array([1024, 1024, 513], "<i2").tobytes())
        file.truncate(352 + 4 * 1024 * 1024 * 513)  # takes no room on the disk
    report = check(path)
    assert not report.readable
    assert report.facts[0] == "1024 x 1024 x 513 voxels of 1 x 1 x 1 mm"
    assert report.faults[-1].endswith("bytes of voxels, more than max_bytes=2147483648")


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
