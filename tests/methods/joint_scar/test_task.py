"""joint_scar on images: slices in, batches out, masks back on the image's grid."""

import logging
from dataclasses import fields, replace

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cmrfast import methods
from cmrfast.data import Volume, open_dataset, read_nifti, write_nifti
from cmrfast.data.cache import Cache
from cmrfast.data.prepare import crop_or_pad
from cmrfast.data.slices import center_slices
from cmrfast.errors import FileError
from cmrfast.methods import Objective
from cmrfast.methods.joint_scar import METHOD
from cmrfast.methods.joint_scar.images import network_view, probabilities, segment
from cmrfast.methods.joint_scar.task import SLICES, JointScarTask
from cmrfast.models import build, joint_scar
from cmrfast.models.joint_scar import RECIPE, Config, JointScar
from tests.support.batches import pure_batch
from tests.support.cases import phantoms, without

NARROW = Config(
    image=64,
    root=32,
    units=(1, 1, 1),
    width=16,
    depth=1,
    heads=2,
    hidden=32,
    decoder=(16, 16, 8, 8, 8),
)
STILL = replace(RECIPE, rotate_deg=0, scale=(1.0, 1.0), translate_share=0, shear_deg=0)


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint_scar")
    return {
        layout: phantoms(layout, folder / layout, cases=4, shrink=4) for layout in METHOD.datasets
    }


@pytest.fixture(scope="module")
def ill(cohorts):
    """A patient of EMIDEC with an infarct."""
    return next(case for case in cohorts["emidec"] if case.name.startswith("Case_P"))


class Oracle(nn.Module):
    """Knows the drawn masks of every slice that it may be shown."""

    def __init__(self, task, cases):
        super().__init__()
        self.config = task.config
        self.nothing = nn.Parameter(torch.zeros(1))
        known = [task.prepared(SLICES, case) for case in cases]
        self.images = torch.cat([tensors["images"] for tensors in known])
        self.labels = torch.cat([tensors["labels"] for tensors in known])
        self.eval()

    def forward(self, images, myocardium=None):
        found = (images[:, None] == self.images).flatten(2).all(2).long().argmax(1)
        logits = 20.0 * self.labels[found] - 10.0  # (B, 2, H, W)
        names = ("scar",) if self.config.variant == "direct" else ("myocardium", "scar")
        return {
            name: torch.stack((-mask, mask), 1)
            for name, mask in zip(("myocardium", "scar"), logits.unbind(1), strict=True)
            if name in names
        }


def test_the_task_is_found_and_its_recipe_is_the_papers():
    assert methods.get("joint_scar") is METHOD
    assert METHOD.task is JointScarTask
    assert METHOD.datasets == ("emidec", "myops")
    assert (RECIPE.lr, RECIPE.batch, RECIPE.epochs) == (4.73e-4, 40, 500)
    assert RECIPE.weight_decay == 5.58e-6
    assert RECIPE.split[0] + RECIPE.split[1] == 140
    names = [{field.name for field in fields(kind)} for kind in (Config, joint_scar.Recipe)]
    assert not names[0] & names[1]


@pytest.mark.parametrize("variant", ["jdl", "two_step", "direct", "mtl"])
@pytest.mark.parametrize("scar_decay", [None, 0.5])
def test_each_network_decays_by_its_own_beta(variant, scar_decay):
    narrow = {"image": 32, "root": 32, "units": (1, 1, 1), "width": 8, "depth": 1, "heads": 2}
    model = build("joint_scar", variant=variant, **narrow)
    recipe = joint_scar.Recipe(lr=1.0, weight_decay=0.25, weight_decay_scar=scar_decay)
    optimiser = recipe.optimiser("model", model)
    decays = {
        weight: group["weight_decay"]
        for group in optimiser.param_groups
        for weight in group["params"]
    }
    assert len(decays) == len(list(model.parameters()))
    for name, weight in model.named_parameters():
        of_scar = name.startswith("scar.") and scar_decay is not None
        assert decays[weight] == (scar_decay if of_scar else 0.25), name


def test_a_negative_beta_is_refused():
    with pytest.raises(ValueError, match=r"weight_decay_scar must be >= 0; got -1"):
        joint_scar.Recipe(weight_decay_scar=-1.0)


