"""joint_registration's task: pairs, augmentation, predictions on their grids, perfect scores."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cmrfast import methods
from cmrfast.data import Volume, read_nifti, write_nifti
from cmrfast.data.cache import Cache
from cmrfast.errors import FileError
from cmrfast.methods import Objective, Row
from cmrfast.methods.joint_registration import METHOD
from cmrfast.methods.joint_registration.grid import label_view, network_view, shared_grid
from cmrfast.methods.joint_registration.images import register, warp_image, world_transforms
from cmrfast.methods.joint_registration.published import DISTANCES
from cmrfast.methods.joint_registration.task import PAIRS, JointRegistrationTask, _mean_dice
from cmrfast.models import build
from cmrfast.models.joint_registration import RECIPE, Config, Recipe, loss
from cmrfast.ops import affine_sample, resample
from tests.support.batches import pure_batch
from tests.support.cases import phantoms, without

IDENTITY = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
# The phantoms' LGE pixels, so that their slices are seen as they are.
SMALL = Recipe(side=56, spacing_mm=3.0, batch=4)
NARROW = Config(widths=(4, 6, 8), head_width=4, hidden=8)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hearts")
    return phantoms("mscmrseg", folder, cases=4, shrink=4, seed=3)


@pytest.fixture(scope="module")
def feed(cases):
    return JointRegistrationTask(NARROW, SMALL).feed(cases, seed=5)


class Knowing(nn.Module):
    """Segments slices, in order, as the masks say, and aligns them by a given theta."""

    def __init__(self, labels, theta=IDENTITY):
        super().__init__()
        self.logits = [
            20.0 * nn.functional.one_hot(mask[:, 0].long(), 4).movedim(-1, 1) for mask in labels
        ]
        self.theta, self.next = theta, 0

    def forward(self, cine, lge):
        part = slice(self.next, self.next + len(cine))
        self.next = part.stop % len(self.logits[0])  # and then from the start again
        return {
            "theta": self.theta.expand(len(cine), 2, 3),
            "cine": self.logits[0][part],
            "lge": self.logits[1][part],
        }


def oracle(case, recipe=SMALL):
    grid = shared_grid(case.image("C0"), case.image("LGE"), recipe)
    return Knowing(label_view(grid, case.label("C0"), case.label("LGE"))).eval()


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


def test_batches_are_what_the_network_and_its_loss_take(feed):
    batch = feed.batch(0, torch.arange(5))
    for name in ("cine", "lge"):
        assert batch[name].shape == (5, 1, 56, 56)
        assert batch[name].dtype == torch.float32
        assert batch[name].min() >= 0
        assert batch[name].max() <= 1
        labels = batch[f"{name}_labels"]
        assert labels.dtype == torch.uint8
        assert labels.shape == (5, 56, 56)
        assert set(labels.unique().tolist()) <= {0, 1, 2, 3}
    for labels in (feed.pairs["cine_labels"], feed.pairs["lge_labels"]):
        for structure in (1, 2):  # a pair shows both in both masks
            assert (labels == structure).flatten(1).any(1).all()


def test_a_batch_depends_on_epoch_and_samples_alone(feed):
    few = pure_batch(feed, 2, [7, 3])
    other = feed.batch(3, torch.tensor([7, 3]))
    assert not torch.equal(few["cine"], other["cine"])


def again(feed, **changes):
    """The same pairs under another recipe, without a change of intensities."""
    return type(feed)(dict(feed.pairs), replace(SMALL, **{"gamma": (1.0, 1.0)} | changes), 1)


def test_augmentation_moves_images_with_their_labels(feed):
    of_masks = again(feed)
    for name in ("cine", "lge"):  # a label image as the image: both must stay together
        of_masks.pairs[name] = (feed.pairs[f"{name}_labels"][:, None] == 1).float()
    batch = of_masks.batch(0, torch.arange(12))
    for name in ("cine", "lge"):
        mask, image = batch[f"{name}_labels"] == 1, batch[name][:, 0]
        assert (image[mask] >= 0.25).float().mean() > 0.99
        assert (image[~mask] <= 0.75).float().mean() > 0.99
        still = of_masks.pairs[name][:12, 0] > 0.5
        assert (mask != still).float().mean() > 0.02


def test_lge_images_follow_the_pair_and_a_little_more(feed):
    samples, kept = torch.arange(6), feed.pairs
    both = again(feed, lge_rotate_deg=0, lge_shift_px=0)
    both.pairs["lge"], both.pairs["lge_labels"] = both.pairs["cine"], both.pairs["cine_labels"]
    batch = both.batch(0, samples)
    torch.testing.assert_close(batch["cine"], batch["lge"], rtol=0, atol=1e-5)
    assert torch.equal(batch["cine_labels"], batch["lge_labels"])
    alone = again(feed, rotate_deg=0, shift_px=0).batch(0, samples)
    assert torch.equal(alone["cine"], kept["cine"][samples])
    assert not torch.equal(alone["lge"], kept["lge"][samples])


def test_intensities_get_an_exponent_each(feed):
    still = dict.fromkeys(("rotate_deg", "shift_px", "lge_rotate_deg", "lge_shift_px"), 0)
    changed = again(feed, gamma=SMALL.gamma, **still).batch(0, torch.arange(6))
    exponents = []
    for name in ("cine", "lge"):
        for image, kept in zip(changed[name], feed.pairs[name], strict=False):
            inner = (kept > 0.05) & (kept < 0.95)
            exponent = image[inner].log() / kept[inner].log()
            assert exponent.std() < 1e-3
            exponents.append(exponent.mean())
    assert min(exponents) >= 0.7
    assert max(exponents) <= 1.5
    assert torch.stack(exponents).std() > 0.1


def test_the_networks_view_in_plain_torch(cases):
    case = cases[0]
    cine, lge = case.image("C0"), case.image("LGE")
    grid = shared_grid(cine, lge, SMALL)
    found = network_view(grid, cine, lge, SMALL)
    first = [n // 2 - 28 for n in lge.shape[:2]]  # LGE pixels are the network's
    start = grid.pairs[0].target
    window = lge.data[0, first[0] : first[0] + 56, first[1] : first[1] + 56].double()
    vox_from_vox = cine.world_from_vox.inverse() @ grid.world_from_vox
    at = torch.cartesian_prod(*(torch.arange(float(n)).double() for n in grid.shape))
    at = (at @ vox_from_vox[:3, :3].T + vox_from_vox[:3, 3]).view(*grid.shape, 3)
    size = torch.tensor(cine.shape)
    inside = ((at >= -0.5) & (at < size - 0.5)).all(-1)
    whole = nn.functional.grid_sample(
        cine.data.double()[None],
        ((2 * at + 1) / size - 1).flip(-1)[None],
        padding_mode="border",
        align_corners=False,
    )[0, 0]
    for p in range(len(grid.pairs)):
        for image, mask, seen in (
            (window[..., start + p], torch.ones(56, 56, dtype=torch.bool), found.lge),
            (whole[..., p], inside[..., p], found.cine),
        ):
            low, high = np.percentile(image[mask].numpy(), (1, 99))
            expected = torch.where(mask, (image.clamp(low, high) - low) / (high - low), 0)
            torch.testing.assert_close(seen[p, 0], expected.float(), rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("labels", "reference", "expected"),
    [
        ([1, 1, 0], [1, 1, 0], 1.0),  # two structures are in neither
        ([1, 2, 0], [1, 0, 3], 1 / 3),
        ([0, 0, 0], [0, 0, 0], math.nan),
    ],
)
def test_the_mean_dice_is_over_structures_that_either_has(labels, reference, expected):
    found = _mean_dice(torch.tensor([labels]), torch.tensor([reference]))
    assert found == pytest.approx(expected, nan_ok=True)


def test_an_oracle_scores_perfectly(cases):
    case = cases[1]
    task = JointRegistrationTask(NARROW, SMALL)
    pairs = task.prepared(PAIRS, case)
    model = Knowing((pairs["cine_labels"][:, None], pairs["lge_labels"][:, None])).eval()
    rows = task.evaluate(model, case)
    assert len(rows) == len(pairs["slices"])
    for row in rows:
        scores = row.scores
        assert row.case == case.name
        assert scores["cine_dice_percent"] == scores["lge_dice_percent"] == 100
        assert scores["lv_cd_mm"] == pytest.approx(scores["before_lv_cd_mm"])  # theta: identity
        assert scores["myocardium_asd_mm"] == scores["before_myocardium_asd_mm"]
    # The labels of one stack under both names: a registration that succeeded.
    task.prepared = lambda *_: pairs | {"lge_labels": pairs["cine_labels"]}
    for row in task.evaluate(model, case):
        assert row.scores["registration_loss"] < 2e-3
        for name in DISTANCES:
            assert row.scores[name] == 0 or math.isnan(row.scores[name])
    assert tuple(METHOD.published["before"].cells) == DISTANCES
    named = {name for published in METHOD.published.values() for name in published.cells}
    assert named <= rows[0].scores.keys()
    assert METHOD.objective == Objective("registration_loss", maximise=False)


def test_a_shift_is_measured_in_mm(cases):
    """A disc shifted by 4 pixels of 0.75 mm is 3 mm off, and theta brings it back."""
    at = torch.arange(64.0)
    disc = ((at[:, None] - 30) ** 2 + (at - 30) ** 2 < 100).byte()
    pairs = {
        "cine_labels": disc[None],
        "lge_labels": disc.roll(4, 1)[None],
        "slices": torch.tensor([[0, 2]]),
    }
    task = JointRegistrationTask(NARROW, RECIPE)
    back = torch.tensor([[[1.0, 0, 2 * 4 / 64], [0, 1, 0]]])
    (row,) = task._rows("patient1", {"theta": back}, pairs)
    assert row.scores["before_lv_cd_mm"] == pytest.approx(3.0)
    assert row.scores["lv_cd_mm"] == pytest.approx(0.0, abs=1e-6)
    assert row.scores["lv_asd_mm"] == 0
    assert math.isnan(row.scores["rv_cd_mm"])
    assert row.ids == {"case": "patient1", "cine_slice": 0, "lge_slice": 2}


def test_distances_are_tested_against_those_before():
    stats = pytest.importorskip("scipy.stats")
    before, after = [3.0, 4.0, 6.0, math.nan, 5.0], [1.0, 2.5, 3.0, 2.0, 4.5]
    rows = [
        Row({"case": "patient1"}, {f"{when}{name}": v for name in DISTANCES for when, v in pair})
        for pair in ((("before_", b), ("", a)) for b, a in zip(before, after, strict=True))
    ]
    found = JointRegistrationTask(NARROW, SMALL).pooled(rows)
    expected = stats.ttest_rel(before, after, nan_policy="omit").pvalue
    assert found.keys() == {f"{name}_p" for name in DISTANCES}
    assert list(found.values()) == pytest.approx([expected] * 5)


def test_patients_are_means_of_their_slices(cases):
    recipe = replace(SMALL, unit="patient")
    slices = JointRegistrationTask(NARROW, SMALL).evaluate(oracle(cases[0]), cases[0])
    (patient,) = JointRegistrationTask(NARROW, recipe).evaluate(oracle(cases[0]), cases[0])
    assert patient.ids == {"case": cases[0].name, "slices": len(slices)}
    values = [value for row in slices if not math.isnan(value := row.scores["rv_cd_mm"])]
    assert patient.scores["rv_cd_mm"] == pytest.approx(sum(values) / len(values))


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


def test_matrices_in_mm_say_what_theta_says(cases):
    cine, lge = cases[2].image("C0"), cases[2].image("LGE")
    grid = shared_grid(cine, lge, SMALL)
    # Turned, sheared and moved, and drawn in so far that nothing comes from outside the square.
    theta = 0.6 * IDENTITY + 0.1 * (2 * torch.rand(len(grid.pairs), 2, 3) - 1)
    seen = resample(lge.data.float(), lge.world_from_vox, grid.world_from_vox, grid.shape)
    expected = affine_sample(seen.movedim(-1, 0), theta)
    for p, transform in enumerate(world_transforms(grid, theta)):
        onto, source = grid.world_from_vox.clone(), lge.world_from_vox.clone()
        onto[:, 3] += p * onto[:, 2]
        source[:, 3] += grid.pairs[p].target * source[:, 2]
        found = resample(
            lge.data[..., grid.pairs[p].target].float(), source, transform @ onto, (56, 56)
        )
        torch.testing.assert_close(found, expected[p], rtol=1e-4, atol=0.02)  # of 700
        middle = torch.tensor([28.0, 28, 0, 1]).double()
        vox = source.inverse() @ transform @ onto @ middle
        assert vox[2].item() == pytest.approx(0, abs=1e-6)  # a slice stays in its plane


def test_images_and_labels_follow_a_known_motion(cases):
    """An LGE stack that is the cine stack moved by 6 mm along its rows comes back onto it."""
    cine, mask = cases[0].image("C0"), cases[0].label("C0")
    steps = round(6 / cine.spacing_mm[0])
    lge, lge_mask = (v.with_data(v.data.roll(steps, 1)) for v in (cine, mask))
    recipe = Recipe(side=64, spacing_mm=cine.spacing_mm[0])
    theta = torch.tensor([[1.0, 0, 0], [0, 1, 2 * steps / 64]])
    found = register(oracle_of(mask, lge_mask, recipe, theta), cine, lge, recipe)
    inner = (slice(None), slice(12, -12), slice(12, -12), slice(1, -1))
    torch.testing.assert_close(
        found.warped.data[inner], cine.data[inner].float(), rtol=0, atol=1e-2 * cine.data.max()
    )
    moved = warp_image(found.grid, found.lge_from_cine, lge_mask, cine, labels=True)
    assert moved.data.dtype == lge_mask.data.dtype
    assert torch.equal(moved.data[inner], mask.data[inner])
    shift = (
        found.lge_from_cine[0][:3, 3]
        + (found.lge_from_cine[0][:3, :3] - torch.eye(3)) @ (cine.world_from_vox[:3, 3])
    )
    assert shift.norm().item() == pytest.approx(steps * cine.spacing_mm[0], rel=1e-4)


def oracle_of(mask, lge_mask, recipe, theta):
    grid = shared_grid(mask, lge_mask, recipe)
    return Knowing(label_view(grid, mask, lge_mask), theta).eval()


def test_lge_slices_beside_no_cine_slice_are_named(cases):
    cine, lge = cases[0].image("C0"), cases[0].image("LGE")
    start = cine.world_from_vox.clone()
    start[:, 3] += 4 * start[:, 2]
    few = Volume(cine.data[..., 4:7], start)  # 24 mm
    model = build("joint_registration", **vars(NARROW)).eval()
    found = register(model, few, lge, SMALL)
    whole = shared_grid(cine, lge, SMALL)
    expected = [p.target for p in whole.pairs if 4 <= p.source < 7]
    assert [p.target for p in found.grid.pairs] == expected
    assert found.grid.unpaired == tuple(sorted(set(range(lge.shape[2])) - set(expected)))
    assert (found.lge_labels.data[..., list(found.grid.unpaired)] == 0).all()
    seen, part = (network_view(g, v, lge, SMALL) for g, v in ((whole, cine), (found.grid, few)))
    first = expected[0] - whole.pairs[0].target
    assert torch.equal(part.lge, seen.lge[first : first + len(expected)])


def test_pairs_by_index_where_headers_have_no_positions(cases):
    cine, lge = cases[0].image("C0"), cases[0].image("LGE")
    lost = Volume(lge.data, torch.diag(torch.tensor([*lge.spacing_mm, 1.0])))
    far = lost.world_from_vox.clone()
    far[:3, 3] = 5000
    assert not shared_grid(cine, Volume(lge.data, far), SMALL).pairs
    recipe = replace(SMALL, pairing="index")
    grid = shared_grid(cine, Volume(lge.data, far), recipe)
    few, many = cine.shape[2], lge.shape[2]
    assert [p.source for p in grid.pairs] == [i * few // many for i in range(many)]
    assert [p.target for p in grid.pairs] == list(range(many))
    seen = network_view(grid, cine, lost.with_data(lge.data), recipe)
    assert seen.cine.shape == (many, 1, 56, 56)
    # The middle of a cine slice lies in the middle of its partner.
    middle = grid.cine_world_from_vox @ torch.tensor(
        [(cine.shape[0] - 1) / 2, (cine.shape[1] - 1) / 2, 6, 1], dtype=torch.float64
    )
    partner = far @ torch.tensor([(lge.shape[0] - 1) / 2, (lge.shape[1] - 1) / 2, 6, 1]).double()
    torch.testing.assert_close(middle, partner)
    whole = torch.ones(1, *grid.shape)
    back = grid.onto_cine(whole, grid.world_from_vox, cine.shape[:2])
    assert back.shape == cine.data.shape
    assert (back.flatten(0, 2).amax(0) == 1).all()  # each cine slice has a partner


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


def test_a_few_steps_lower_the_loss(feed, threads):
    threads(1)
    model = build("joint_registration", **vars(NARROW)).train()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(24):
        batch = feed.batch(0, torch.arange(8))
        value = loss(model(batch["cine"], batch["lge"]), batch, NARROW)["loss"]
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(value.item())
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_real_oblique_stacks(real_images):
    folder = real_images / "sunnybrook_cine" / "SCD0000101"
    cine = read_nifti(folder / "SCD0000101_frame08.nii.gz")
    recipe = Recipe(side=96, spacing_mm=1.3)
    grid = shared_grid(cine, cine, recipe)
    assert [(p.source, p.target) for p in grid.pairs] == [(k, k) for k in range(cine.shape[2])]
    seen = network_view(grid, cine, cine, recipe)
    torch.testing.assert_close(seen.cine, seen.lge, rtol=0, atol=1e-4)
    model = build("joint_registration", **vars(NARROW)).eval()
    found = register(model, cine, cine, recipe)
    inner = (slice(None), slice(4, -4), slice(4, -4))
    error = (found.warped.data - cine.data.float())[inner].abs().max()
    assert error < 1e-2 * cine.data.max()  # theta is the identity before training
