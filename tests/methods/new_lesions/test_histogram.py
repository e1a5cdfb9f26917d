"""Histogram standardisation: TorchIO's on real images, gain and offset undone."""

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmrfast.methods.new_lesions.histogram import (
    PERCENTILES,
    histogram_landmarks,
    standardise_histogram,
)


def flairs(folder):
    """Two real FLAIR volumes with their brain masks, by path."""
    patients = folder / "open_ms_longitudinal" / "coregistered"
    return [
        (patients / p / "study1_FLAIR.nii.gz", patients / p / "brainmask.nii.gz")
        for p in ("patient01", "patient12")
    ]


def load(path):
    return torch.from_numpy(np.asarray(nibabel.load(path).dataobj))


def test_histogram_standardisation_equals_torchio_on_real_flair(real_images):
    torchio = pytest.importorskip("torchio")
    pairs = flairs(real_images)
    theirs = torchio.HistogramStandardization.train(
        [image for image, _ in pairs], mask_path=[mask for _, mask in pairs], progress=False
    )
    ours = histogram_landmarks(load(image)[load(mask) != 0] for image, mask in pairs)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-5, atol=1e-4)
    image, mask = load(pairs[0][0])[..., 10:30], load(pairs[0][1])[..., 10:30]
    subject = torchio.Subject(
        flair=torchio.ScalarImage(tensor=image[None].float()),
        brain=torchio.LabelMap(tensor=mask[None]),
    )
    expected = torchio.HistogramStandardization({"flair": theirs}, masking_method="brain")(subject)
    # TorchIO learns 13 landmarks and maps by 11 of them, without the 25th and 75th percentile.
    kept = [n for n, at in enumerate(PERCENTILES) if at not in (25, 75)]
    at = tuple(PERCENTILES[n] for n in kept)
    mapped = standardise_histogram(image, ours[kept], mask=mask, at=at)
    # It works in float32: errors of 1e-7 of the intensities, steepened by the slopes.
    torch.testing.assert_close(mapped, expected.flair.data[0], rtol=1e-4, atol=1e-3)
    all_landmarks = standardise_histogram(image, ours, mask=mask)
    assert 0.01 < (all_landmarks - mapped).abs().max() < 0.5  # of 100


@given(st.floats(0.1, 50), st.floats(-100, 1000))
def test_histogram_standardisation_undoes_gain_and_offset(gain, offset):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(401, generator=generator).double()  # each percentile is one of them
    landmarks = histogram_landmarks([image, image**3])
    assert landmarks[0] == 0
    assert landmarks[-1] == pytest.approx(100)
    plain = standardise_histogram(image, landmarks)
    scaled = standardise_histogram(gain * image + offset, landmarks)
    torch.testing.assert_close(scaled, plain, atol=1e-6, rtol=1e-6)
    assert (plain[image.argsort()].diff() >= 0).all()
    found = torch.from_numpy(np.percentile(plain, (1, 25, 50, 99)))
    torch.testing.assert_close(found, landmarks[[0, 3, 6, 12]], atol=1e-6, rtol=1e-6)


SLICE, VOLUME = torch.zeros(4, 4), torch.zeros(1, 4, 4, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: histogram_landmarks([]), ValueError, "at least one image; got none"),
        (lambda: histogram_landmarks([SLICE[:0]]), ValueError, "image 0 has no voxel"),
        (lambda: histogram_landmarks([SLICE]), ValueError, "image 0 has one intensity"),
        (
            lambda: standardise_histogram(SLICE, torch.zeros(13)),
            ValueError,
            "the volume has one intensity from percentile 1.0 to 99.0; got 0.0",
        ),
        (lambda: standardise_histogram(SLICE, SLICE[0]), ValueError, r"must be \(13,\)"),
        (
            lambda: standardise_histogram(SLICE, torch.zeros(13), mask=VOLUME),
            ValueError,
            "the volume's shape",
        ),
        (
            lambda: standardise_histogram(SLICE, torch.zeros(13), mask=SLICE),
            ValueError,
            "the mask is empty",
        ),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()