def test_a_threshold_is_a_probability():
    with pytest.raises(ValueError, match=r"^joint_scar: threshold must lie in \[0, 1\]; got 2.0$"):
        joint_scar.Recipe(threshold=2.0)


@pytest.mark.parametrize("split", [(-1, 0, 0), (0, 1, 1), (1, -1, 1)])
def test_a_split_trains_on_someone_and_has_no_negative_part(split):
    with pytest.raises(ValueError, match=r"^Recipe: split must start with a positive number and"):
        joint_scar.Recipe(split=split)


def test_dice_may_be_taken_over_the_batch():
    torch.manual_seed(0)
    logits = torch.randn(3, 2, 8, 8)
    labels = torch.zeros(3, 8, 8, dtype=torch.int64)
    labels[0, :4] = 1  # two of the three slices hold no scar
    batch = {"scar": labels}
    per_image, of_batch = (
        joint_scar.loss({"scar": logits}, batch, Config(variant="direct", dice_over=over))["loss"]
        for over in ("image", "batch")
    )
    p = logits.softmax(1)[:, 1]
    cross_entropy = torch.nn.functional.cross_entropy(logits, labels)
    dice = 2 * (p * labels).sum() / (p.sum() + labels.sum())
    torch.testing.assert_close(of_batch, cross_entropy + 1 - dice, rtol=1e-5, atol=1e-6)
    assert per_image > of_batch
    assert METHOD.mean_loss(Config())
    assert not METHOD.mean_loss(Config(dice_over="batch"))  # parts of a batch do not add up
    with pytest.raises(ValueError, match="dice_over must be one of image, batch; got 'all'"):
        Config(dice_over="all")


@pytest.mark.parametrize("layout", METHOD.datasets)
def test_batches_are_what_the_network_takes(cohorts, layout):
    feed = JointScarTask(NARROW, RECIPE).feed(cohorts[layout], seed=0)
    assert len(feed) == sum(case.image("LGE").shape[2] for case in cohorts[layout])
    batch = feed.batch(0, torch.arange(len(feed)))
    assert set(batch) == {"images", "myocardium", "scar"}
    images, myocardium, scar = (batch[k] for k in ("images", "myocardium", "scar"))
    assert images.shape == (len(feed), 1, 64, 64)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert 0.5 < images.max() <= 1
    for mask in (myocardium, scar):
        assert mask.shape == (len(feed), 64, 64)
        assert mask.dtype == torch.uint8
        assert mask.unique().tolist() == [0, 1]
    assert (scar <= myocardium).all()
    outputs = JointScar(NARROW)(images[:2], myocardium[:2])
    assert joint_scar.loss(outputs, {k: v[:2] for k, v in batch.items()})["loss"].isfinite()


def test_a_batch_depends_on_epoch_and_samples_alone(cohorts):
    feed = JointScarTask(NARROW, RECIPE).feed(cohorts["emidec"], seed=3)
    one = pure_batch(feed, 2, [5, 0, 9])
    other = JointScarTask(NARROW, RECIPE).feed(cohorts["emidec"], seed=4)
    for later in (feed.batch(3, torch.tensor([5, 0, 9])), other.batch(2, torch.tensor([5, 0, 9]))):
        assert not torch.equal(later["images"], one["images"])


def test_every_slice_is_changed_image_and_masks_alike(cohorts):
    task = JointScarTask(NARROW, RECIPE)
    feed = task.feed(cohorts["emidec"], seed=0)
    plain = JointScarTask(NARROW, STILL).feed(cohorts["emidec"], seed=0)
    samples = torch.arange(len(feed))
    still = plain.batch(0, samples)
    for name, stored in (("images", feed.images), ("scar", feed.labels[:, 1])):
        assert torch.equal(still[name], stored)
    drawn = feed.labels[:, 0].sum((1, 2)) > 0
    moved = feed.batch(0, samples)
    changed = (moved["images"] != still["images"]).flatten(1).any(1)
    assert changed.all()
    assert (moved["myocardium"] != feed.labels[:, 0]).flatten(1).any(1)[drawn].all()
    # Discs as image and masks: linear and nearest must tell of one place.
    i, j = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    feed.labels[:] = (i - 28) ** 2 + (j - 34) ** 2 < 15**2
    feed.images = feed.labels[:, :1].float()
    turned = feed.batch(0, samples)
    area = turned["scar"].float().sum((1, 2))
    apart = (turned["images"][:, 0] > 0.5) != (turned["scar"] > 0)
    assert (apart.sum((1, 2)) < 0.05 * area).all()
    assert torch.equal(turned["scar"], turned["myocardium"])
    factor = (area / feed.labels[0, 0].sum()).sqrt()
    assert 0.88 < factor.min() < 0.95
    assert 1.05 < factor.max() < 1.12


