"""NIfTI against nibabel and SimpleITK: geometry, voxel types, scaling, pairs, both byte orders."""

import gzip
import io
import os
import sys
import warnings

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

import cmrfast.data.nifti.source
from cmrfast.data import Volume, read_nifti, write_nifti
from cmrfast.data.nifti import read_header
from tests.support.nifti_files import broken

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
STORED = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]


def random_matrix(rng, *, shear=False):
    """A rotated, perhaps mirrored grid of a spacing and a place that scanners use."""
    steps = Rotation.random(random_state=rng.integers(2**31)).as_matrix()
    steps = steps * rng.uniform(0.3, 15, 3) * rng.choice([-1, 1], 3)
    if shear:
        steps = steps @ (np.eye(3) + np.triu(rng.uniform(-0.2, 0.2, (3, 3)), 1))
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = steps, rng.uniform(-250, 250, 3)
    return matrix


def sitk_matrix(path):
    image = sitk.ReadImage(str(path))
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    return LPS_FROM_RAS @ matrix


def values(dtype, shape=(5, 4, 3)):
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    bounds = np.iinfo(dtype)
    return rng.integers(bounds.min, bounds.max, shape, dtype, endpoint=True)


def nibabel_file(path, data, *, order="<", kind=nib.Nifti1Image, **fields):
    image = kind(data, np.diag([2.0, 3, 4, 1]), dtype=data.dtype)
    header = image.header.as_byteswapped(order)
    for name, value in fields.items():
        header[name] = value
    kind(data, None if fields else image.affine, header).to_filename(path)
    return path


@pytest.mark.parametrize("shear", [False, True])
def test_a_thousand_affines_return(tmp_path, monkeypatch, shear):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    rng = np.random.default_rng(3)
    data = torch.arange(24, dtype=torch.int16).view(1, 2, 3, 4)
    path = tmp_path / "a.nii"
    for _ in range(500):
        matrix = random_matrix(rng, shear=shear)
        write_nifti(path, Volume(data, torch.from_numpy(matrix)))
        volume, other = read_nifti(path), nib.load(path)
        np.testing.assert_allclose(volume.world_from_vox.numpy(), matrix, atol=1e-5, rtol=0)
        np.testing.assert_allclose(volume.world_from_vox.numpy(), other.affine, atol=1e-12)
        assert volume.orientation == "".join(nib.aff2axcodes(other.affine))
        np.testing.assert_allclose(volume.spacing_mm, other.header.get_zooms(), rtol=1e-6)
        if not shear:  # SimpleITK refuses a sheared grid
            np.testing.assert_allclose(sitk_matrix(path), matrix, atol=1e-4, rtol=0)
            np.testing.assert_allclose(other.get_qform(), matrix, atol=1e-4, rtol=0)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", STORED)
def test_every_voxel_type_returns_and_opens_elsewhere(tmp_path, dtype, ending):
    data = torch.from_numpy(values(dtype, (1, 5, 4, 3)))
    path = tmp_path / f"a{ending}"
    write_nifti(path, Volume(data, torch.eye(4)))
    back = read_nifti(path).data
    assert back.dtype == data.dtype
    assert torch.equal(back, data)
    np.testing.assert_array_equal(np.asanyarray(nib.load(path).dataobj), data[0].numpy())
    elsewhere = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    np.testing.assert_array_equal(elsewhere.transpose(2, 1, 0), data[0].numpy())


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair])
@pytest.mark.parametrize("dtype", STORED)
def test_reads_what_nibabel_writes(tmp_path, dtype, kind, order):
    data = values(dtype)
    name = "a.img" if kind is nib.Nifti1Pair else "a.nii"
    path = nibabel_file(tmp_path / name, data, order=order, kind=kind)
    volume = read_nifti(path)
    np.testing.assert_array_equal(volume.data[0].numpy(), data)
    assert volume.data.numpy().dtype == np.dtype(dtype)
    np.testing.assert_array_equal(volume.world_from_vox.numpy(), nib.load(path).affine)


