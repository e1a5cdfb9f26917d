"""siamese_lesion on images: pairs of patches in, classes and a map of T1 out."""

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import nn

from cmrfast.data import Volume, open_dataset, read_nifti, write_nifti
from cmrfast.data.cache import Cache
from cmrfast.data.phantom import write_phantoms
from cmrfast.data.prepare import align_masks, lesion_mask, spacing_grid
from cmrfast.errors import FileError
from cmrfast.infer.siamese_lesion import classify, patch_centers, plane
from cmrfast.models import siamese_lesion
from cmrfast.models.siamese_lesion import RECIPE, Config, Recipe, SiameseLesion
from cmrfast.tasks import siamese_lesion as task_module
from cmrfast.tasks import task_class
from cmrfast.tasks.siamese_lesion import SiameseLesionTask
from cmrfast.tasks.siamese_lesion_pairs import lge_lesion

NARROW = Config(channels=(4, 8, 8, 8), hidden=16, features=8)
BOTH_MASKS = ("t1_myocardium", "lge_myocardium")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("siamese_lesion") / "phantoms"
    return open_dataset("t1_lge", write_phantoms("siamese_lesion", root, cases=4, shrink=3))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def fitted(cohort):
    return SiameseLesionTask(NARROW, RECIPE).fit(cohort)


@pytest.fixture
def task(fitted, cache):
    return SiameseLesionTask(NARROW, RECIPE, fitted, cache=cache)


def without(case, *names):
    kept = [
        {k: v for k, v in files.items() if k not in names} for files in (case.images, case.labels)
    ]
    return replace(case, images=kept[0], labels=kept[1])


class Oracle(nn.Module):
    """Knows the label of every patch that it may be shown, and one feature for all."""

    def __init__(self, task, case, *, sure=20.0):
        super().__init__()
        self.config, self.sure = task.config, sure
        self.nothing = nn.Parameter(torch.zeros(1))
        patches = task._patches([task._pairs(case)])
        self.known = patches.cut(torch.arange(len(patches)))

    def forward(self, t1, lge=None):
        found = (t1[:, None] == self.known["t1"]).flatten(2).all(2).long().argmax(1)
        positive = self.sure * (2 * self.known["labels"][found] - 1)
        same = torch.ones(len(t1), 8)
        paired = {} if self.config.variant == "pure" else {"lge": same}
        return {"logits": torch.stack((-positive, positive), 1), "t1": same, **paired}


class Middle(nn.Module):
    """The logit of lesion is the patch's middle pixel."""

    def __init__(self, patch):
        super().__init__()
        self.config = Config(patch=patch)
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, t1, lge=None):
        middle = t1[:, 0, self.config.patch // 2, self.config.patch // 2]
        return {"logits": torch.stack((torch.zeros_like(middle), middle), 1)}


def test_the_task_is_found_and_its_recipe_is_the_papers():
    assert task_class("siamese_lesion") is SiameseLesionTask
    assert (RECIPE.lr, RECIPE.batch, RECIPE.epochs, RECIPE.drop_last) == (1e-4, 32, 300, True)
    assert sum(RECIPE.split) == 15
    names = [{field.name for field in fields(kind)} for kind in (Config, Recipe)]
    assert not names[0] & names[1]
    assert SiameseLesionTask.published["decoupled"]["balanced"] == "81.61"
    assert "pairing_loss" not in SiameseLesionTask.published["pure"]


def test_recipe_messages():
    with pytest.raises(ValueError, match="stride must be at least 1, spacing_mm positive; got 0"):
        Recipe(stride=0)
    with pytest.raises(
        ValueError, match="stride must be at least 1, spacing_mm positive; got 6 an"
    ):
        Recipe(spacing_mm=-1.0)
    with pytest.raises(ValueError, match=r"flip must lie in \[0, 1\], lesion_share in \(0, 1\]"):
        Recipe(lesion_share=0)


def test_batches_are_what_the_network_takes(task, cohort):
    feed = task.feed(cohort, seed=0)
    assert len(feed) > 300
    batch = feed.batch(0, torch.arange(40))
    assert set(batch) == {"t1", "lge", "labels"}
    for name in task.inputs:
        assert batch[name].shape == (40, 1, 64, 64)
        assert batch[name].dtype == torch.float32
        assert batch[name].isfinite().all()
    assert batch["labels"].dtype == torch.int64
    assert set(feed.patches.labels.tolist()) == {0, 1}
    share = feed.patches.labels.float().mean().item()
    assert 0.2 < share < 0.6  # the paper's is 0.40
    outputs = SiameseLesion(NARROW)(*(batch[name] for name in task.inputs))
    assert siamese_lesion.loss(outputs, batch)["loss"].isfinite()


def test_a_batch_depends_on_its_samples_alone(task, cohort):
    feed = task.feed(cohort[:2], seed=0)
    one, two = feed.batch(0, torch.tensor([5, 0, 9])), feed.batch(7, torch.tensor([9, 5, 0]))
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(feed.batch, 1, torch.tensor([n])) for n in (5, 0, 9)]
        alone = [future.result() for future in asked]
    for name, values in one.items():
        assert torch.equal(values, two[name][[1, 2, 0]])
        assert torch.equal(values, torch.cat([batch[name] for batch in alone]))
    again = task.feed(cohort[:2], seed=0).patches
    assert torch.equal(again.flips, feed.patches.flips)
    assert len(task.feed(cohort[:2], seed=1)) != len(feed)


