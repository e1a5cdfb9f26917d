"""Preparation of images that several methods share: NumPy's values, grids that agree, messages."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmrfast import ops
from cmrfast.data import prepare
from tests.support.grids import EYE, oblique


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("over", ["volume", "slice"])
def test_intensities_equal_numpy(masked, over):
    volume = 50 + 20 * torch.randn(2, 9, 8, 5)
    mask = torch.rand(9, 8, 5) < 0.6 if masked else torch.ones(9, 8, 5, dtype=torch.bool)
    z = prepare.z_score(volume, mask=mask if masked else None, over=over)
    unit = prepare.min_max(volume, mask=mask if masked else None, over=over)
    for c in range(2):
        for k in range(5):
            part = (c, ..., k) if over == "slice" else (c,)
            inside = mask[part[1:]] if over == "slice" else mask
            values = volume[part][inside].double().numpy()
            expected = (volume[part] - values.mean()) / values.std()
            torch.testing.assert_close(z[part], expected, atol=1e-6, rtol=1e-5)
            expected = (volume[part] - values.min()) / (values.max() - values.min())
            torch.testing.assert_close(unit[part], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float16, torch.float64])
def test_constant_slices_become_zero_and_dtypes_are_kept_wide(dtype):
    volume = torch.stack((torch.full((4, 4), 7), torch.arange(16).view(4, 4)), -1)[None].to(dtype)
    for scale in (prepare.z_score, prepare.min_max):
        scaled = scale(volume, over="slice")
        assert scaled.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert (scaled[..., 0] == 0).all()
        assert scaled[..., 1].unique().numel() == 16
        assert not scale(volume, mask=torch.zeros(4, 4, 2)).any()


@given(
    st.tuples(*[st.integers(1, 40)] * 3),
    st.tuples(*[st.floats(0.3, 4)] * 3),
    st.tuples(*[st.floats(0.3, 4)] * 3),
)
def test_a_grid_of_another_spacing_keeps_box_and_centre(shape, spacing, wanted):
    affine = oblique(spacing)
    new_shape, grid = prepare.spacing_grid(shape, affine, wanted)
    for axis in range(3):
        length = shape[axis] * spacing[axis]
        assert abs(new_shape[axis] * wanted[axis] - length) <= max(0.501 * wanted[axis], 0) or (
            new_shape[axis] == 1
        )
    centres = [
        a @ torch.tensor([*((n - 1) / 2 for n in s), 1.0], dtype=torch.float64)
        for a, s in ((affine, shape), (grid, new_shape))
    ]
    torch.testing.assert_close(*centres)
    found = torch.linalg.vector_norm(grid[:3, :3], dim=0)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint16, torch.uint32, torch.uint64])
def test_labels_keep_their_dtype(dtype):
    labels = torch.tensor([[0, 1, 1, 0]]).to(dtype)
    resampled = prepare.resample_labels(labels, EYE, EYE, (1, 4))
    assert resampled.dtype == dtype
    assert torch.equal(resampled.long(), labels.long())


def test_labels_win_by_the_largest_share():
    labels = torch.randint(0, 4, (6, 7, 5)) * 200
    target = oblique((0.7, 0.8, 1.1))
    start, shape = oblique((1.0, 1.0, 1.5)), (9, 9, 9)
    hot = torch.stack([labels == v for v in (0, 200, 400, 600)]).double()
    shares = torch.cat(
        [ops.resample(h[None], start, target, shape, fill=float(i == 0)) for i, h in enumerate(hot)]
    )
    ours = prepare.resample_labels(labels, start, target, shape)
    clear = shares.topk(2, 0).values
    clear = clear[0] - clear[1] > 1e-5
    assert clear.sum() > 100
    assert torch.equal(ours[clear], 200 * shares.argmax(0)[clear])
    assert ours.dtype == labels.dtype
    assert torch.equal(prepare.resample_labels(labels, start, start, labels.shape), labels)


@given(
    st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 12)] * 3), st.integers(-9, 15)
)
def test_crop_or_pad_keeps_every_voxel_where_it_is(shape, box, center):
    volume = torch.arange(1, math.prod(shape) + 1).view(1, *shape)
    affine = oblique((1.0, 2.0, 3.0))
    boxed, grid = prepare.crop_or_pad(volume, affine, box, center_vox=(center, 2, 3), fill=-5)
    expected = ops.resample(volume, affine, grid, box, mode="nearest", fill=-5)
    assert torch.equal(boxed, expected)
    larger = tuple(n + 3 for n in shape)
    there = prepare.crop_or_pad(volume, affine, larger)
    back = prepare.crop_or_pad(*there, shape)
    assert torch.equal(back[0], volume)
    torch.testing.assert_close(back[1], affine)


SLICE, VOLUME = torch.zeros(4, 4), torch.zeros(1, 4, 4, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: prepare.z_score(VOLUME > 0), TypeError, "real tensor, not bool; got torch.bool"),
        (lambda: prepare.z_score(SLICE), ValueError, r"must be \(C, \*S\); got \(4, 4\)"),
        (lambda: prepare.min_max(VOLUME, over="row"), ValueError, "volume, slice; got 'row'"),
        (lambda: prepare.min_max(VOLUME, mask=SLICE), ValueError, r"mask must be \(4, 4, 4\)"),
        (
            lambda: prepare.spacing_grid((4, 4, 4), EYE, (1, 0, 1)),
            ValueError,
            r"one positive entry per space axis \(3\); got",
        ),
        (lambda: prepare.resample_labels(SLICE, EYE, EYE, (4, 4)), TypeError, "bool or integer"),
        (lambda: prepare.crop_or_pad(VOLUME, EYE, (4, 4)), ValueError, r"axis \(3\), .* \(4, 4\)"),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()
