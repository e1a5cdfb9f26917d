"""joint_registration as a task: its recipe, predictions on their grids, what cannot be used."""

from dataclasses import replace

import pytest
import torch

from cmrfast import methods
from cmrfast.data import Volume, read_nifti, write_nifti
from cmrfast.data.cache import Cache
from cmrfast.errors import FileError
from cmrfast.methods.joint_registration import METHOD
from cmrfast.methods.joint_registration.grid import label_view, shared_grid
from cmrfast.methods.joint_registration.images import register
from cmrfast.methods.joint_registration.task import JointRegistrationTask
from cmrfast.models import build
from cmrfast.models.joint_registration import RECIPE, Recipe
from tests.support.cases import without
from tests.support.joint_registration_cases import NARROW, SMALL, oracle


def test_the_task_is_found_and_its_recipe_is_the_papers():
    assert methods.get("joint_registration") is METHOD
    assert METHOD.task is JointRegistrationTask
    assert (RECIPE.lr, RECIPE.epochs, RECIPE.keep, RECIPE.side) == (1e-4, 100, "best", 224)
    assert RECIPE.lr_at(99, 0) == pytest.approx(6.111172e-5, rel=1e-6)
    with pytest.raises(ValueError, match="pairing must be one of position, index; got 'order'"):
        Recipe(pairing="order")
    with pytest.raises(ValueError, match="spacing_mm must be positive; got 0"):
        Recipe(spacing_mm=0)
    with pytest.raises(ValueError, match="side must be at least 1; got 0"):
        Recipe(side=0)
    for clip in ((99, 1), (-1, 99), (1, 101), (5, 5)):
        with pytest.raises(ValueError, match=r"clip_percent must be 0 <= low < high <= 100; got"):
            Recipe(clip_percent=clip)


def test_predictions_lie_on_the_inputs_grids(cases, tmp_path):
    case = cases[0]
    model = oracle(case)
    found = JointRegistrationTask(NARROW, SMALL).predict(model, case)
    assert found.images.keys() == {"lge_on_cine", "cine_labels", "lge_labels"}
    for name, output in found.images.items():
        write_nifti(tmp_path / f"{name}.nii.gz", output.volume, like=output.like)
        back, source = read_nifti(tmp_path / f"{name}.nii.gz"), read_nifti(output.like)
        assert back.shares_grid(source, tolerance_mm=0)
        assert torch.equal(back.data, output.volume.data)
    lge, cine = case.label("LGE").data[0], case.label("C0").data[0]
    labels = found.images["lge_labels"].volume.data[0]
    assert labels.dtype == torch.uint8
    seen = torch.zeros_like(lge, dtype=torch.bool)
    first = [n // 2 - 28 for n in lge.shape[:2]]
    slices = [pair["lge_slice"] for pair in found.facts["pairs"]]
    seen[first[0] : first[0] + 56, first[1] : first[1] + 56, slices] = True
    assert torch.equal(labels, torch.where(seen, lge, 0).to(labels.dtype))
    # Between the stacks cine labels were interpolated twice.
    on_cine = found.images["cine_labels"].volume.data[0]
    middle = slice(3, 8)
    both = ((on_cine > 0) & (cine > 0))[..., middle].sum() * 2
    assert both > 0.9 * ((on_cine > 0).sum((0, 1)) + (cine > 0).sum((0, 1)))[middle].sum()
    assert found.facts["unpaired_lge_slices"] == sorted(set(range(15)) - set(slices))


@pytest.mark.parametrize("variant", ["joint", "stn"])
def test_a_case_without_labels_is_predicted_not_judged(cases, variant):
    config = replace(NARROW, variant=variant)
    task, bare = JointRegistrationTask(config, SMALL), replace(cases[0], labels={})
    model = build("joint_registration", **vars(config)).eval()
    found = task.predict(model, bare)
    assert ("lge_labels" in found.images) == (variant == "joint")
    assert task.evaluate(model, bare) == []
    picture = task.picture(model, bare)
    assert picture.reference is None
    assert picture.predicted.shares_grid(picture.image)
    picture = task.picture(model, cases[0])
    assert picture.reference.shares_grid(picture.image)
    assert picture.reference.data.any()
    grid = shared_grid(cases[0].image("C0"), cases[0].image("LGE"), SMALL)
    labels = label_view(grid, cases[0].label("C0"), cases[0].label("LGE"))
    assert torch.equal(picture.before.data[0].movedim(-1, 0), labels.lge[:, 0])


def test_what_cannot_be_used_is_named(cases, caplog, tmp_path):
    task = JointRegistrationTask(NARROW, SMALL)
    bare = without(cases[0], labels=["LGE"])
    assert len(task.feed([bare, cases[1]], seed=0)) == len(task.feed([cases[1]], seed=0))
    assert "patient1 is left out" in caplog.text
    with pytest.raises(FileError, match=r"none of 1 cases can be used: .*patient1 has no LGE"):
        task.feed([bare], seed=0)
    cine, lge = cases[0].image("C0"), cases[0].image("LGE")
    two = Volume(cine.data.repeat(2, 1, 1, 1), cine.world_from_vox)
    model = build("joint_registration", **vars(NARROW))
    with pytest.raises(ValueError, match="cine must be one image; got 2 channels or time points"):
        register(model.eval(), two, lge, SMALL)
    write_nifti(tmp_path / "two.nii.gz", two)
    odd = replace(cases[0], images={**cases[0].images, "C0": tmp_path / "two.nii.gz"})
    for use in (task.predict, task.evaluate, task.picture):
        with pytest.raises(FileError, match=r"two\.nii\.gz must have 1 channel; got 2 channels or"):
            use(model, odd)
    far = lge.world_from_vox.clone()
    far[:3, 3] += 1000
    with pytest.raises(ValueError, match="an LGE slice must lie in the cine stack; none does"):
        register(model, cine, Volume(lge.data, far), SMALL)
    with pytest.raises(ValueError, match=r"model must be in evaluation mode; call its eval\(\)"):
        register(model.train(), cine, lge, SMALL)
    with pytest.raises(ValueError, match="batch must be at least 1; got 0"):
        register(model.eval(), cine, lge, SMALL, batch=0)


def test_cached_preparation_is_the_same(cases, feed, tmp_path):
    cache = Cache(tmp_path)
    for _ in range(2):  # made, then read
        again = JointRegistrationTask(NARROW, SMALL, cache=cache).feed(cases, seed=5)
        for name, tensor in feed.pairs.items():
            assert torch.equal(tensor, again.pairs[name])
    assert len(list(tmp_path.glob("*.safetensors"))) == len(cases)
    wider = replace(SMALL, spacing_mm=2.9)
    JointRegistrationTask(NARROW, wider, cache=cache).feed(cases[:1], seed=5)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(cases) + 1


def test_a_search_does_not_vary_the_weights_within_its_objective():
    """``registration_loss`` is weighted by alpha: the easier of its terms would win."""
    assert set(METHOD.search) == {"lr", "registration_weight"}