def test_mirrored_copies_share_their_flip(task, cohort):
    patches = task._patches([task._pairs(case) for case in cohort[:2]])
    copies = patches.with_mirrored(0.5, seed=0)
    plain = patches.cut(torch.arange(len(patches)))
    flipped = copies.flips.any(1).nonzero().flatten()
    assert len(flipped) == len(copies) - len(patches)
    assert abs(len(flipped) / len(patches) - 0.5) < 0.1
    counts = [
        (copies.flips[flipped] == torch.tensor(f)).all(1).sum() for f in ((1, 0), (0, 1), (1, 1))
    ]
    assert sum(counts) == len(flipped)
    assert min(counts) > 0.2 * len(flipped)
    found = copies.cut(flipped)
    for row, copy in enumerate(flipped.tolist()):
        of = int((~copies.flips[:copy].any(1)).sum()) - 1  # a copy stands behind what it is of
        axes = [1 + axis for axis in range(2) if copies.flips[copy, axis]]
        for name in task.inputs:
            assert torch.equal(found[name][row], plain[name][of].flip(axes))
        assert found["labels"][row] == plain["labels"][of]
    assert len(patches.with_mirrored(0.0, seed=0)) == len(patches)
    assert len(patches.with_mirrored(1.0, seed=0)) == 2 * len(patches)


def test_patches_are_positive_with_a_quarter_of_the_lesion(task, cohort):
    for case in cohort:
        pairs = task._pairs(case)
        patches = task._patches([pairs])
        for number in range(len(patches)):
            i, j = patches.start_vox[number].tolist()
            lesion = pairs["lesion"][patches.volume[number]]
            held = lesion[max(i, 0) : i + 64, max(j, 0) : j + 64].sum()
            assert patches.labels[number] == int(held > 0 and held >= lesion.sum() / 4)
            center = pairs["myocardium"][patches.volume[number], i + 32, j + 32]
            assert center == 1


def sampled(image, at, shape):
    """Linear values at positions (2, N) of an image (I, J)."""
    found = map_coordinates(image.double().numpy(), at, order=1, mode="nearest")
    return found.reshape(shape)


