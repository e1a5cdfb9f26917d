"""siamese_lesion on images: pairs of patches in, classes and a map of T1 out."""

import logging
import math
from dataclasses import fields, replace

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from cmrfast import methods
from cmrfast.data import Volume, read_nifti, write_nifti
from cmrfast.errors import FileError
from cmrfast.methods import Objective
from cmrfast.methods.siamese_lesion import METHOD
from cmrfast.methods.siamese_lesion import task as task_module
from cmrfast.methods.siamese_lesion.task import PAIRS, SiameseLesionTask
from cmrfast.models import siamese_lesion
from cmrfast.models.siamese_lesion import RECIPE, Config, Recipe, SiameseLesion
from tests.support.batches import pure_batch
from tests.support.cases import without
from tests.support.siamese_cases import NARROW

BOTH_MASKS = ("t1_myocardium", "lge_myocardium")


class Oracle(nn.Module):
    """Knows the label of every patch that it may be shown, and one feature for all."""

    def __init__(self, task, case, *, sure=20.0):
        super().__init__()
        self.config, self.sure = task.config, sure
        self.nothing = nn.Parameter(torch.zeros(1))
        patches = task._patches([task.prepared(PAIRS, case)])
        self.known = patches.cut(torch.arange(len(patches)))
        self.eval()

    def forward(self, t1, lge=None):
        found = (t1[:, None] == self.known["t1"]).flatten(2).all(2).long().argmax(1)
        positive = self.sure * (2 * self.known["labels"][found] - 1)
        same = torch.ones(len(t1), 8)
        paired = {} if self.config.variant == "pure" else {"lge": same}
        return {"logits": torch.stack((-positive, positive), 1), "t1": same, **paired}


def test_the_task_is_found_and_its_recipe_is_the_papers():
    assert methods.get("siamese_lesion") is METHOD
    assert METHOD.task is SiameseLesionTask
    assert (RECIPE.lr, RECIPE.batch, RECIPE.epochs, RECIPE.drop_last) == (1e-4, 32, 300, True)
    assert sum(RECIPE.split) == 15
    names = [{field.name for field in fields(kind)} for kind in (Config, Recipe)]
    assert not names[0] & names[1]
    assert METHOD.published["decoupled"].cells["balanced"] == "81.61"
    assert "pairing_loss" not in METHOD.published["pure"].cells


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
    assert len(feed) > 200
    batch = feed.batch(0, torch.arange(40))
    assert set(batch) == {"t1", "lge", "labels"}
    for name in METHOD.inputs:
        assert batch[name].shape == (40, 1, 64, 64)
        assert batch[name].dtype == torch.float32
        assert batch[name].isfinite().all()
    assert batch["labels"].dtype == torch.int64
    assert set(feed.patches.labels.tolist()) == {0, 1}
    share = feed.patches.labels.float().mean().item()
    assert 0.2 < share < 0.6  # the paper's is 0.40
    outputs = SiameseLesion(NARROW)(*(batch[name] for name in METHOD.inputs))
    assert siamese_lesion.loss(outputs, batch)["loss"].isfinite()


def test_a_batch_depends_on_its_samples_alone(task, cohort):
    feed = task.feed(cohort[:2], seed=0)
    one, later = (pure_batch(feed, epoch, [5, 0, 9]) for epoch in (0, 7))
    assert all(torch.equal(values, later[name]) for name, values in one.items())
    again = task.feed(cohort[:2], seed=0).patches
    assert torch.equal(again.flips, feed.patches.flips)
    assert len(task.feed(cohort[:2], seed=1)) != len(feed)


def test_predictions_lie_on_the_map_and_need_t1_alone(task, cohort, tmp_path):
    case = without(
        cohort[0], images=["lge"], labels=["lge_myocardium", "lge_lesion", "lge_reference"]
    )
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
    pairs = task.prepared(PAIRS, case)
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
    assert [row.ids["patch"] for row in rows] == list(range(len(rows)))
    assert [row.ids["lesion"] for row in rows] == oracle.known["labels"].tolist()
    names = {"probability", "classification_loss", "sensitivity", "specificity"}
    names |= {"pairing_loss"} if variant != "pure" else set()
    for row in rows:
        assert set(row.ids) == {"case", "slice", "patch", "lesion"}
        assert row.case == case.name
        assert set(row.scores) == names
        lesion, scores = row.ids["lesion"], row.scores
        assert row.present == {"lesion": "both" if lesion else "neither"}
        right, left_out = ("sensitivity", "specificity")[:: 1 if lesion else -1]
        assert scores[right] == 100
        assert math.isnan(scores[left_out])
        assert scores["classification_loss"] < 1e-6
        assert scores["probability"] == pytest.approx(lesion, abs=1e-6)
    assert {row.ids["slice"] for row in rows} == {0, 1}
    assert task.pooled(rows) == {"balanced": 100}
    assert METHOD.objective == Objective("classification_loss", maximise=False)
    assert METHOD.objective.name in names
    if variant != "pure":
        # One feature for all patches: ln 32, as methods' anchor has it; none in the last batch.
        losses = [row.scores["pairing_loss"] for row in rows]
        assert sum(abs(loss - math.log(32)) < 1e-4 for loss in losses) == len(rows) // 32 * 32
        assert sum(map(math.isnan, losses)) == len(rows) % 32 > 0


