"""What notebooks show: short words, pictures in true proportions, tables."""

import base64
import io
import re

import numpy as np
import pytest
import torch

import cmrfast
from cmrfast.data import Volume, open_dataset
from cmrfast.data.notebook import middle_planes, table
from cmrfast.ops import VolumeStore
from tests.support.cases import phantoms


def gradient(*shape, spacing=(1.5, 1.5, 8.0)):
    data = torch.arange(np.prod(shape), dtype=torch.float32).view(1, *shape)
    return Volume(data, np.diag([*spacing, 1.0]))


def shown(page):
    """Pixels, width and height of each picture of a page."""
    from matplotlib.image import imread

    found = re.findall(r'width="(\d+)" height="(\d+)" src="data:image/png;base64,([^"]+)"', page)
    return [(imread(io.BytesIO(base64.b64decode(p))), int(w), int(h)) for w, h, p in found]


def test_a_volume_is_told_in_a_line():
    assert repr(gradient(40, 50, 12)) == ("Volume(40 x 50 x 12 float32, 1.5 x 1.5 x 8 mm, RAS)")
    two = Volume(torch.zeros(2, 4, 4, 3, dtype=torch.int16), torch.eye(4))
    assert repr(two) == "Volume(2 x 4 x 4 x 3 int16, 1 x 1 x 1 mm, RAS)"


def test_pictures_have_the_proportions_of_the_patient():
    volume = gradient(40, 50, 12)
    pictures = shown(volume._repr_html_())
    assert [p.shape[:2] for p, _, _ in pictures] == [(50, 40), (12, 40), (12, 50)]
    for (_, width, height), (across, up) in zip(pictures, ((0, 1), (0, 2), (1, 2)), strict=True):
        mm = [volume.shape[n] * volume.spacing_mm[n] for n in (across, up)]
        assert height / width == pytest.approx(mm[1] / mm[0], abs=0.02)
    first = volume.data[0, :, :, 6]
    low, high = pictures[0][0][-1, 0], pictures[0][0][0, -1]  # rows run from the bottom up
    assert low < high
    assert first[0, 0] < first[-1, -1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3.0])
def test_odd_values_are_shown(value):
    volume = Volume(torch.full((1, 3, 4, 5), value), torch.eye(4))
    assert len(shown(volume._repr_html_())) == 3
    for pixels, _ in middle_planes(volume.data[0], volume.spacing_mm):
        assert pixels.isfinite().all()


def test_an_empty_volume_has_a_table_alone():
    assert not shown(Volume(torch.zeros(0, 3, 4, 5), torch.eye(4))._repr_html_())


def test_a_plot_names_its_planes():
    figure = gradient(8, 9, 4).plot()
    assert [axes.get_title() for axes in figure.axes] == [
        f"middle of the {n} axis" for n in ("third", "second", "first")
    ]
    with pytest.raises(ValueError, match="plot: channel must be one of 1; got 1"):
        gradient(8, 9, 4).plot(channel=1)


def test_cases_and_data_sets_are_told_in_a_line(tmp_path):
    dataset = open_dataset("t1_lge", phantoms("t1_lge", tmp_path, cases=2, shrink=3).root)
    assert repr(dataset).endswith("2 cases)")
    assert "/" not in repr(dataset[0])
    assert repr(dataset[0]).startswith("Case('subject01'; images: ")
    page = dataset[0]._repr_html_()
    assert len(shown(page)) == 3
    assert page.count("<tr>") == 1 + len(dataset[0].images) + len(dataset[0].labels)
    next(iter(dataset[0].images.values())).write_bytes(b"none")
    assert "none" not in shown(dataset[0]._repr_html_())
    assert "subject02" in dataset._repr_html_()


def test_tables_escape_what_files_are_called():
    assert "<script>" not in table([("<script>", "a & b")])
    assert "a &amp; b" in table([("x", "a & b")])


def test_a_store_is_told_in_a_line():
    store = VolumeStore([torch.zeros(1, 20, 30, 20), torch.zeros(1, 24, 24, 18)])
    assert repr(store) == "VolumeStore(2 volumes, 3-D, 1 channel, float32, 0.0853 MiB on cpu)"


def test_parts_of_the_package_are_there_without_further_imports():
    assert cmrfast.ops.resample
    assert set(dir(cmrfast)) >= {"data", "losses", "models", "ops"}
    with pytest.raises(AttributeError, match="module 'cmrfast' has no attribute 'nothing'"):
        _ = cmrfast.nothing