def test_preparation_is_the_plain_statement(task, cohort):
    case = cohort[0]
    pairs = task._pairs(case)
    t1, lge = case.image("t1"), case.image("lge")
    for n, k in enumerate(pairs["t1_slice"].tolist()):
        fixed = plane(lge, int(pairs["lge_slice"][n]))
        shape, grid = spacing_grid(fixed.data.shape[1:], fixed.world_from_vox, (1.0, 1.0))
        i, j = np.indices(shape)
        pixels = np.stack([i, j, np.zeros(shape), np.ones(shape)]).reshape(4, -1)
        to_lge = (np.linalg.inv(fixed.world_from_vox.numpy()) @ grid.numpy() @ pixels)[:2]
        native = plane(t1, k).world_from_vox.numpy()
        to_t1 = (np.linalg.inv(native) @ pairs["t1_from_lge"][n].numpy() @ grid.numpy() @ pixels)[
            :2
        ]

        expected = sampled(t1.data[0, ..., k], to_t1, shape)
        size = np.array(t1.shape[:2])[:, None]
        inside = ((to_t1 > -0.499) & (to_t1 < size - 0.501)).all(0).reshape(shape)
        outside = ((to_t1 < -0.501) | (to_t1 > size - 0.499)).any(0).reshape(shape)
        found = pairs["t1"][n, 0].numpy()
        np.testing.assert_allclose(found[inside], expected[inside], rtol=1e-4, atol=0.05)
        assert np.isnan(found[outside]).all()
        assert 0 < inside.sum() < inside.size

        pale = sampled(fixed.data[0], to_lge, shape)
        scaled = (pale - pale.mean()) / pale.std()
        np.testing.assert_allclose(pairs["lge"][n, 0].numpy(), scaled, atol=1e-3)
        for name, file in (("myocardium", "lge_myocardium"), ("lesion", "lge_lesion")):
            mask = plane(case.label(file), int(pairs["lge_slice"][n])).data[0]
            share = sampled(mask, to_lge, shape)
            sure = abs(share - 0.5) > 1e-4
            assert np.array_equal(pairs[name][n].numpy()[sure], (share > 0.5)[sure])

        moving = plane(case.label("t1_myocardium"), k)
        wall = plane(case.label("lge_myocardium"), int(pairs["lge_slice"][n]))
        alignment = align_masks(
            moving.data[0], wall.data[0], moving.world_from_vox, wall.world_from_vox
        )
        assert torch.equal(alignment.moving_from_fixed, pairs["t1_from_lge"][n])
        brought = sampled(moving.data[0], to_t1, shape) > 0.5
        drawn = pairs["myocardium"][n].numpy() > 0
        assert 2 * (brought & drawn).sum() / (brought.sum() + drawn.sum()) > 0.8


def test_lesion_is_drawn_by_brightness_where_no_mask_is(cohort):
    case = without(cohort[0], "lge_lesion")
    lge, wall, lesion = lge_lesion(case, deviations=6.0)
    reference = case.label("lge_reference").data
    for k in range(lge.shape[2]):
        healthy = lge.data[..., k][reference[..., k] > 0].double()
        bright = lge.data[..., k] > healthy.mean() + 6 * healthy.std()
        assert torch.equal(lesion.data[..., k] > 0, bright & (wall.data[..., k] > 0))
    assert lesion.data.any()
    sector = lge_lesion(without(case, "lge_reference"), deviations=6.0)[2]
    expected = lesion_mask(lge.data[0, ..., 1], wall.data[0, ..., 1], spacing_mm=lge.spacing_mm[:2])
    assert torch.equal(sector.data[0, ..., 1] > 0, expected)


def test_a_small_reference_is_an_error_none_is_not(cohort, tmp_path):
    case = without(cohort[0], "lge_lesion")
    reference = case.label("lge_reference")
    reference.data[..., 0] = 0
    path = tmp_path / "lge_reference.nii.gz"
    write_nifti(path, reference)
    odd = replace(case, labels={**case.labels, "lge_reference": path})
    found = lge_lesion(odd, deviations=6.0)[2].data[..., 0]
    sector = lge_lesion(without(case, "lge_reference"), deviations=6.0)[2].data[..., 0]
    assert torch.equal(found, sector)
    reference.data[0, 5, 5:8, 0] = 1
    write_nifti(path, reference)
    with pytest.raises(FileError, match=r"LGE slice 0 of subject01: .* at least 10 pixels; got 3"):
        lge_lesion(odd, deviations=6.0)


def test_centres_move_with_the_heart():
    wall = torch.zeros(60, 70)
    wall[20:40, 25:50] = 1
    wall[26:34, 32:43] = 0
    centers = patch_centers(wall, 6)
    assert wall[tuple(centers.T)].all()
    assert ((centers - centers[0]) % 6 == 0).all()
    assert 0.6 < len(centers) * 36 / wall.sum() < 1.6
    moved = patch_centers(wall.roll((7, -5), (0, 1)), 6)
    assert torch.equal(moved, centers + torch.tensor([7, -5]))
    assert patch_centers(torch.zeros(9, 9), 6).shape == (0, 2)


