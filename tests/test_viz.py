"""Overlays: proportions, sides and colours of the pictures, checked pixel by pixel."""

import io

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from cmrfast import FileError
from cmrfast.data import Volume, open_dataset
from cmrfast.viz import COLOURS, overlay


def pixels(png):
    return matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]


def volume(shape, spacing=(1.0, 1.0, 5.0), signs=(-1, -1, 1), data=None):
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.diag(torch.tensor(spacing) * torch.tensor(signs))
    return Volume(torch.ones(1, *shape) if data is None else data, matrix)


def bright(picture):
    """Rows and columns of the picture where the image is white."""
    white = (picture > 0.9).all(axis=-1)
    return np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))


@pytest.mark.parametrize(
    ("shape", "spacing", "ratio"),
    [((40, 40, 1), (1, 1, 5), 1), ((40, 40, 1), (2, 1, 5), 2), ((20, 60, 1), (1.5, 1, 5), 0.5)],
)
def test_the_picture_has_the_bodys_proportions(shape, spacing, ratio):
    height, width, _ = pixels(overlay(volume(shape, spacing))).shape
    assert width / height == pytest.approx(ratio, rel=0.02)


@pytest.mark.parametrize("signs", [(-1, -1, 1), (1, -1, 1), (-1, 1, 1), (1, 1, -1)])
def test_the_patients_left_is_on_the_right_whatever_is_stored(signs):
    """A bright block at the patient's left and back ends in the lower right corner."""
    left = slice(30, 40) if signs[0] < 0 else slice(0, 10)
    back = slice(30, 40) if signs[1] < 0 else slice(0, 10)
    data = torch.full((1, 40, 40, 1), 1.0)
    data[0, left, back] = 100
    rows, columns = bright(pixels(overlay(volume((40, 40, 1), signs=signs, data=data)))[10:-10])
    size = pixels(overlay(volume((40, 40, 1)))).shape[0]
    assert np.median(rows) > 0.75 * size
    assert np.median(columns) > 0.75 * size


def test_axes_that_run_to_the_feet_go_down():
    """Coronal slices, as sagittal or short-axis stacks have them: I to the feet, J to the left."""
    matrix = torch.tensor([[0, -1, 0, 0], [0, 0, 5, 0], [-1, 0, 0, 0], [0, 0, 0, 1.0]])
    data = torch.full((1, 40, 20, 1), 1.0)
    data[0, 30:, 4:8] = 100
    picture = pixels(overlay(Volume(data, matrix)))
    assert picture.shape[0] / picture.shape[1] == pytest.approx(2, rel=0.02)
    rows, columns = bright(picture[:-25, 20:])
    assert np.median(rows) > 0.7 * picture.shape[0]
    assert np.median(columns) < 0.4 * picture.shape[1]


def test_labels_are_tinted_where_they_are():
    image = volume((40, 40, 1), data=torch.zeros(1, 40, 40, 1))
    data = torch.zeros(1, 40, 40, 1, dtype=torch.uint8)
    data[0, 10:20, 10:20], data[0, 24:34, 10:20] = 1, 2
    picture = pixels(overlay(image, image.with_data(data), names={1: "lv", 2: "scar"}))
    side = picture.shape[1]  # the legend is below
    for value, i in ((1, 15), (2, 29)):
        at = picture[int(15.5 / 40 * side), int((i + 0.5) / 40 * side)]
        np.testing.assert_allclose(at, 0.25 * np.array(to_rgb(COLOURS[value - 1])), atol=0.02)
        outline = np.abs(picture - to_rgb(COLOURS[value - 1])).max(axis=-1) < 0.2
        columns = np.flatnonzero(outline[: side // 2].any(axis=0)) / side * 40
        assert columns.min() == pytest.approx(i - 5, abs=0.3)
        assert columns.max() == pytest.approx(i + 5, abs=0.3)
    assert picture.shape[0] > side
    assert (picture[side:] > 0.5).any()


def test_slices_with_labels_are_chosen(monkeypatch):
    shown = []
    monkeypatch.setattr("cmrfast.viz._draw", lambda v, image, mask, k, *_: shown.append(k))
    image = volume((4, 4, 60))
    mask = torch.zeros(1, 4, 4, 60, dtype=torch.bool)
    mask[..., [7, 9]] = True
    overlay(image, image.with_data(mask))
    overlay(image)
    overlay(image, slices=[3])
    assert shown[0] == [7, 9]
    assert shown[1] == list(range(2, 60, 5))
    assert shown[2] == [3]


@pytest.mark.parametrize("value", [0.0, 5.0, torch.nan])
def test_an_image_without_contrast_is_drawn(value):
    assert overlay(volume((8, 8, 2), data=torch.full((1, 8, 8, 2), value)))[:4] == b"\x89PNG"


def test_many_slices_leave_few_gaps():
    height, width, _ = pixels(overlay(volume((40, 40, 12)))).shape
    assert width / height == pytest.approx(4 / 3, rel=0.02)


@pytest.mark.parametrize(("columns", "ratio"), [(None, 1.0), (4, 4.0), (9, 4.0), (1, 0.25)])
def test_columns_may_be_chosen(columns, ratio):
    height, width, _ = pixels(overlay(volume((40, 40, 4)), columns=columns)).shape
    assert width / height == pytest.approx(ratio, rel=0.02)


def test_a_long_legend_takes_more_lines():
    mask = torch.zeros(1, 40, 40, 1, dtype=torch.uint8)
    mask[0, :5, 0, 0] = torch.arange(1, 6)
    image = volume((40, 40, 1))
    short, long = (
        pixels(overlay(image, image.with_data(mask), names=dict.fromkeys(range(1, 6), name)))
        for name in ("LV", "left ventricle")
    )
    assert short.shape[1] == long.shape[1]
    assert long.shape[0] > short.shape[0] + 25


def test_same_input_same_bytes_and_file(tmp_path):
    image = volume((8, 8, 2))
    png = overlay(image, path=tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == png == overlay(image)
    with pytest.raises(FileError, match=r"overlay: .*none/a\.png: No such file"):
        overlay(image, path=tmp_path / "none/a.png")


def test_wrong_arguments():
    image = volume((8, 8, 2))
    mask = torch.zeros(1, 8, 8, 2, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"overlay: labels must be integers or bool; got torch.flo"):
        overlay(image, image)
    with pytest.raises(ValueError, match=r"overlay: labels must lie on the volume's grid; got \(8"):
        overlay(image, volume((8, 8, 2), signs=(1, 1, 1), data=mask))
    with pytest.raises(ValueError, match="overlay: labels must have one channel or 1; got 3"):
        overlay(image, image.with_data(mask.expand(3, -1, -1, -1)))
    with pytest.raises(ValueError, match="overlay: channel must be one of 1; got 1"):
        overlay(image, channel=1)
    with pytest.raises(ValueError, match="overlay: columns must be at least 1; got 0"):
        overlay(image, columns=0)
    for slices in ([], [2], [-1]):
        with pytest.raises(ValueError, match="overlay: slices must lie in 0 to 1; got"):
            overlay(image, slices=slices)


def test_a_real_heart(real_images):
    case = open_dataset("acdc", real_images / "sunnybrook_cine")[0]
    picture = pixels(overlay(case.image("4d"), case.label("ED"), channel=18))
    assert picture.std() > 0.1
