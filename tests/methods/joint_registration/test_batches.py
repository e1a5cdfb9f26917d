"""Batches of joint_registration: pairs of slices, their augmentation, and learning from them."""

from dataclasses import replace

import torch

from cmrfast.models import build
from cmrfast.models.joint_registration import loss
from tests.support.batches import pure_batch
from tests.support.joint_registration_cases import NARROW, SMALL


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
