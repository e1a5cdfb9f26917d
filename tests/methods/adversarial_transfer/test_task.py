"""adversarial_transfer's task: whose masks are used, crops and warps, labels on their grids."""

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from cmrfast import methods
from cmrfast.data import Volume, read_nifti, write_nifti
from cmrfast.data.cache import Cache
from cmrfast.data.datasets import Files
from cmrfast.data.prepare import z_score
from cmrfast.errors import FileError
from cmrfast.methods import Objective
from cmrfast.methods.adversarial_transfer.crops import Crops, five_windows
from cmrfast.methods.adversarial_transfer.images import middle_window, segment
from cmrfast.methods.adversarial_transfer.transfer import borrowed_masks
from cmrfast.models import build
from cmrfast.models.adversarial_transfer import RECIPE, Config, Recipe, step
from cmrfast.train import train
from tests.support.batches import pure_batch
from tests.support.cases import phantoms, without

SMALL = Recipe(view_px=0, crop_shift_px=3, pixel_mm=0)  # pixels as stored
NARROW = Config(size=56, width=4, disc_widths=(4, 6, 8))
METHOD = methods.get("adversarial_transfer")
TASK = METHOD.task


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hearts")
    return phantoms("mscmrseg", folder, cases=4, shrink=4, seed=3)


@pytest.fixture(scope="module")
def feed(cases):
    return TASK(NARROW, SMALL).feed(cases, seed=5)


