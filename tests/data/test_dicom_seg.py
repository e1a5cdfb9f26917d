"""Multi-frame DICOM against SimpleITK's reader; DICOM segmentations against highdicom's."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from cmrfast import FileError
from cmrfast.data import read_dicom_folder
from cmrfast.data.dicom_seg import write_dicom_seg
from tests.data.test_dicom import AXES, put

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import EnhancedMRImageStorage, generate_uid  # noqa: E402

FLIP = torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64)
#: What DICOM wants of a patient and a study, besides the image.
STUDY = {
    **{"PatientID": "1", "PatientName": "A^B", "PatientBirthDate": "", "PatientSex": "O"},
    **{"StudyDate": "20200101", "StudyTime": "120000", "StudyID": "1", "AccessionNumber": ""},
    **{"ReferringPhysicianName": "", "InstanceNumber": 1, "FrameOfReferenceUID": generate_uid()},
    **{"SeriesDate": "20200101", "SeriesTime": "120000", "ContentDate": "20200101"},
    **{"ContentTime": "120000", "SliceThickness": 8.0},
}


def item(**values):
    data = Dataset()
    for name, value in values.items():
        setattr(data, name, value)
    return data


def put_frames(folder, places, **changes):
    """An enhanced MR file whose frames lie ``places`` mm along the normal."""
    pixels = np.arange(len(places) * 12).reshape(len(places), 3, 4).astype(np.uint16)
    path = folder / "frames.dcm"
    put(path, 0, pixels=pixels[0], **STUDY)
    file = pydicom.dcmread(path)
    kind = EnhancedMRImageStorage
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = kind
    file.PixelData, file.NumberOfFrames = pixels.tobytes(), len(places)
    shared = item(
        PixelMeasuresSequence=Sequence(
            [item(PixelSpacing=[1.5, 1.25], SliceThickness=8.0, SpacingBetweenSlices=8.0)]
        ),
        PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=list(AXES.ravel()))]),
    )
    frames = []
    for number, place in enumerate(places):
        position = list(np.cross(*AXES) * place + [-80, 20, 5])
        frames.append(
            item(
                PlanePositionSequence=Sequence([item(ImagePositionPatient=position)]),
                FrameContentSequence=Sequence([item(DimensionIndexValues=[number + 1])]),
            )
        )
    file.SharedFunctionalGroupsSequence = Sequence([shared])
    file.PerFrameFunctionalGroupsSequence = Sequence(frames)
    for name in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"):
        delattr(file, name)
    for name, value in changes.items():
        setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return pixels


def test_frames_are_slices(tmp_path):
    put_frames(tmp_path, [0, 8, 16])
    volume, image = read_dicom_folder(tmp_path), sitk.ReadImage(str(tmp_path / "frames.dcm"))
    data = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    np.testing.assert_array_equal(volume.data[0].numpy(), data)
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(
        volume.world_from_vox.numpy(), np.diag([-1, -1, 1, 1]) @ matrix, atol=1e-4
    )


def test_frames_are_sorted_and_rescaled(tmp_path):
    pixels = put_frames(tmp_path, [16, 0, 8], RescaleSlope=2.0, RescaleIntercept=-1.0)
    found = read_dicom_folder(tmp_path).data[0].numpy()
    np.testing.assert_array_equal(found, 2 * pixels[[1, 2, 0]].transpose(2, 1, 0) - 1.0)


def test_a_file_of_frames_is_read_twice_at_most(tmp_path, monkeypatch):
    put_frames(tmp_path, range(0, 80, 8))
    read, times = pydicom.dcmread, []
    monkeypatch.setattr(pydicom, "dcmread", lambda *a, **k: times.append(a) or read(*a, **k))
    assert read_dicom_folder(tmp_path).shape[2] == 10
    assert len(times) == 2  # for the headers, and for the pixels


def test_frames_that_are_not_described(tmp_path):
    put_frames(tmp_path, [0, 8, 16], NumberOfFrames=4)
    with pytest.raises(FileError, match="describes 3 frames, not as many as it holds"):
        read_dicom_folder(tmp_path)
    put_frames(tmp_path, [0, 8, 8])
    with pytest.raises(FileError, match="two of its slices have the same position"):
        read_dicom_folder(tmp_path)


@pytest.fixture(params=["slices", "frames"])
def source(request, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    if request.param == "frames":
        put_frames(folder, [16, 0, 8])
    else:
        for number, at in enumerate((16, 0, 8)):
            put(folder / f"{number}.dcm", at, **STUDY)
    return folder


def test_a_segmentation_is_read_back_by_highdicom(source, tmp_path):
    hd = pytest.importorskip("highdicom")
    image = read_dicom_folder(source)
    labels = image.with_data(
        torch.randint(0, 3, image.data.shape, generator=torch.Generator().manual_seed(0))
    )
    write_dicom_seg(tmp_path / "seg.dcm", labels, {1: "myocardium", 2: "scar"}, source)
    file = hd.seg.segread(tmp_path / "seg.dcm")
    assert [file.get_segment_description(n).segment_label for n in (1, 2)] == ["myocardium", "scar"]
    found = file.get_volume(combine_segments=True)
    # highdicom's axes: slices, rows, columns; x to the left, y to the back.
    place = np.linalg.inv(found.affine) @ np.diag([-1, -1, 1, 1]) @ labels.world_from_vox.numpy()
    for i, j, k in np.ndindex(*labels.shape):
        where = np.round(place @ [i, j, k, 1])[:3].astype(int)
        assert np.allclose(place @ [i, j, k, 1], [*where, 1], atol=1e-3)
        assert found.array[tuple(where)] == labels.data[0, i, j, k]


def test_what_cannot_be_segmented_is_named(source, tmp_path):
    pytest.importorskip("highdicom")
    image = read_dicom_folder(source)
    with pytest.raises(FileError, match=r"labels must be one channel on the grid of .*in, \(4, 3"):
        write_dicom_seg(
            tmp_path / "s.dcm", image.with_data(image.data.repeat(2, 1, 1, 1)), {}, source
        )
    labels = image.with_data(torch.ones_like(image.data))
    flipped = replace(labels, world_from_vox=labels.world_from_vox @ torch.diag(FLIP))
    message = r"on the grid of .*in, \(4, 3, 3\); got \(1, 4, 3, 3\) at other positions"
    with pytest.raises(FileError, match=message):
        write_dicom_seg(tmp_path / "s.dcm", flipped, {1: "scar"}, source)
    for path in source.iterdir():
        file = pydicom.dcmread(path)
        del file.StudyInstanceUID
        file.save_as(path)
    with pytest.raises(FileError, match=r"lacks what a segmentation needs: .*StudyInstanceUID"):
        write_dicom_seg(tmp_path / "s.dcm", labels, {1: "scar"}, source)
    assert not (tmp_path / "s.dcm").exists()


def test_without_the_extra(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    labels = read_dicom_folder(source)
    with pytest.raises(ImportError, match=r"the extra dicom-seg: pip install 'cmrfast\[dicom"):
        write_dicom_seg(tmp_path / "s.dcm", labels, {1: "scar"}, source)
