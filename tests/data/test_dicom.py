"""DICOM folders against SimpleITK's reader and the NIfTI export of the same map."""

import os
import shutil
import sys
import zlib

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from cmrfast import FileError
from cmrfast.data import Volume, read_dicom_folder, read_nifti, write_nifti
from cmrfast.data.datasets.case import Case, binary

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import FileDataset, FileMetaDataset  # noqa: E402
from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

AXES = np.array([[0.8, 0.0, -0.6], [0.36, 0.8, 0.48]])
SERIES = generate_uid(entropy_srcs=["one"])


def put(path, at, *, offset=(0, 0, 0), pixels=None, **changes):
    """One slice, ``at`` mm along the normal."""
    file = FileDataset(str(path), {}, preamble=bytes(128))
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = MRImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = generate_uid()
    file.Modality, file.SeriesInstanceUID, file.StudyInstanceUID = "MR", SERIES, SERIES
    file.SeriesDescription, file.SeriesNumber = "map", 7
    if pixels is None:
        pixels = (np.arange(12).reshape(3, 4) + 100 * at).astype(np.uint16)
    file.Rows, file.Columns = pixels.shape
    file.PixelSpacing, file.ImageOrientationPatient = [1.5, 1.25], list(AXES.ravel())
    file.ImagePositionPatient = list(np.cross(*AXES) * at + [-80, 20, 5] + offset)
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 12, 11
    file.PixelRepresentation, file.SamplesPerPixel = 0, 1
    file.PhotometricInterpretation = "MONOCHROME2"
    file.PixelData = pixels.tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(file, name)
        else:
            setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)


@pytest.fixture
def stack(tmp_path):
    """Three slices whose names run against their places."""
    for name, at in (("a", 16), ("b", 8), ("c", 0)):
        put(tmp_path / f"{name}.dcm", at)
    return tmp_path


