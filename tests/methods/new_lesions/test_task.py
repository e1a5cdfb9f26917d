"""new_lesions as a task: the paper's recipe, real images, and what cannot be used."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from cmrfast import FileError
from cmrfast.data import Volume, open_dataset, write_nifti
from cmrfast.methods.new_lesions.images import align
from cmrfast.methods.new_lesions.task import NORMALISED
from cmrfast.models.new_lesions import RECIPE, Config, Recipe
from tests.support.new_lesions_cases import SMALL, TASK, Oracle, fitted, pair_of


def test_recipe_is_the_papers():
    last = RECIPE.lr * RECIPE.lr_factor ** (RECIPE.epochs - 1)
    assert last == pytest.approx(6.569281e-5)
    assert 40 * RECIPE.per_patient / RECIPE.batch == 872
    assert (RECIPE.patch, RECIPE.overlap, RECIPE.threshold) == (56, 14, 0.6)
    assert not {f.name for f in fields(Recipe)} & {f.name for f in fields(Config)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing_mm": 0.0}, "spacing_mm must be positive; got 0.0"),
        ({"patch": 20}, "patch must be a multiple of 8; got 20"),
        ({"patch": 16, "overlap": 16}, "overlap must be 0 to 15; got 16"),
        ({"per_patient": 0}, "per_patient must be at least 1; got 0"),
        ({"threshold": 1.5}, r"threshold must lie in \[0, 1\]; got 1.5"),
        ({"stored": "int8"}, "stored must be one of float16, float32; got 'int8'"),
    ],
)
def test_recipe_messages(changes, message):
    with pytest.raises(ValueError, match=f"^new_lesions: {message}$"):
        Recipe(**changes)


def test_real_images(real_images):
    """Thick slices of two patients; the mask of one overlays its image."""
    cases = open_dataset("open_ms", real_images / "open_ms_longitudinal")
    task = fitted(cases[:1], replace(SMALL, spacing_mm=3.0))
    landmarks = task.fitted["landmarks"]
    assert landmarks == sorted(landmarks)
    assert (landmarks[0], landmarks[-1]) == (0, pytest.approx(100))
    prepared = task.prepared(NORMALISED, cases[0])
    volume = prepared["masks"][0].sum() * 27
    label = cases[0].label("consensus")
    assert volume == pytest.approx(int(label.data.sum()) * np.prod(label.spacing_mm), rel=0.1)
    new = prepared["images"][1] - prepared["images"][0]
    assert new[prepared["masks"][0] > 0].mean() > 1  # brighter than before
    prediction = task.predict(Oracle(), cases[0])
    assert prediction.images["new_lesions"].volume.shares_grid(cases[0].image("later"))
    (row,) = task.evaluate(Oracle(), cases[0])
    assert row.scores["dice"] > 0.2  # the oracle knows no more than brightness


def test_patients_that_lack_something(task, cases, tmp_path):
    blind = replace(cases[0], labels={})
    unpaired = replace(cases[1], images={"later": cases[1].images["later"]})
    assert len(task.feed([blind, unpaired, cases[1]], seed=0)) == SMALL.per_patient
    message = (
        r"^new_lesions: none of 2 cases can be used: "
        rf"label: {blind.name} has no consensus label; it has none; "
        rf"image: {unpaired.name} has no earlier image; it has later$"
    )
    for call in (task.fit, lambda c: task.feed(c, seed=0)):
        with pytest.raises(FileError, match=message):
            call([blind, unpaired])
    assert task.evaluate(Oracle(), blind) == []
    assert task.picture(Oracle(), blind).reference is None
    with pytest.raises(FileError, match=r"has no earlier image"):
        task.predict(Oracle(), unpaired)
    one = replace(
        cases[0], labels={k: v for k, v in cases[0].labels.items() if k in ("consensus", "rater2")}
    )
    masks = TASK(Config(), SMALL, task.fitted).prepared(NORMALISED, one)["masks"]
    for channel, of in ((1, 0), (3, 0), (4, 0)):
        assert torch.equal(masks[channel], masks[of])
    assert not torch.equal(masks[2], masks[0])


def test_patients_whose_images_show_nothing_are_named_and_left_out(task, cases, tmp_path):
    blank, constant = tmp_path / "blank.nii.gz", tmp_path / "constant.nii.gz"
    later = cases[0].image("later")
    write_nifti(blank, later.with_data(torch.zeros_like(later.data)))
    write_nifti(constant, later.with_data(torch.full_like(later.data, 5)))
    no_brain = replace(cases[0], images={"earlier": blank, "later": blank})
    one_blank = replace(cases[0], images={**cases[0].images, "earlier": constant})
    feed = task.feed([no_brain, one_blank, cases[1]], seed=0)
    assert len(feed) == SMALL.per_patient
    landmarks = task.fit([no_brain, one_blank, cases[1]])["landmarks"]
    assert landmarks == task.fit(cases[1:2])["landmarks"]
    name = cases[0].name
    no_brain_message = rf"^{name}: new_lesions: there must be brain in the later image's box"
    one_intensity = rf"^{name}: standardise_histogram: the volume has one intensity"
    for case, message in ((no_brain, no_brain_message), (one_blank, one_intensity)):
        with pytest.raises(FileError, match=message):
            task.evaluate(Oracle(), case)
    with pytest.raises(FileError, match=no_brain_message):
        task.require_scorable(no_brain)
    task.require_scorable(cases[0])
    with pytest.raises(FileError, match=rf"{name}: histogram_landmarks: image 0 has one intensity"):
        task.fit([one_blank])


def test_messages(cases):
    earlier, later = pair_of(cases[0])
    with pytest.raises(ValueError, match=r"^new_lesions: fitted must hold landmarks, from fit"):
        TASK(Config(), SMALL).feed(cases[:1], seed=0)
    two = Volume(later.data.repeat(2, 1, 1, 1), later.world_from_vox)
    with pytest.raises(ValueError, match=r"^new_lesions: later must have one channel; got 2$"):
        align(earlier, two)
    holed = earlier.with_data(earlier.data.float())
    holed.data[0, 3, 3, 3] = torch.nan
    with pytest.raises(ValueError, match=r"^new_lesions: earlier must be finite; got 1 NaN or inf"):
        align(holed, later)
    nowhere = later.with_data(torch.zeros_like(later.data))
    with pytest.raises(ValueError, match=r"^new_lesions: there must be brain in the later image's"):
        align(earlier, later, [nowhere])


@pytest.mark.parametrize(
    ("device", "patch", "windows"), [("cpu", 56, 2), ("cuda", 56, 16), ("cpu", 112, 1)]
)
def test_a_gpu_gets_more_windows_at_a_time(device, patch, windows):
    own = TASK(Config(), Recipe(patch=patch), device=device)
    assert own.predict_batch == windows