def oblique_ramp():
    """A map that grows by 4 ms a mm along one direction of the scanner; and a ring on it."""
    turn = torch.linalg.qr(torch.tensor([[3.0, 1, 0], [-1, 3, 1], [0.5, -1, 4]]).double())[0]
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = turn @ torch.diag(torch.tensor([1.7, 1.3, 9.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([-40.0, 12.0, 300.0])
    way = 4 * (affine[:3, 0] / 1.7 + affine[:3, 1] / 1.3) / 2**0.5
    vox = torch.cartesian_prod(*(torch.arange(n).double() for n in (64, 80, 2)))
    world = vox @ affine[:3, :3].T + affine[:3, 3]
    middle = torch.tensor([32.0, 40, 0.5]).double() @ affine[:3, :3].T + affine[:3, 3]
    t1 = (1000 + (world - middle) @ way).view(1, 64, 80, 2)
    away = ((world - middle) @ affine[:3, :2] / torch.tensor([1.7, 1.3])).norm(dim=1)
    ring = ((away > 20) & (away < 31)).view(1, 64, 80, 2)
    ring[..., 1] &= torch.arange(64)[:, None] < 40
    return Volume(t1, affine), Volume(ring.byte(), affine), way, middle


def test_patches_and_map_lie_where_they_say():
    t1, ring, way, middle = oblique_ramp()
    scale = {"mean_ms": 1000.0, "sd_ms": 40.0}
    found = classify(Middle(64).eval(), t1, ring, **scale, batch=7)
    expected = ((found.center_mm - middle) @ way / 40.0).sigmoid().float()
    torch.testing.assert_close(found.probability, expected, rtol=1e-4, atol=1e-5)
    assert set(found.slices.tolist()) == {0, 1}
    assert ((found.center_mm - middle).norm(dim=1) < 34).all()

    assert found.map.shares_grid(t1)
    values, wall = found.map.data, ring.data > 0
    assert (values[~wall] == 0).all()
    assert (values[wall] > 0).all()
    vox = wall[0].nonzero()
    world = vox.double() @ t1.world_from_vox[:3, :3].T + t1.world_from_vox[:3, 3]
    weight = torch.exp(-torch.cdist(world, found.center_mm).square() / (2 * 6.0**2))
    weight *= vox[:, 2:] == found.slices
    expected = (weight * found.probability).sum(1) / weight.sum(1)
    torch.testing.assert_close(values[wall], expected.float(), rtol=0, atol=2e-3)

    halves = classify(Middle(64).eval(), t1, ring, **scale, batch=1000)
    assert torch.equal(halves.map.data, values)
    sparse = classify(Middle(64).eval(), t1, ring, **scale, stride=10, spacing_mm=1.5)
    assert len(sparse.probability) < len(found.probability) / 4


def test_a_map_without_myocardium_is_empty_and_messages():
    t1, ring, _, _ = oblique_ramp()
    nothing = classify(Middle(32), t1, ring.with_data(0 * ring.data), mean_ms=1.0, sd_ms=1.0)
    assert len(nothing.slices) == len(nothing.probability) == 0
    assert nothing.center_mm.shape == (0, 3)
    assert (nothing.map.data == 0).all()
    two = Volume(torch.cat((t1.data, t1.data)), t1.world_from_vox)
    with pytest.raises(ValueError, match=r"one channel each, on one grid; got \(2, 64, 80, 2\)"):
        classify(Middle(32), two, ring, mean_ms=1.0, sd_ms=1.0)
    moved = Volume(ring.data, torch.eye(4))
    with pytest.raises(ValueError, match="on one grid"):
        classify(Middle(32), t1, moved, mean_ms=1.0, sd_ms=1.0)


def test_predictions_lie_on_the_map_and_need_t1_alone(task, cohort, tmp_path):
    case = without(cohort[0], "lge", "lge_myocardium", "lge_lesion", "lge_reference")
    model = SiameseLesion(NARROW).eval()
    prediction = task.predict(model, case)
    output = prediction.images["lesion_probability"]
    path = tmp_path / "lesion_probability.nii.gz"
    write_nifti(path, output.volume, output.like)
    np.testing.assert_array_equal(nibabel.load(path).affine, nibabel.load(case.images["t1"]).affine)
    wall = case.label("t1_myocardium").data > 0
    values = read_nifti(path).data
    assert (values[~wall] == 0).all()
    assert ((values[wall] > 0) & (values[wall] < 1)).all()
    patches = prediction.facts["patches"]
    assert {patch["slice"] for patch in patches} == {0, 1}
    for patch in patches:
        assert patch["lesion"] == (patch["probability"] > 0.5)
        vox = (
            torch.linalg.inv(case.image("t1").world_from_vox)
            @ torch.tensor([*patch["center_mm"], 1.0]).double()
        )
        assert abs(vox[2] - patch["slice"]) < 1e-4
        i, j = (vox[:2] + 0.5).floor().long().tolist()
        assert wall[0, i - 1 : i + 2, j - 1 : j + 2, patch["slice"]].any()


def test_a_patch_of_training_is_a_patch_of_prediction(task, cohort, tmp_path):
    """With LGE on the grid of T1 and one myocardium, both paths must cut the same pixels."""
    source = cohort[0]
    t1, wall = source.image("t1"), source.label("t1_myocardium")
    paths = {name: tmp_path / f"{name}.nii.gz" for name in ("t1", "lge", *BOTH_MASKS, "lge_lesion")}
    for name, path in paths.items():
        write_nifti(path, t1 if name in ("t1", "lge") else wall)
    case = replace(
        source,
        images={k: v for k, v in paths.items() if k in ("t1", "lge")},
        labels={k: v for k, v in paths.items() if k not in ("t1", "lge")},
    )
    pairs = task._pairs(case)
    torch.testing.assert_close(pairs["t1_from_lge"][0], torch.eye(4).double(), rtol=0, atol=1e-6)
    oracle = Oracle(task, case)

    class Seen(Oracle):
        def forward(self, t1, lge=None):
            seen.append(t1)
            return super().forward(t1, lge)

    seen = []
    model = Seen(task, case)
    task.predict(model, case)
    torch.testing.assert_close(torch.cat(seen), oracle.known["t1"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("variant", ["decoupled", "pure"])
def test_true_classes_score_perfectly_through_the_whole_path(task, cohort, variant):
    task.config = replace(NARROW, variant=variant)
    case = cohort[0]
    oracle = Oracle(task, case)
    rows = task.evaluate(oracle, case)
    assert len(rows) == len(oracle.known["labels"]) > 32
    assert [row["patch"] for row in rows] == list(range(len(rows)))
    assert [row["lesion"] for row in rows] == oracle.known["labels"].tolist()
    keys = {"case", "slice", "patch", "lesion", "probability", "classification_loss"}
    keys |= {"sensitivity", "specificity"} | ({"pairing_loss"} if variant != "pure" else set())
    for row in rows:
        assert set(row) == keys
        right, left_out = ("sensitivity", "specificity")[:: 1 if row["lesion"] else -1]
        assert row[right] == 100
        assert math.isnan(row[left_out])
        assert row["classification_loss"] < 1e-6
        assert row["probability"] == pytest.approx(row["lesion"], abs=1e-6)
    assert {row["slice"] for row in rows} == {0, 1}
    assert task.pooled(rows) == {"balanced": 100}
    assert task.objective.lstrip("-") in keys
    if variant != "pure":
        # One feature for all patches: ln 32, as methods' anchor has it; less in the last batch.
        losses = [row["pairing_loss"] for row in rows]
        assert sum(abs(loss - math.log(32)) < 1e-4 for loss in losses) == len(rows) // 32 * 32
        least = math.log(len(rows) % 32)
        assert sum(abs(loss - least) < 1e-4 for loss in losses) == len(rows) % 32


def test_a_network_that_always_says_yes_is_balanced_at_50(task, cohort):
    class Yes(Oracle):
        def forward(self, t1, lge=None):
            outputs = super().forward(t1, lge)
            outputs["logits"] = torch.tensor([[0.0, 1.0]]).expand(len(t1), 2)
            return outputs

    rows = task.evaluate(Yes(task, cohort[0]), cohort[0])
    assert task.pooled(rows) == {"balanced": 50}
    assert {row["sensitivity"] for row in rows if row["lesion"]} == {100}
    assert {row["specificity"] for row in rows if not row["lesion"]} == {0}


def test_a_picture_shows_the_lesion_of_lge_on_t1(task, cohort):
    case = cohort[0]
    view = task.view(SiameseLesion(NARROW).eval(), case)
    wall = case.label("t1_myocardium").data > 0
    marked = view.reference.data > 0
    assert view.image.shares_grid(view.reference)
    assert view.predicted.data.shape == marked.shape
    assert (marked & wall).sum() > 0.8 * marked.sum() > 0
    spared, drawn = case.label("lge_lesion"), case.label("lge_myocardium")
    for k in range(2):
        burden = marked[..., k].sum() / wall[..., k].sum()
        expected = spared.data[..., k].sum() / drawn.data[..., k].sum()
        assert burden.item() == pytest.approx(expected.item(), rel=0.3)
    assert task.view(SiameseLesion(NARROW).eval(), without(case, "lge")).reference is None


def test_distinct_slices_are_distinct(task, cohort):
    task.recipe = replace(RECIPE, distinct_slices=True)
    feed = task.feed(cohort, seed=0)
    slices = feed.patches.volume
    for epoch in range(3):
        for samples in torch.arange(len(feed)).split(6):
            rows = feed._spread(epoch, samples)
            assert slices[rows].unique().numel() == len(samples)
            kept = slices[samples].unique()
            assert torch.isin(kept, slices[rows]).all()
    batch, rows = feed.batch(1, samples), feed._spread(1, samples)
    assert torch.equal(batch["t1"], feed.patches.cut(rows)["t1"])
    assert torch.equal(batch["labels"], feed.patches.labels[rows])
    assert not torch.equal(rows, feed._spread(2, samples))
    more = feed._spread(0, torch.arange(20))  # eight slices only
    assert slices[more].unique().numel() == 8
    few = torch.stack([feed.first[0], feed.first[3]])
    assert torch.equal(feed._spread(0, few), few)


def test_fit_takes_the_myocardium_of_all_patients(cohort, fitted, tmp_path):
    values = []
    for case in cohort:
        t1, wall = (
            nibabel.load(p).get_fdata() for p in (case.images["t1"], case.labels["t1_myocardium"])
        )
        values.append(t1[wall > 0])
    pooled = np.concatenate(values)
    assert fitted["t1_mean_ms"] == pytest.approx(pooled.mean(), rel=1e-9)
    assert fitted["t1_sd_ms"] == pytest.approx(pooled.std(), rel=1e-9)

    t1, wall = cohort[0].image("t1"), cohort[0].label("t1_myocardium").data > 0
    marked = t1.data.float()
    where = wall.nonzero()
    marked[tuple(where[0])], marked[tuple(where[1])] = 0, 4095
    marked[tuple(where[2])] = float("nan")
    path = tmp_path / "t1.nii.gz"
    write_nifti(path, t1.with_data(marked))
    odd = replace(cohort[0], images={"t1": path})
    kept = t1.data[wall].double()[3:]
    found = SiameseLesionTask(NARROW, RECIPE).fit([odd])
    assert found["t1_mean_ms"] == pytest.approx(kept.mean().item(), rel=1e-6)
    write_nifti(path, t1.with_data(torch.full_like(t1.data, 1000)))
    with pytest.raises(FileError, match=r"must vary; its \d+ pixels do not"):
        SiameseLesionTask(NARROW, RECIPE).fit([odd])
    write_nifti(path, t1.with_data(torch.zeros_like(t1.data)))
    with pytest.raises(FileError, match="t1 of subject01 holds no value but 0, 4095"):
        SiameseLesionTask(NARROW, RECIPE).fit([odd])


def test_subjects_with_gaps_are_left_out_by_name(task, cohort, caplog):
    cases = [without(cohort[0], "lge"), without(cohort[1], "t1_myocardium"), cohort[2]]
    with caplog.at_level(logging.WARNING):
        feed = task.feed(cases, seed=0)
    assert len(feed.slices) == 2
    assert "siamese_lesion: subject01 is left out: image: subject01 has no lge image" in caplog.text
    assert "siamese_lesion: subject02 is left out: label:" in caplog.text
    with pytest.raises(FileError, match="none of 2 cases can be used: image: subject01 has no lge"):
        task.feed(cases[:2], seed=0)
    model = SiameseLesion(NARROW).eval()
    assert task.evaluate(model, cases[0]) == []
    with pytest.raises(FileError, match="subject02 has no t1_myocardium label"):
        task.predict(model, cases[1])


def test_messages(task, cohort, tmp_path):
    case, path = cohort[0], tmp_path / "odd.nii.gz"
    t1 = case.image("t1")
    model = SiameseLesion(NARROW).eval()
    write_nifti(path, t1.with_data(t1.data.roll(1, 1).repeat(2, 1, 1, 1)))
    with pytest.raises(FileError, match=r"odd\.nii\.gz must have one channel; got 2"):
        task.predict(model, replace(case, images={"t1": path}))
    write_nifti(path, Volume(torch.ones(1, *t1.shape).byte(), torch.eye(4)))
    with pytest.raises(FileError, match="must lie on the grid of its image"):
        task.predict(model, replace(case, labels={"t1_myocardium": path}))
    far = t1.world_from_vox.clone()
    far[:3, 3] += 500
    write_nifti(path, Volume(t1.data, far))
    wall = tmp_path / "wall.nii.gz"
    write_nifti(wall, Volume(case.label("t1_myocardium").data, far))
    away = replace(
        case,
        images={**case.images, "t1": path},
        labels={**case.labels, "t1_myocardium": wall},
    )
    with pytest.raises(FileError, match="no T1 slice with myocardium of subject01 lies in an LGE"):
        task.evaluate(model, away)
    with pytest.raises(ValueError, match="fitted must hold what fit gave; it is empty"):
        SiameseLesionTask(NARROW, RECIPE).predict(model, case)


def test_prepared_pairs_come_from_the_cache(task, cohort, monkeypatch):
    before = task._pairs(cohort[1])
    fresh = SiameseLesionTask(NARROW, RECIPE, task.fitted)._pairs(cohort[1])
    for name, stored in before.items():
        assert stored.dtype == fresh[name].dtype
        torch.testing.assert_close(stored, fresh[name], equal_nan=True, rtol=0, atol=0)
    calls = []
    monkeypatch.setattr(task_module, "aligned_pairs", lambda case, **_: calls.append(case) or {})
    assert set(task._pairs(cohort[1])) == set(before)
    assert not calls
    task.recipe = replace(RECIPE, deviations=5.0)
    assert task._pairs(cohort[1]) == {}
    assert len(calls) == 1


@pytest.mark.parametrize("variant", ["decoupled", "siamese", "partial", "pure"])
def test_a_few_steps_lower_the_loss(task, cohort, variant):
    config = replace(NARROW, variant=variant, dropout_conv=0.0, dropout_full=0.0)
    task.config = config
    feed = task.feed(cohort[:1], seed=0)
    model = SiameseLesion(config)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    batch = feed.batch(0, torch.arange(0, len(feed), len(feed) // 16)[:16])
    losses = []
    for _ in range(15):
        loss = siamese_lesion.loss(model(*(batch[name] for name in task.inputs)), batch, config)
        optimiser.zero_grad()
        loss["loss"].backward()
        optimiser.step()
        losses.append(loss["loss"].item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_real_map(real_images, tmp_path):
    path = real_images / "synthetic_lge_t1" / "molli_T1map_postGd.nii.gz"
    t1 = read_nifti(path)
    i, j = torch.meshgrid(torch.arange(204), torch.arange(256), indexing="ij")
    away = ((i - 100) ** 2 + (j - 120) ** 2).float().sqrt()
    wall = torch.zeros_like(t1.data, dtype=torch.uint8)
    wall[..., 5] = (away > 16) & (away < 24)
    found = classify(Middle(64).eval(), t1, t1.with_data(wall), mean_ms=500.0, sd_ms=60.0)
    assert set(found.slices.tolist()) == {5}
    assert ((found.map.data > 0) == (wall > 0)).all()
    write_nifti(tmp_path / "map.nii.gz", found.map, like=path)
    assert read_nifti(tmp_path / "map.nii.gz").shares_grid(t1)