@pytest.mark.parametrize("asked", ["a.hdr", "a.img"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_pair_opens_by_either_name(tmp_path, asked, packed):
    data = values("i2")
    nibabel_file(tmp_path / f"a.img{packed}", data, kind=nib.Nifti1Pair)
    volume = read_nifti(tmp_path / f"{asked}{packed}")
    np.testing.assert_array_equal(volume.data[0].numpy(), data)


def test_time_points_are_channels(tmp_path):
    data = values("i2", (4, 3, 2, 5))
    volume = read_nifti(nibabel_file(tmp_path / "a.nii.gz", data))
    assert (volume.channels, volume.shape) == (5, (4, 3, 2))
    np.testing.assert_array_equal(volume.data.numpy(), np.moveaxis(data, -1, 0))
    write_nifti(tmp_path / "b.nii.gz", volume)
    np.testing.assert_array_equal(np.asanyarray(nib.load(tmp_path / "b.nii.gz").dataobj), data)


def test_a_vector_image_has_its_fifth_axis_as_channels(tmp_path):
    data = values("f4", (4, 3, 2, 1, 3))
    volume = read_nifti(nibabel_file(tmp_path / "a.nii", data))
    np.testing.assert_array_equal(volume.data.numpy(), np.moveaxis(data[:, :, :, 0], -1, 0))


@pytest.mark.parametrize("shape", [(6,), (6, 5)])
def test_fewer_axes_are_thin_volumes(tmp_path, shape):
    volume = read_nifti(nibabel_file(tmp_path / "a.nii", values("i2", shape)))
    assert volume.shape == (*shape, 1, 1)[:3]


@pytest.mark.parametrize(
    ("dtype", "result"),
    [("u1", "f4"), ("i2", "f4"), ("u2", "f4"), ("f4", "f4"), ("i4", "f8"), ("f8", "f8")],
)
def test_scaling_is_applied(tmp_path, dtype, result):
    data = values(dtype)
    header = nib.Nifti1Image(data, np.eye(4), dtype=data.dtype).header
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = 0.25, -3, 352
    header["magic"] = b"n+1"
    path = tmp_path / "a.nii"
    path.write_bytes(header.binaryblock + bytes(4) + data.tobytes(order="F"))
    volume = read_nifti(path)
    expected = nib.load(path).get_fdata()
    assert volume.data.numpy().dtype == np.dtype(result)
    np.testing.assert_allclose(volume.data[0].numpy(), expected, rtol=1e-7 if result == "f4" else 0)


@pytest.mark.parametrize(("slope", "inter"), [(0, 5), (np.nan, 5), (1, 0)])
def test_no_scaling_keeps_the_stored_type(tmp_path, slope, inter):
    path = nibabel_file(tmp_path / "a.nii", values("i2"))
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([slope, inter], "<f4").tobytes()
    path.write_bytes(raw)
    assert read_nifti(path).data.dtype == torch.int16


def test_the_qform_stands_where_there_is_no_sform(tmp_path):
    rng = np.random.default_rng(5)
    path = tmp_path / "a.nii"
    for _ in range(50):
        image = nib.Nifti1Image(values("i2"), None)
        image.set_qform(random_matrix(rng), code=1)
        image.set_sform(None, code=0)
        image.to_filename(path)
        matrix = read_nifti(path).world_from_vox.numpy()
        np.testing.assert_allclose(matrix, nib.load(path).affine, atol=1e-5)
        np.testing.assert_allclose(matrix, sitk_matrix(path), atol=1e-4)


def test_pixdim_gives_the_lengths_where_the_sform_has_none(tmp_path):
    """EMIDEC's headers: an sform of unit steps, the spacing in pixdim alone."""
    rows = {"srow_x": [-1, 0, 0, 7], "srow_y": [0, -1, 0, 8], "srow_z": [0, 0, 1, 9]}
    fields = {"sform_code": 2, "qform_code": 0, "pixdim": [1, 1.4, 1.4, 13, 1, 1, 1, 1]}
    path = nibabel_file(tmp_path / "a.nii", values("i2"), **fields, **rows)
    with pytest.warns(UserWarning, match=r"a\.nii: sform steps 1 x 1 x 1 differ from pixdim 1.4 x"):
        volume = read_nifti(path)
    assert volume.spacing_mm == pytest.approx((1.4, 1.4, 13), rel=1e-6)
    assert volume.orientation == "LPS"
    assert volume.world_from_vox[:3, 3].tolist() == [7, 8, 9]
    write_nifti(tmp_path / "b.nii", volume, like=path)  # reads back without a second warning
    kept = nib.load(tmp_path / "b.nii").header
    assert kept["srow_x"].tolist() == [-1, 0, 0, 7]
    assert kept["pixdim"][3] == 13


FLAT_ROWS = {"srow_x": [2, 0, 0, 7], "srow_y": [0, 3, 0, 8], "srow_z": [0, 0, 5, 9]}


@pytest.mark.filterwarnings("ignore:.*neither sform nor qform")
@pytest.mark.parametrize("unset", [0, np.nan, np.inf])
@pytest.mark.parametrize(
    ("form", "steps"),
    [
        ({"sform_code": 0, "qform_code": 0}, (2, 3, 1)),
        ({"sform_code": 0, "qform_code": 1}, (2, 3, 1)),
        ({"sform_code": 1, "qform_code": 0, **FLAT_ROWS}, (2, 3, 5)),
        ({"sform_code": 1, "qform_code": 1, "xyzt_units": 1, **FLAT_ROWS}, (2000, 3000, 5000)),
    ],
)
def test_a_flat_image_needs_no_third_length(tmp_path, form, steps, unset):
    """pixdim has no meaning beyond dim[0]; several programs leave 0 there."""
    raw = nibabel_file(tmp_path / "a.nii", values("i2")[..., 0]).read_bytes()
    path = broken(tmp_path / "a.nii", raw, pixdim=[1, 2, 3, unset, 0, 0, 0, 0], **form)
    assert int(read_header(path).fields["dim"][0]) == 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*lengths are not in mm")
        volume = read_nifti(path)
        write_nifti(tmp_path / "b.nii", volume, like=path)
        again = read_nifti(tmp_path / "b.nii")
    assert volume.shape[2] == 1
    assert volume.spacing_mm == pytest.approx(steps)
    assert again.shares_grid(volume)
    assert torch.equal(again.data, volume.data)
    assert (nib.load(tmp_path / "b.nii").header["pixdim"][1:4] > 0).all()


def test_lengths_within_a_thousandth_follow_the_sform(tmp_path):
    fields = {"sform_code": 1, "pixdim": [1, 1.0009, 1, 1, 1, 1, 1, 1]}
    rows = {"srow_x": [1, 0, 0, 0], "srow_y": [0, 1, 0, 0], "srow_z": [0, 0, 1, 0]}
    path = nibabel_file(tmp_path / "a.nii", values("i2"), **fields, **rows)
    assert read_nifti(path).spacing_mm == (1, 1, 1)


def test_metres_become_millimetres(tmp_path):
    path = nibabel_file(tmp_path / "a.nii", values("i2"), xyzt_units=1)
    with pytest.warns(UserWarning, match="lengths are not in mm"):
        assert read_nifti(path).spacing_mm == (2000, 3000, 4000)


def test_without_forms_the_spacing_is_all_there_is(tmp_path):
    path = nibabel_file(tmp_path / "a.nii", values("i2"), sform_code=0, qform_code=0)
    with pytest.warns(UserWarning, match="position and orientation are unknown"):
        assert read_nifti(path).orientation == "RAS"


def test_like_keeps_the_header_that_viewers_use(tmp_path):
    matrix = random_matrix(np.random.default_rng(7))
    image = nib.Nifti1Image(values("u2"), matrix)
    image.set_sform(matrix, code=4)
    image.set_qform(matrix @ np.diag([1, 1, -1, 1]), code=3)  # another form, to tell them apart
    image.header["xyzt_units"] = 10
    image.to_filename(tmp_path / "image.nii.gz")
    volume = read_nifti(tmp_path / "image.nii.gz")
    mask = volume.with_data((volume.data.float() > 3e4).long())
    write_nifti(tmp_path / "mask.nii.gz", mask, like=tmp_path / "image.nii.gz")
    ours, theirs = (nib.load(tmp_path / f"{name}.nii.gz").header for name in ("mask", "image"))
    for name in ("qform_code", "sform_code", "xyzt_units", "datatype", "pixdim", "srow_x", "srow_y",
                 "srow_z", "quatern_b", "quatern_c", "quatern_d", "qoffset_x"):  # fmt: skip
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_like_never_loses_values(tmp_path):
    nibabel_file(tmp_path / "image.nii", values("i2"))
    like = read_nifti(tmp_path / "image.nii")
    for data in (torch.rand(1, 5, 4, 3), torch.full((1, 5, 4, 3), 70000)):
        write_nifti(tmp_path / "b.nii", like.with_data(data), like=tmp_path / "image.nii")
        back = read_nifti(tmp_path / "b.nii").data
        assert back.dtype == data.dtype
        assert torch.equal(back, data)


def test_like_never_wraps_integers(tmp_path):
    """A cast that wraps gives the values back when it is undone."""
    nibabel_file(tmp_path / "image.nii", values("u2"))
    like = read_nifti(tmp_path / "image.nii")
    for low, dtype in ((-5, torch.int16), (-5, torch.int64), (0, torch.int64)):
        data = torch.zeros(1, 5, 4, 3, dtype=dtype)
        data[0, 0, 0, 0] = low
        write_nifti(tmp_path / "b.nii", like.with_data(data), like=tmp_path / "image.nii")
        back = read_nifti(tmp_path / "b.nii").data
        assert back.dtype == (torch.uint16 if low == 0 else dtype)
        assert back.long().min() == low


def test_labels_stay_integers_beside_an_image_of_floats(tmp_path):
    nibabel_file(tmp_path / "image.nii", values("f8"))
    like = read_nifti(tmp_path / "image.nii")
    mask = like.with_data((like.data > 0).byte())
    write_nifti(tmp_path / "b.nii", mask, like=tmp_path / "image.nii")
    assert read_nifti(tmp_path / "b.nii").data.dtype == torch.uint8


def test_like_of_another_grid_gives_the_volumes_own_forms(tmp_path):
    nibabel_file(tmp_path / "image.nii", values("i2"))
    volume = Volume(torch.zeros(1, 2, 2, 2), torch.diag(torch.tensor([5.0, 6, 7, 1])))
    write_nifti(tmp_path / "b.nii", volume, like=tmp_path / "image.nii")
    assert read_nifti(tmp_path / "b.nii").spacing_mm == (5, 6, 7)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float16, torch.bfloat16])