def test_preparation_is_the_plain_statement(cohorts):
    case = cohorts["myops"][0]
    prepared = JointScarTask(NARROW, RECIPE).prepared(SLICES, case)
    image = nibabel.load(case.images["LGE"]).get_fdata()
    label = nibabel.load(case.labels["LGE"]).get_fdata()
    assert image.shape[0] > 64 > 60
    first = [n // 2 - 32 for n in image.shape[:2]]
    box = tuple(slice(f, f + 64) for f in first)
    for k in range(image.shape[2]):
        values = image[..., k][box]
        low, high = values[values != 0].min(), values.max()
        expected = np.clip((values - low) / (high - low), 0, 1)
        np.testing.assert_allclose(prepared["images"][k, 0].numpy(), expected, atol=1e-6)
        drawn = np.isin(label[..., k], [200, 1220, 2221]), label[..., k] == 2221
        for mask, values in zip(prepared["labels"][k], drawn, strict=True):
            assert np.array_equal(mask.numpy(), values[box])


def test_filled_borders_and_missing_values_do_not_count():
    slices = torch.full((3, 32, 32), 2000.0)
    slices[0, 5:9] = 3000.0
    slices[0, :4] = 0.0
    slices[1, 0, 0] = float("nan")
    slices[1, 1, 1] = -500.0
    slices[2] = 0.0
    view = network_view(slices, 32)
    assert view[0, 0, 0, 0] == 0
    assert view[0, 0, 4, 0] == 0
    assert view[0, 0, 5, 0] == 1
    assert (view[1, 0].flatten()[[0, 33, 34]] == torch.tensor([0.0, 0.0, 1.0])).all()
    assert (view[2] == 0).all()
    signed = torch.linspace(-2, 2, 32 * 32).view(1, 32, 32)
    signed[0, 20, 20] = 0.0  # an ordinary value in the middle of the range
    assert network_view(signed, 32)[0, 0, 20, 20] == pytest.approx(0.5)


@settings(max_examples=60, deadline=None)
@given(*[st.integers(1, 40)] * 4)
def test_a_second_time_brings_back_what_was_kept(i, j, m, n):
    slices = torch.rand(2, i, j)
    box = center_slices(slices, (m, n))
    expected, _ = crop_or_pad(slices, torch.eye(4), (m, n))
    assert torch.equal(box, expected)
    back = center_slices(box, (i, j))
    assert torch.equal(
        back, center_slices(center_slices(torch.ones(2, i, j), (m, n)), (i, j)) * slices
    )
    if m >= i and n >= j:
        assert torch.equal(back, slices)


@pytest.mark.parametrize("layout", METHOD.datasets)
@pytest.mark.parametrize("variant", ["jdl", "direct"])
def test_drawn_masks_score_perfectly_through_the_whole_path(cohorts, layout, variant):
    task = JointScarTask(replace(NARROW, image=128, variant=variant), RECIPE)
    case = cohorts[layout][1]
    rows = task.evaluate(Oracle(task, [case]), case)
    scores = {"scar_dice", "scar_precision", "scar_recall"}
    scores |= {"myocardium_dice"} if variant == "jdl" else set()
    assert [row.ids["slice"] for row in rows] == list(range(case.image("LGE").shape[2]))
    for row in rows:
        assert set(row.ids) == {"case", "slice", "scar_pixels"}
        assert row.case == case.name
        assert row.scores == dict.fromkeys(scores, 1)
        assert row.present["scar"] == ("both" if row.ids["scar_pixels"] else "neither")
        assert {METHOD.overlaps[score] for score in scores} == row.present.keys()
    assert METHOD.objective == Objective("scar_dice", maximise=True, structure="scar")
    assert METHOD.objective.name in scores


def test_what_the_square_cuts_off_counts_as_missed(ill, tmp_path):
    image, label = ill.image("LGE"), ill.label("LGE")
    reach = (label.data >= 2).any(3)[0].any(1).nonzero()
    shift = 12 - int(reach.float().mean())  # brings the heart's middle to the square's border
    paths = {kind: tmp_path / f"{kind}.nii.gz" for kind in ("image", "label")}
    write_nifti(paths["image"], image.with_data(image.data.roll(shift, 1)))
    write_nifti(paths["label"], label.with_data(label.data.roll(shift, 1)))
    case = replace(ill, images={"LGE": paths["image"]}, labels={"LGE": paths["label"]})
    task = JointScarTask(replace(NARROW, image=32), RECIPE)
    rows = task.evaluate(Oracle(task, [case]), case)
    drawn = (label.data >= 2).sum((0, 1, 2)).tolist()
    assert sum(heart > max(drawn) / 2 for heart in drawn) >= 3
    for row, heart in zip(rows, drawn, strict=True):
        myocardium_dice = row.scores["myocardium_dice"]
        if heart > max(drawn) / 2:  # near the apex the heart is too small to be cut in the middle
            assert 0.2 < myocardium_dice < 0.95
        elif not heart:
            assert myocardium_dice == 1
        assert row.scores["scar_precision"] in (0, 1)


def test_predictions_lie_on_the_image(ill, tmp_path):
    task = JointScarTask(NARROW, RECIPE)
    prediction = task.predict(Oracle(task, [ill]), without(ill, labels=["LGE"]))
    truth = nibabel.load(ill.labels["LGE"])
    values = np.asanyarray(truth.dataobj)
    voxel_ml = np.prod(truth.header.get_zooms()[:3]) / 1000
    for name, of in (("myocardium", (2, 3, 4)), ("scar", (3, 4))):
        output = prediction.images[name]
        write_nifti(tmp_path / f"{name}.nii.gz", output.volume, output.like)
        written = nibabel.load(tmp_path / f"{name}.nii.gz")
        np.testing.assert_array_equal(written.affine, nibabel.load(ill.images["LGE"]).affine)
        np.testing.assert_array_equal(np.asanyarray(written.dataobj), np.isin(values, of))
        assert read_nifti(tmp_path / f"{name}.nii.gz").shares_grid(ill.image("LGE"))
        ml = np.isin(values, of).sum() * voxel_ml
        assert prediction.facts[f"{name}_ml"] == pytest.approx(ml, rel=1e-5)
    share = prediction.facts["scar_ml"] / prediction.facts["myocardium_ml"]
    assert 0 < prediction.facts["scar_share"] == share < 1


def test_a_picture_shows_both_masks(ill):
    task = JointScarTask(NARROW, RECIPE)
    oracle = Oracle(task, [ill])
    picture = task.picture(oracle, ill)
    label = ill.label("LGE").data
    expected = (label >= 2).byte() + (label >= 3).byte()
    assert torch.equal(picture.predicted.data, expected)
    assert torch.equal(picture.reference.data, expected)
    assert torch.equal(picture.image.data, ill.image("LGE").data)
    assert picture.maps.keys() == {"myocardium", "scar"}
    joined = torch.maximum(
        *(n * (picture.maps[x].data > 0.5) for n, x in ((1, "myocardium"), (2, "scar")))
    )
    assert torch.equal(joined, picture.predicted.data)
    assert task.picture(oracle, without(ill, labels=["LGE"])).reference is None
    oracle.config = replace(NARROW, variant="direct")
    assert torch.equal(task.picture(oracle, ill).predicted.data, 2 * (label >= 3).byte())


def test_time_points_are_images_of_their_own_and_batches_change_nothing():
    model = JointScar(NARROW).eval()
    both = Volume(torch.rand(2, 70, 50, 3), torch.eye(4))
    together = probabilities(model, both, batch=5)
    for name, found in together.items():
        assert found.data.dtype == torch.float32
        assert (found.data[:, :3] == 0).all()  # beyond the square of 64 in 70
        apart = [
            probabilities(model, both.__class__(channel[None], torch.eye(4)), batch=1)[name].data
            for channel in both.data
        ]
        torch.testing.assert_close(found.data, torch.cat(apart), rtol=1e-4, atol=1e-5)
    masks = segment(model, both, threshold=0.4)
    assert torch.equal(masks["scar"].data, (together["scar"].data > 0.4).byte())
    with pytest.raises(ValueError, match="joint_scar: model must be in evaluation mode"):
        segment(model.train(), both)


def test_cases_with_gaps_are_left_out_by_name(cohorts, caplog):
    task = JointScarTask(NARROW, RECIPE)
    cases = [without(cohorts["emidec"][0], labels=["LGE"]), cohorts["emidec"][1]]
    with caplog.at_level(logging.WARNING):
        feed = task.feed(cases, seed=0)
    assert len(feed) == cases[1].image("LGE").shape[2]
    assert f"joint_scar: {cases[0].name} is left out: label:" in caplog.text
    with pytest.raises(FileError, match=r"none of 1 cases can be used: label: .* has no LGE label"):
        task.feed(cases[:1], seed=0)
    with pytest.raises(FileError, match="none of 0 cases can be used: there are no cases"):
        task.feed([], seed=0)
    assert task.evaluate(JointScar(NARROW).eval(), cases[0]) == []


def test_a_mask_must_lie_on_its_image(ill, tmp_path):
    image = ill.image("LGE")
    model = JointScar(NARROW).eval()
    other = tmp_path / "mask.nii.gz"
    write_nifti(other, Volume(torch.zeros(1, *image.shape).byte(), torch.eye(4)))
    odd = replace(ill, labels={"LGE": other})
    with pytest.raises(FileError, match=r"mask\.nii\.gz must be one mask on the grid of its image"):
        JointScarTask(NARROW, RECIPE).evaluate(model, odd)
    write_nifti(other, image.with_data(image.data.repeat(2, 1, 1, 1)))
    odd = replace(ill, images={"LGE": other})
    with pytest.raises(FileError, match=r"mask\.nii\.gz must have 1 channel; got 2 channels or"):
        JointScarTask(NARROW, RECIPE).evaluate(model, odd)


def test_prepared_slices_come_from_the_cache(ill, tmp_path):
    plain = JointScarTask(NARROW, RECIPE).prepared(SLICES, ill)
    for config in (NARROW, NARROW, replace(NARROW, image=32)):
        task = JointScarTask(config, RECIPE, cache=Cache(tmp_path))
        stored = task.prepared(SLICES, ill)
        if config is NARROW:
            assert all(torch.equal(stored[name], plain[name]) for name in plain)
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(FileError, match="has no LGE label"):
        task.feed([without(ill, labels=["LGE"])], seed=0)


@pytest.mark.parametrize("variant", ["jdl", "two_step", "direct", "mtl"])
def test_a_few_steps_lower_the_loss(ill, variant):
    config = replace(NARROW, variant=variant, dropout=0.0)
    task = JointScarTask(config, STILL)
    feed = task.feed([ill], seed=0)
    model = JointScar(config)
    optimiser = torch.optim.Adam(model.parameters(), 2e-3, weight_decay=RECIPE.weight_decay)
    losses = []
    for epoch in range(12):
        batch = feed.batch(epoch, torch.arange(4))
        outputs = model(*(batch[name] for name in METHOD.inputs))
        optimiser.zero_grad()
        loss = joint_scar.loss(outputs, batch, config)["loss"]
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_organisers_sample(real_images, tmp_path):
    case = open_dataset("emidec", real_images / "emidec_samples")[0]
    task = JointScarTask(replace(NARROW, image=224), RECIPE)
    feed = task.feed([case], seed=0)
    batch = feed.batch(0, torch.arange(len(feed)))
    assert batch["scar"].any()
    assert (feed.images.amax((1, 2, 3)) == 1).all()
    rows = task.evaluate(Oracle(task, [case]), case)
    scores = ("scar_dice", "scar_precision", "scar_recall", "myocardium_dice")
    assert all(row.scores[score] == 1 for row in rows for score in scores)
    output = task.predict(Oracle(task, [case]), case).images["scar"]
    write_nifti(tmp_path / "scar.nii.gz", output.volume, output.like)
    ours, theirs = (nibabel.load(p).header for p in (tmp_path / "scar.nii.gz", output.like))
    for field in ("pixdim", "sform_code", "qform_code", "srow_x", "srow_y", "srow_z"):
        np.testing.assert_array_equal(ours[field], theirs[field])