class Knowing(nn.Module):
    """Says of each slice, in order, what its mask says."""

    def __init__(self, labels, size):
        super().__init__()
        i, j, _ = labels.shape
        start = [i // 2 - size[0] // 2, j // 2 - size[1] // 2]
        self.logits = torch.zeros(labels.shape[2], 4, *size)
        padded = nn.functional.pad(labels.movedim(-1, 0), (0, size[1], 0, size[0]))
        shifted = padded.roll((-start[0], -start[1]), (1, 2))[:, : size[0], : size[1]]
        self.logits.scatter_(1, shifted[:, None].long(), 20.0)
        self.next = 0

    def forward(self, images):
        first, self.next = self.next, self.next + len(images)
        return {"logits": self.logits[first : self.next]}


def test_recipe_is_the_papers():
    assert (RECIPE.lr, RECIPE.batch, RECIPE.epochs, RECIPE.pretrain_epochs) == (2e-4, 16, 50, 30)
    assert RECIPE.lr_at(0, 0) == 2e-4
    assert RECIPE.lr_at(49, 10**6) == pytest.approx(2e-4 / 1.01)
    for epoch, adversarial in ((0, False), (29, False), (30, True), (49, True)):
        assert RECIPE.step_options(epoch) == {"adversarial": adversarial}
    never = "the adversary{}, from epoch 31 on (pretrain_epochs)"
    assert RECIPE.not_reached(Config(variant="u_a"), 29) == never.format("")
    assert RECIPE.not_reached(Config(), 0) == never.format(" and borrowed masks")
    assert RECIPE.not_reached(Config(), 30) == RECIPE.not_reached(Config(variant="u"), 0) == ""
    for name in ("pretrain_epochs", "lge_masks", "crop_shift_px", "copies", "view_px"):
        with pytest.raises(ValueError, match=f"{name} must be >= 0; got -1"):
            Recipe(**{name: -1})
    with pytest.raises(ValueError, match=r"zoom must be 0 < low <= high; got \(1.2, 0.8\)"):
        Recipe(zoom=(1.2, 0.8))
    with pytest.raises(ValueError, match="slice_map must be one of paper, code; got 'index'"):
        Recipe(slice_map="index")
    with pytest.raises(ValueError, match=r"pixel_mm must be >= 0; got -1"):
        Recipe(pixel_mm=-1)


def test_batches_are_what_the_step_takes(feed):
    samples = torch.arange(0, len(feed), 7)[:6]
    alone, with_pseudo = feed.batch(29, samples), feed.batch(30, samples)
    assert alone.keys() == {"images", "labels"}
    assert with_pseudo.keys() == {"images", "labels", "pseudo_images", "pseudo_labels"}
    for name in ("", "pseudo_"):
        images, labels = with_pseudo[f"{name}images"], with_pseudo[f"{name}labels"]
        assert images.shape == (6, 1, 56, 56)
        assert images.dtype == torch.float32
        assert images.isfinite().all()
        assert labels.shape == (6, 56, 56)
        assert labels.dtype == torch.uint8
        assert set(labels.unique().tolist()) <= {0, 1, 2, 3}
        assert labels.flatten(1).any(1).all()


def test_a_batch_depends_on_epoch_and_samples_alone(feed):
    few = pure_batch(feed, 31, [7, 3])
    other = feed.batch(32, torch.tensor([7, 3]))
    assert not torch.equal(few["images"], other["images"])
    assert not torch.equal(few["pseudo_images"], other["pseudo_images"])


def test_an_epoch_uses_pseudo_samples_equally_often(feed):
    seen = []
    feed = type(feed)(feed.true, feed.pseudo)
    kept, feed.pseudo = feed.pseudo, Watched(len(feed.pseudo), seen)
    for samples in torch.arange(len(feed)).split(50):
        feed.batch(30, samples)
    counts = torch.cat(seen).bincount(minlength=len(kept))
    assert counts.max() - counts.min() <= 1


class Watched:
    """Notes which samples were asked for."""

    def __init__(self, count, seen):
        self.count, self.seen = count, seen

    def __len__(self):
        return self.count

    def batch(self, epoch, samples):
        self.seen.append(samples)
        return torch.zeros(len(samples)), torch.zeros(len(samples))


def test_few_patients_lend_their_lge_masks(cases):
    def lenders(count, **changes):
        several = [replace(cases[0], name=f"patient{n}") for n in range(1, count + 1)]
        return TASK(NARROW, replace(RECIPE, **changes))._lge_lenders(several)

    assert lenders(33) == {f"patient{n}" for n in range(1, 6)}
    assert lenders(35) == lenders(70) == lenders(33)
    assert lenders(12) == {"patient1", "patient2"}
    assert lenders(2) == {"patient1"}
    assert lenders(33, lge_masks=0) == set()
    bare = replace(cases[0], labels={})
    found = TASK(NARROW, RECIPE)._lge_lenders([bare, replace(cases[0], name="second")])
    assert found == {"second"}


def test_stacks_are_those_of_the_paper(cases):
    task = TASK(NARROW, SMALL)
    true, pseudo = task._stacks(cases[0], True)
    assert len(true) == 3
    assert pseudo == []
    for stack, sequence in zip(true, ("C0", "T2", "LGE"), strict=True):
        image, label = cases[0].image(sequence), cases[0].label(sequence)
        shown = [k for k in range(image.shape[2]) if label.data[..., k].any()]
        assert torch.equal(stack["images"].movedim(0, -1), image.data[..., shown])
        assert torch.equal(stack["labels"].movedim(0, -1), label.data[..., shown])
        assert stack["images"].dtype == image.data.dtype
    true, pseudo = task._stacks(cases[1], False)
    assert len(true) == len(pseudo) == 2
    assert all(s["images"].shape[1:] == (1, *cases[1].image("LGE").shape[:2]) for s in pseudo)
    for variant in ("u", "u_a"):
        task = TASK(replace(NARROW, variant=variant), SMALL)
        assert task._stacks(cases[1], False)[1] == []
        assert task.feed(cases[:2], seed=0).batch(30, torch.arange(2)).keys() == {
            "images",
            "labels",
        }


def test_a_crop_in_plain_torch(cases):
    stack = TASK(NARROW, SMALL)._stacks(cases[1], False)[0][0]
    crops = Crops([stack], 56, replace(SMALL, copies=0), seed=0, device="cpu")
    assert len(crops) == 5 * len(stack["images"])
    images, labels = crops.batch(0, torch.arange(len(crops)))
    normal = z_score(stack["images"][:, 0].movedim(0, -1)[None], over="slice")[0].movedim(-1, 0)
    starts = five_windows(stack["labels"].amax((0, 1)), 56, 3).tolist()
    shape = stack["images"].shape[2:]
    for n in range(len(crops)):
        (i, j), k = starts[n % 5], n // 5
        window = torch.zeros(56, 56)
        mask = torch.zeros(56, 56, dtype=torch.uint8)
        rows = range(max(i, 0), min(i + 56, shape[0]))
        columns = range(max(j, 0), min(j + 56, shape[1]))
        for row in rows:
            for_row = slice(columns[0] - j, columns[-1] + 1 - j)
            window[row - i, for_row] = normal[k, row, columns[0] : columns[-1] + 1]
            mask[row - i, for_row] = stack["labels"][k, 0, row, columns[0] : columns[-1] + 1]
        torch.testing.assert_close(images[n, 0], window, rtol=1e-5, atol=1e-5)
        assert torch.equal(labels[n], mask)


def test_masks_are_borrowed_by_order_and_position(cases):
    lender, borrower = cases[1].label("C0"), cases[1].image("LGE")
    slices, masks = borrowed_masks(lender, borrower)
    lent, borrowed = lender.shape[2], borrower.shape[2]
    assert lent < borrowed
    assert slices == [i * borrowed // lent for i in range(lent)]
    assert masks.shape == (1, *borrower.shape[:2], lent)
    assert masks.dtype == torch.uint8
    assert borrowed_masks(lender, borrower, "code")[0] != slices
    vox_from_vox = lender.world_from_vox.inverse() @ borrower.world_from_vox
    for s in (3, 7):
        i, j = 24, 26
        at = vox_from_vox @ torch.tensor([i, j, slices[s], 1]).double()
        # In the lender's slice s, below the borrower's pixel along the lender's third axis.
        nearest = (at[:2] + 0.5).floor().long()
        assert masks[0, i, j, s] == lender.data[0, nearest[0], nearest[1], s]
    own_grid = borrowed_masks(lender, lender)
    assert own_grid[0] == list(range(lent))
    assert torch.equal(own_grid[1], lender.data)


def test_stacks_in_opposite_order_are_matched_base_to_base(cases):
    lender, borrower = cases[1].label("C0"), cases[1].image("LGE")
    turned = lender.world_from_vox.clone()
    turned[:, 3] += 10 * turned[:, 2]
    turned[:, 2] *= -1
    slices, masks = borrowed_masks(Volume(lender.data.flip(3), turned), borrower)
    expected = borrowed_masks(lender, borrower)
    assert slices == expected[0]
    assert torch.equal(masks, expected[1])


def test_an_oracle_scores_perfectly(cases):
    case = cases[2]
    truth = case.label("LGE").data[0]
    task = TASK(NARROW, SMALL)
    _, size = middle_window(tuple(truth.shape[:2]), 0)
    (row,) = task.evaluate(Knowing(truth, size).eval(), case)
    for name in ("lv", "myocardium", "rv"):
        assert row.scores[f"{name}_dice_percent"] == 100
        assert row.scores[f"{name}_jaccard"] == 1
        assert row.scores[f"{name}_assd_mm"] == row.scores[f"{name}_hausdorff_mm"] == 0
        assert row.scores[f"{name}_hd95_mm"] == 0
    assert row.scores["dice_percent"] == 100
    assert row.ids == {"case": case.name}
    named = {name for published in METHOD.published.values() for name in published.cells}
    assert named <= row.scores.keys()
    assert METHOD.published["u_a_t"].cells["myocardium_dice_percent"] == "61.0"
    assert METHOD.objective == Objective("dice_percent", maximise=True)
    assert METHOD.objective.name in row.scores
    missed = Knowing(torch.where(truth == 3, 0, truth), size).eval()
    (row,) = task.evaluate(missed, case)
    assert row.scores["rv_dice_percent"] == 0
    assert math.isnan(row.scores["rv_hausdorff_mm"])  # there is no distance to nothing
    assert row.scores["dice_percent"] == pytest.approx(200 / 3)
    assert row.present == {"lv": "both", "myocardium": "both", "rv": "reference"}
    assert METHOD.overlaps["rv_jaccard"] == "rv"
    assert METHOD.overlaps.keys() <= row.scores.keys()


def test_predictions_lie_on_the_inputs_grid(cases, tmp_path):
    case = cases[0]
    truth = case.label("LGE")
    _, size = middle_window(truth.shape[:2], 0)
    task = TASK(NARROW, SMALL)
    found = task.predict(Knowing(truth.data[0], size).eval(), case)
    (name,) = found.images
    output = found.images[name]
    write_nifti(tmp_path / "labels.nii.gz", output.volume, like=output.like)
    back, source = read_nifti(tmp_path / "labels.nii.gz"), read_nifti(output.like)
    assert name == "labels"
    assert back.shares_grid(source, tolerance_mm=0)
    assert torch.equal(back.data.byte(), truth.data)
    ml = truth.spacing_mm[0] * truth.spacing_mm[1] * truth.spacing_mm[2] / 1000
    assert found.facts["rv_ml"] == pytest.approx((truth.data == 3).sum().item() * ml, rel=1e-6)
    picture = task.picture(Knowing(truth.data[0], size).eval(), case)
    assert torch.equal(picture.predicted.data, picture.reference.data)
    assert picture.image.shares_grid(picture.predicted)


@pytest.mark.parametrize(("shape", "view_px"), [((50, 37), 0), ((50, 37), 24), ((20, 90), 50)])
def test_the_middle_is_seen_and_put_back(shape, view_px):
    class Sign(nn.Module):
        def forward(self, images):
            seen.append(images)
            return {"logits": torch.cat((torch.zeros_like(images).repeat(1, 3, 1, 1), images), 1)}

    seen = []
    volume = Volume(torch.randn(2, *shape, 3), torch.eye(4))
    found = segment(
        Sign().eval(), volume, replace(SMALL, view_px=view_px), probabilities=True, batch=4
    )
    assert [len(part) for part in seen] == [4, 2]
    normal = z_score(volume.data, over="slice")
    sides = [min(n, view_px) if view_px else n for n in shape]
    sides = [-(-side // 8) * 8 for side in sides]
    assert seen[0].shape[2:] == tuple(sides)
    inside = torch.zeros(shape, dtype=torch.bool)
    i, j = (max(0, n // 2 - side // 2) for n, side in zip(shape, sides, strict=True))
    inside[i : i + sides[0], j : j + sides[1]] = True
    expected = torch.where(inside[..., None] & (normal > 0), 3, 0)
    assert torch.equal(found.labels.data, expected.byte())
    shares = found.probabilities.data.unflatten(0, (2, 4))
    torch.testing.assert_close(shares.sum(1), torch.ones_like(normal))
    torch.testing.assert_close(
        shares[:, 3], torch.where(inside[..., None], normal.exp() / (3 + normal.exp()), 0)
    )
    assert segment(Sign().eval(), volume).probabilities is None


def test_a_heart_has_one_size_in_all_sequences(tmp_path):
    case = phantoms("mscmrseg", tmp_path, cases=1)[0]
    across = {}
    for pixel_mm in (0.0, 1.25):
        stacks = TASK(NARROW, replace(SMALL, pixel_mm=pixel_mm))._stacks(case, True)[0]
        wide = [(stack["labels"] != 0).amax((0, 1, 3)).sum().item() for stack in stacks]
        across[pixel_mm] = max(wide) / min(wide)
    assert across[0.0] > 1.3  # the sequences' own pixels
    assert across[1.25] < 1.15
    assert {stack["images"].dtype for stack in stacks} == {torch.float32}


@pytest.mark.parametrize("own_mm", [0.7, 1.25, 2.0])
def test_labels_come_back_on_the_images_pixels(own_mm):
    class Bright(nn.Module):
        def forward(self, images):
            seen.append(images)
            return {"logits": torch.cat((images * 0, images * 0, images * 0, 9 * images), 1)}

    seen = []
    side = round(120 / own_mm)
    volume = Volume(torch.zeros(1, side, side + 5, 2), torch.diag(torch.tensor([own_mm] * 3 + [1])))
    i, j = torch.meshgrid(torch.arange(side), torch.arange(side + 5), indexing="ij")
    disc = ((i - side // 2) ** 2 + (j - side // 2) ** 2).sqrt() * own_mm < 25
    volume.data[0, ..., 1] = disc.float()
    found = segment(Bright().eval(), volume, Recipe(view_px=0), probabilities=True)
    assert abs(seen[0].shape[-2] * 1.25 - 120) < 10
    assert found.labels.data.shape == volume.data.shape
    assert not found.labels.data[..., 0].any()
    labelled = found.labels.data[0, ..., 1] == 3
    assert 2 * (labelled & disc).sum() / (labelled.sum() + disc.sum()) > 0.95
    total = found.probabilities.data.sum(0)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_one_image_makes_a_case(cases):
    case = cases[1]
    assert METHOD.needs.predict == Files(images=("LGE",))
    alone = replace(case, images={"LGE": case.images["LGE"]}, labels={}, labelling={})
    model = build("adversarial_transfer", **vars(NARROW)).eval()
    task = TASK(NARROW, SMALL)
    found = task.predict(model, alone).images["labels"].volume.data
    task.predict_batch = 2
    assert torch.equal(task.predict(model, case).images["labels"].volume.data, found)


def test_what_cannot_be_used_is_named(cases, caplog, tmp_path):
    task = TASK(NARROW, SMALL)
    bare = replace(cases[0], labels={})
    task.feed([bare, *cases[1:]], seed=0)
    assert "patient1 is left out" in caplog.text
    assert task.evaluate(nn.Identity(), bare) == []
    with pytest.raises(FileError, match="patient1 has no slice with a mask"):
        task.feed([bare], seed=0)
    with pytest.raises(
        FileError, match="needs a training patient with an LGE image and a mask of C0 or T2"
    ):
        task.feed(cases[:1], seed=0)
    assert len(TASK(replace(NARROW, variant="u"), SMALL).feed(cases[:1], seed=0))
    no_lge = without(cases[1], images=["LGE"])
    with pytest.raises(FileError, match="patient2 has no LGE image"):
        task.predict(build("adversarial_transfer", **vars(NARROW)).eval(), no_lge)
    image = cases[1].image("LGE")
    path = tmp_path / "frames.nii.gz"
    write_nifti(path, Volume(image.data.repeat(2, 1, 1, 1), image.world_from_vox))
    moving = replace(cases[1], images=cases[1].images | {"LGE": path})
    with pytest.raises(FileError, match=r"frames.nii.gz must have 1 channel; got 2 channels"):
        task.evaluate(nn.Identity(), moving)
    other = replace(cases[1], labels=cases[1].labels | {"LGE": cases[2].labels["LGE"]})
    message = (
        f"label: {other.labels['LGE']} must be one mask on the grid of its image, {image.shape}; "
        f"got {tuple(other.label('LGE').data.shape)}"
    )
    with pytest.raises(FileError, match=f"^{re.escape(message)}$"):
        task.evaluate(nn.Identity(), other)


def test_cached_preparation_is_the_same(cases, feed, tmp_path):
    for _ in range(2):  # made, then read
        again = TASK(NARROW, SMALL, cache=Cache(tmp_path)).feed(cases, seed=5)
        one, other = (f.batch(30, torch.arange(4)) for f in (feed, again))
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name])
    # 3 stacks of the patient that lends its LGE masks, 4 of each other.
    assert len(list(tmp_path.glob("*.safetensors"))) == 3 + 3 * 4


def test_a_few_steps_lower_the_loss(feed, threads):
    threads(1)
    model = build("adversarial_transfer", **vars(NARROW)).train()
    optimisers = {n: torch.optim.Adam(p.parameters(), 1e-2) for n, p in model.named_children()}
    losses = []
    for epoch in (0, 29, 30, 31):
        for _ in range(8):
            batch = feed.batch(epoch, torch.arange(0, 80, 10))
            losses.append(step(model, batch, optimisers, **SMALL.step_options(epoch)))
    first, last = (sum(part["individual"].item() for part in p) for p in (losses[:4], losses[-4:]))
    assert last < 0.7 * first
    assert "transfer" not in losses[15]
    assert losses[16]["transfer"].isfinite()


def test_real_stacks(real_images):
    path = real_images / "emidec_samples/samplePositive/Images/samplePositive.nii.gz"
    with pytest.warns(UserWarning, match="lengths pixdim's"):
        image = read_nifti(path)
    model = build("adversarial_transfer", **vars(NARROW)).eval()
    found = segment(model, image, probabilities=True)
    assert found.labels.shares_grid(image)
    shares = found.probabilities.data
    torch.testing.assert_close(shares.sum(0), torch.ones(image.shape))
    assert torch.equal(shares.argmax(0).byte(), found.labels.data[0])


def test_the_codes_recipe_resumes_to_the_bit_across_its_change_of_optimiser(tmp_path):
    phantoms("mscmrseg", tmp_path / "data", cases=4, shrink=4, seed=3)
    changes = {
        **{"width": 4, "size": 32, "disc_widths": (4, 6, 8), "view_px": 32, "crop_shift_px": 2},
        **{"pixel_mm": 5.0, "copies": 0, "g_steps": 2},
        **{"optimizer_g": "rmsprop", "pretrain_epochs": 1, "epochs": 2},
    }

    def trained(out, **options):
        options |= {"changes": changes, "device": "cpu"}
        return train(METHOD.name, tmp_path / "data", out, **options)

    whole = trained(tmp_path / "whole")
    half = whole.plan.steps // 2
    for steps in (half - 1, half, half + 1, None):  # before, at and after the change; to the end
        parts = trained(tmp_path / "parts", steps=steps, resume=True)
        optimisers = parts.checkpoint().state["optimisers"]
        assert bool(optimisers["combined"]["state"]) == (steps is None or steps > half)
    one, other = (run.checkpoint().state for run in (whole, parts))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