def test_pairing_is_scored_in_batches_that_mix_patients(task, cohort):
    torch.manual_seed(0)
    model = SiameseLesion(NARROW).eval()
    alone = [row for case in cohort for row in task.evaluate(model, case)]
    together = task.evaluate_all(model, cohort)
    assert [row.case for row in together] == [row.case for row in alone]
    for one, other in zip(alone, together, strict=True):
        assert one.ids["lesion"] == other.ids["lesion"]
        assert one.scores["probability"] == pytest.approx(other.scores["probability"], abs=1e-5)
    batches = {}  # rows of one batch share its loss
    for row in together:
        batches.setdefault(row.scores["pairing_loss"], set()).add(row.case)
    mixed = [cases for loss, cases in batches.items() if not math.isnan(loss)]
    assert len(mixed) == len(together) // task.recipe.batch
    assert all(len(cases) > 1 for cases in mixed)


def test_a_network_that_always_says_yes_is_balanced_at_50(task, cohort):
    class Yes(Oracle):
        def forward(self, t1, lge=None):
            outputs = super().forward(t1, lge)
            outputs["logits"] = torch.tensor([[0.0, 1.0]]).expand(len(t1), 2)
            return outputs

    rows = task.evaluate(Yes(task, cohort[0]), cohort[0])
    assert task.pooled(rows) == {"balanced": 50}
    assert {row.scores["sensitivity"] for row in rows if row.ids["lesion"]} == {100}
    assert {row.scores["specificity"] for row in rows if not row.ids["lesion"]} == {0}


def test_a_picture_shows_the_lesion_of_lge_on_t1(task, cohort):
    case = cohort[0]
    picture = task.picture(SiameseLesion(NARROW).eval(), case)
    wall = case.label("t1_myocardium").data > 0
    marked = picture.reference.data > 0
    assert picture.image.shares_grid(picture.reference)
    assert picture.predicted.data.shape == marked.shape
    assert torch.equal(picture.maps["lesion"].data > 0.5, picture.predicted.data > 0)
    assert (marked & wall).sum() > 0.8 * marked.sum() > 0
    spared, drawn = case.label("lge_lesion"), case.label("lge_myocardium")
    for k in range(2):
        burden = marked[..., k].sum() / wall[..., k].sum()
        expected = spared.data[..., k].sum() / drawn.data[..., k].sum()
        # Within two pixels of a wall of a hundred.
        assert burden.item() == pytest.approx(expected.item(), rel=0.3, abs=0.02)
    alone = without(case, images=["lge"])
    assert task.picture(SiameseLesion(NARROW).eval(), alone).reference is None


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
    found = SiameseLesionTask(NARROW, replace(RECIPE, non_finite="zero")).fit([odd])
    assert found["t1_mean_ms"] == pytest.approx(kept.mean().item(), rel=1e-6)
    write_nifti(path, t1.with_data(torch.full_like(t1.data, 1000)))
    with pytest.raises(FileError, match=r"must vary; its \d+ pixels do not"):
        SiameseLesionTask(NARROW, RECIPE).fit([odd])
    write_nifti(path, t1.with_data(torch.zeros_like(t1.data)))
    with pytest.raises(FileError, match="t1 of subject01 holds no value but 0, 4095"):
        SiameseLesionTask(NARROW, RECIPE).fit([odd])


def test_subjects_with_gaps_are_left_out_by_name(task, cohort, caplog):
    cases = [
        without(cohort[0], images=["lge"]),
        without(cohort[1], labels=["t1_myocardium"]),
        cohort[2],
    ]
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
    with pytest.raises(FileError, match=r"odd\.nii\.gz must have 1 channel; got 2 channels or"):
        task.predict(model, replace(case, images={"t1": path}))
    write_nifti(path, Volume(torch.ones(1, *t1.shape).byte(), torch.eye(4)))
    with pytest.raises(FileError, match=r"odd\.nii\.gz must be one mask on the grid of its image"):
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
    with pytest.raises(ValueError, match="fitted must hold what fit returned; it is empty"):
        SiameseLesionTask(NARROW, RECIPE).predict(model, case)
    with pytest.raises(ValueError, match="siamese_lesion: model must be in evaluation mode"):
        task.predict(model.train(), case)


def test_prepared_pairs_come_from_the_cache(task, cohort, monkeypatch):
    before = task.prepared(PAIRS, cohort[1])
    fresh = SiameseLesionTask(NARROW, RECIPE, task.fitted).prepared(PAIRS, cohort[1])
    for name, stored in before.items():
        assert stored.dtype == fresh[name].dtype
        torch.testing.assert_close(stored, fresh[name], equal_nan=True, rtol=0, atol=0)
    calls = []
    monkeypatch.setattr(task_module, "aligned_pairs", lambda case, **_: calls.append(case) or {})
    assert set(task.prepared(PAIRS, cohort[1])) == set(before)
    assert not calls
    task.recipe = replace(RECIPE, deviations=5.0)
    assert task.prepared(PAIRS, cohort[1]) == {}
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
        loss = siamese_lesion.loss(model(*(batch[name] for name in METHOD.inputs)), batch, config)
        optimiser.zero_grad()
        loss["loss"].backward()
        optimiser.step()
        losses.append(loss["loss"].item())
    assert losses[-1] < 0.8 * losses[0]