def itk(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    data = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    return data, np.diag([-1, -1, 1, 1]) @ matrix


def same_as_itk(folder):
    volume, (data, matrix) = read_dicom_folder(folder), itk(folder)
    np.testing.assert_array_equal(volume.data[0].numpy(), data)
    np.testing.assert_allclose(volume.world_from_vox.numpy(), matrix, atol=1e-4)
    return volume


def test_slices_are_sorted_along_the_normal(stack):
    (stack / "readme.txt").write_text("not DICOM")
    (stack / "folder").mkdir()
    put(stack / "report", 0, Modality="SR", Rows=None)
    volume = same_as_itk(stack)
    assert volume.data.dtype == torch.uint16
    assert volume.data.shape == (1, 4, 3, 3)
    assert volume.data[0, 0, 0].tolist() == [0, 800, 1600]
    assert volume.spacing_mm == pytest.approx((1.25, 1.5, 8))


def test_rescaled_values_are_float(stack):
    for name, at in (("a", 16), ("b", 8), ("c", 0)):
        put(stack / f"{name}.dcm", at, RescaleSlope=0.5, RescaleIntercept=-3)
    volume = same_as_itk(stack)
    assert volume.data.dtype == torch.float32
    assert volume.data[0, 0, 0].tolist() == [-3, 397, 797]


def test_an_empty_rescale_changes_nothing(stack):
    for name, at in (("a", 16), ("b", 8), ("c", 0)):
        put(stack / f"{name}.dcm", at, RescaleSlope="", RescaleIntercept="")
    volume = read_dicom_folder(stack)
    assert (volume.data.dtype, volume.data.long().max()) == (torch.uint16, 1611)


def test_a_case_of_slices_is_checked(stack):
    volume = read_dicom_folder(stack)
    labelling = {"scar": binary("scar", on="LGE")}
    case = Case("p", {"LGE": stack}, {"scar": stack / "mask.nii"}, labelling)
    write_nifti(stack / "mask.nii", volume)
    assert case.check() == []
    write_nifti(stack / "mask.nii", Volume(volume.data, torch.eye(4)))
    assert case.check() == ["scar label does not lie on the grid of LGE"]
    (stack / "a.dcm").unlink()
    put(stack / "a.dcm", 24)
    assert "its slices are not evenly spaced" in case.check()[0]


def test_one_slice_takes_its_thickness(tmp_path):
    put(tmp_path / "a.dcm", 0, SliceThickness=5, SpacingBetweenSlices=10)
    assert read_dicom_folder(tmp_path).spacing_mm == pytest.approx((1.25, 1.5, 10))


def test_one_of_two_series(stack):
    put(
        stack / "d.dcm",
        0,
        SeriesInstanceUID=generate_uid(),
        SeriesDescription="moco",
        SeriesNumber=8,
    )
    message = r"holds 2 series, name one with series=: 7 'map'; 8 'moco'"
    with pytest.raises(FileError, match=message):
        read_dicom_folder(stack)
    assert read_dicom_folder(stack, series="map").shape[2] == 3
    assert read_dicom_folder(stack, series="8").shape[2] == 1
    with pytest.raises(FileError, match="series='9' does not select exactly one"):
        read_dicom_folder(stack, series="9")


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ([(0, {}), (8, {}), (8, {})], "two of its slices have the same position"),
        ([(0, {}), (8, {}), (24, {})], "its slices are not evenly spaced: 8, 16 mm"),
        ([(0, {}), (8, {"offset": (3, 0, 0)}), (16, {})], "its slices are not evenly spaced"),
        (
            [(0, {}), (8, {"PixelSpacing": [1.5, 1.5]})],
            "1.dcm: its spacing_mm differ from those",
        ),
        (
            [(0, {}), (8, {"pixels": np.zeros((3, 5), "u2")})],
            "1.dcm: its columns differ from",
        ),
        ([(0, {"ImagePositionPatient": None})], "0.dcm: has no ImagePositionPatient"),
        ([(0, {"PixelSpacing": None})], "0.dcm: has no PixelSpacing"),
        ([(0, {}), (8, {"Rows": None})], "1.dcm: has no Rows"),
        (
            [(0, {"ImageOrientationPatient": [1, 0, 0]})],
            "Patient must be 6 numbers",
        ),
        ([(0, {"NumberOfFrames": 5})], "0.dcm: holds many frames in one file"),
        ([(0, {"PixelData": b"12"})], "0.dcm: its pixels cannot be read"),
        ([(0, {"PixelSpacing": [0, 1]})], "its geometry must have steps between"),
        ([(0, {"PixelSpacing": [-1.5, 1]})], "PixelSpacing must be positive"),
        ([(0, {"Rows": 0})], "Rows must be positive; it is 0"),
        ([(0, {"Rows": 65535})], "0.dcm: its pixels cannot be read"),
        (
            [(0, {"ImageOrientationPatient": [2, 0, 0, 0, 1, 0]})],
            "must be two unit vectors at a right angle",
        ),
        (
            [(0, {"ImageOrientationPatient": [1, 0, 0, 0.6, 0.8, 0]})],
            "must be two unit vectors at a right angle",
        ),
        ([(0, {"RescaleSlope": "1e400"})], "0.dcm: rescales by inf and"),
    ],
)
def test_what_is_no_stack_is_refused(tmp_path, slices, message):
    for name, (at, changes) in enumerate(slices):
        put(tmp_path / f"{name}.dcm", at, **changes)
    with pytest.raises(FileError, match=rf"read_dicom_folder: .*{message}"):
        read_dicom_folder(tmp_path)


def test_what_is_no_folder_of_dicom(stack, tmp_path_factory):
    with pytest.raises(FileError, match="No such file"):
        read_dicom_folder(stack / "nowhere")
    with pytest.raises(FileError, match="holds no DICOM image"):
        read_dicom_folder(tmp_path_factory.mktemp("empty"))
    scan = tmp_path_factory.mktemp("ct")
    put(scan / "a.dcm", 0, Modality="CT")
    with pytest.raises(FileError, match=r"holds no MR image \(Modality: CT\)"):
        read_dicom_folder(scan)
    (stack / "d.dcm").write_bytes(b"DICM")
    with pytest.raises(FileError, match=r"d\.dcm: is not a DICOM file, despite its name"):
        read_dicom_folder(stack)
    (stack / "d.dcm").unlink()
    with pytest.raises(FileError, match="holds 72 bytes of pixels, more than max_bytes=71"):
        read_dicom_folder(stack, max_bytes=71)


@pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:.*:UserWarning:pydicom")
def test_broken_files_are_refused_by_name(stack):
    """Cuts and flipped bytes: a volume or a FileError, nothing else."""
    raw, rng = (stack / "b.dcm").read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(raw[: rng.integers(132, len(raw) + 1)])
        for at in rng.integers(132, len(damaged) + 1, 5):
            damaged[min(at, len(damaged) - 1)] = rng.integers(256)
        (stack / "b.dcm").write_bytes(damaged)
        try:
            assert read_dicom_folder(stack).channels == 1
        except FileError as error:
            assert str(stack) in str(error)  # noqa: PT017
            refused += 1
    assert refused > 50


def test_without_pydicom_the_extra_is_named(stack, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r'pip install "cmrfast\[dicom\]"'):
        read_dicom_folder(stack)


def test_t1_maps_in_other_units(stack):
    for name, at in (("a", 16), ("b", 8), ("c", 0)):
        pixels = np.full((3, 4), 11_500, np.uint16)
        changes = {"ImageComments": "T1 map", "BitsStored": 16, "HighBit": 15}
        put(stack / f"{name}.dcm", at, pixels=pixels, **changes)
    with pytest.warns(UserWarning, match=r"in tenths of a millisecond \(median 1.15e\+04"):
        assert read_dicom_folder(stack).data.unique().tolist() == [1150]


def test_the_real_map(real_images, tmp_path):
    folder = real_images / "synthetic_lge_t1/dicom_T1map"
    for name, path in zip("cab", sorted(folder.glob("*.dcm")), strict=True):
        shutil.copyfile(path, tmp_path / f"{name}.dcm")
    volume = same_as_itk(tmp_path)
    whole = read_nifti(real_images / "synthetic_lge_t1/molli_T1map_postGd.nii.gz")
    vox_from_vox = (torch.linalg.inv(whole.world_from_vox) @ volume.world_from_vox).numpy()
    start, signs = vox_from_vox[:3, 3].round(), vox_from_vox[:3, :3].diagonal().round()
    np.testing.assert_allclose(vox_from_vox[:3, 3], start, atol=1e-3)
    np.testing.assert_allclose(vox_from_vox[:3, :3], np.diag(signs), atol=1e-5)
    # The export turned some axes round.
    index = [
        (first + sign * np.arange(size)).astype(int)
        for first, sign, size in zip(start, signs, volume.shape, strict=True)
    ]
    there = whole.data[0].numpy()[np.ix_(*index)]
    np.testing.assert_array_equal(volume.data[0].numpy(), there)


def deflate(path, tail=b""):
    """Write a slice again with its data set deflated, and perhaps more behind it."""
    file = pydicom.dcmread(path)
    file.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file.save_as(path, enforce_file_format=True)
    raw = path.read_bytes()
    start = 144 + int.from_bytes(raw[140:144], "little")  # after the group with the syntax
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    body = packer.compress(zlib.decompress(raw[start:], -15))
    path.write_bytes(raw[:start] + body + packer.compress(tail) + packer.flush())


def test_deflated_slices_are_read_within_the_limit(stack):
    whole = read_dicom_folder(stack)
    for name in "abc":
        deflate(stack / f"{name}.dcm")
    assert torch.equal(read_dicom_folder(stack).data, whole.data)
    deflate(stack / "b.dcm", bytes(64 << 20))
    with pytest.raises(FileError, match=r"b\.dcm: inflates to more than 16 MiB beyond"):
        read_dicom_folder(stack, max_bytes=72)


def test_pipes_and_devices_are_no_slices(stack):
    os.mkfifo(stack / "pipe.dcm")
    (stack / "zero.dcm").symlink_to("/dev/zero")
    assert read_dicom_folder(stack).shape[2] == 3