def test_types_that_nifti_lacks_are_widened(tmp_path, dtype):
    data = torch.tensor([0.0, 1.0]).to(dtype).view(1, 2, 1, 1)
    write_nifti(tmp_path / "a.nii", Volume(data, torch.eye(4)))
    back = read_nifti(tmp_path / "a.nii").data
    assert back.dtype == (torch.uint8 if dtype == torch.bool else torch.float32)
    assert torch.equal(back, data.to(back.dtype))


def test_long_axes_become_nifti_2(tmp_path):
    write_nifti(tmp_path / "a.nii", Volume(torch.zeros(1, 40000, 1, 1), torch.eye(4)))
    assert isinstance(nib.load(tmp_path / "a.nii"), nib.Nifti2Image)
    assert read_nifti(tmp_path / "a.nii").shape == (40000, 1, 1)


def test_not_a_number_is_a_value(tmp_path):
    data = torch.tensor([torch.nan, torch.inf, -0.0, 1.0]).view(1, 4, 1, 1)
    write_nifti(tmp_path / "a.nii.gz", Volume(data, torch.eye(4)))
    torch.testing.assert_close(read_nifti(tmp_path / "a.nii.gz").data, data, equal_nan=True)


def test_same_image_same_bytes(tmp_path):
    volume = Volume(torch.arange(60.0).view(1, 5, 4, 3), torch.eye(4))
    write_nifti(tmp_path / "a.nii.gz", volume)
    write_nifti(tmp_path / "b.nii.gz", volume)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_reads_without_isal(tmp_path, monkeypatch):
    volume = Volume(torch.arange(60.0).view(1, 5, 4, 3), torch.eye(4))
    write_nifti(tmp_path / "a.nii.gz", volume)
    monkeypatch.setitem(sys.modules, "isal", None)
    assert type(cmrfast.data.nifti.source._decompressed(io.BytesIO())) is gzip.GzipFile
    assert torch.equal(read_nifti(tmp_path / "a.nii.gz").data, volume.data)
    write_nifti(tmp_path / "b.nii.gz", volume)
    assert torch.equal(read_nifti(tmp_path / "b.nii.gz").data, volume.data)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 6)] * 4))
def test_any_strides_return(tmp_path_factory, seed, shape):
    data = torch.randint(-99, 99, shape, generator=torch.Generator().manual_seed(seed % 2**31))
    permuted = data.permute(0, 3, 1, 2).flip(1)
    path = tmp_path_factory.mktemp("strides") / "a.nii"
    write_nifti(path, Volume(permuted, torch.eye(4)))
    assert torch.equal(read_nifti(path).data, permuted)


def test_real_images_agree_with_nibabel(real_images):
    files = sorted(real_images.rglob("*.nii.gz"))
    assert files
    for path in files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # EMIDEC's sform
            volume = read_nifti(path)
        other = nib.load(path)
        data = np.asanyarray(other.dataobj)
        ours = volume.data.numpy()
        np.testing.assert_array_equal(ours[0] if data.ndim == 3 else np.moveaxis(ours, 0, -1), data)
        np.testing.assert_allclose(volume.spacing_mm, other.header.get_zooms()[:3], rtol=1e-3)
        if "emidec" not in str(path):
            np.testing.assert_array_equal(volume.world_from_vox.numpy(), other.affine)
        assert read_header(path).shape == tuple(volume.data.shape)
