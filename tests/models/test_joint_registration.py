"""joint_registration: counts, the identity at the start, warps of known size, losses."""

import math

import pytest
import torch

from cmrfast.losses import dual_loss
from cmrfast.models import build
from cmrfast.models.joint_registration import Config, loss, warp_masks
from cmrfast.ops import affine_sample

IDENTITY = torch.tensor([[1.0, 0, 0], [0, 1, 0]])


def count(module):
    return sum(p.numel() for p in module.parameters())


def published(**changes):
    with torch.device("meta"):
        return build("joint_registration", **changes)


def discs(side=64, shift=0):
    """Labels of three discs in each other, ``shift`` pixels to the right: (1, side, side)."""
    at = torch.arange(side) - side / 2
    radius = (at[:, None] ** 2 + (at - shift) ** 2).sqrt()
    return sum((radius < side / k).long() for k in (10, 6, 4))[None]


def test_parameter_counts():
    model = published()
    assert count(model) == 11_168_750
    assert count(model.encoder) == 4_713_632
    assert count(model.cine) == count(model.lge) == 3_048_932
    assert count(model.head) == 357_254
    assert count(published(variant="stn")) == 5_039_430
    assert count(published(fusion="image")) == 5_039_430 + 2 * 3_048_932


def test_starts_at_the_identity():
    for variant in ("joint", "stn"):
        model = build("joint_registration", variant=variant, widths=(4, 6, 8)).eval()
        theta = model(*torch.randn(2, 3, 1, 32, 32))["theta"]
        assert torch.equal(theta, IDENTITY.expand(3, 2, 3))
    image = torch.rand(3, 1, 32, 32)
    assert (affine_sample(image, theta) - image).abs().max() < 1e-4


def test_every_unit_of_the_head_can_learn_again():
    """Steps that disagree drive all hidden units below 0; from there gradients still reach them."""
    head = build("joint_registration", variant="stn", widths=(4, 6, 8)).head
    features = [torch.rand(4, c, 32 >> level, 32 >> level) for level, c in enumerate((4, 6, 8))]
    torch.nn.init.normal_(head.theta.weight)
    torch.nn.init.constant_(head.hidden.bias, -100)
    head(features).square().sum().backward()
    assert (head.hidden.bias.grad != 0).all()
    assert (head.theta.weight.grad != 0).any(0).all()


def test_theta_keeps_its_precision_under_autocast():
    model = build("joint_registration", variant="stn", widths=(4, 6, 8)).eval()
    torch.nn.init.normal_(model.head.theta.weight, std=0.01)
    images = torch.randn(2, 3, 1, 32, 32)
    theta = model(*images)["theta"]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(*images)["theta"]
    assert mixed.dtype == torch.float32
    moved = (theta - IDENTITY).abs().max()
    assert (mixed - theta).abs().max() < 0.03 * moved < 2**-9  # rounding of 1 in bfloat16


def test_ten_pixels():
    theta = IDENTITY[None].clone()
    theta[0, 0, 2] = 2 * 10 / 224
    image = torch.rand(1, 1, 224, 224)
    warped = affine_sample(image, theta)
    torch.testing.assert_close(warped[..., :-10], image[..., 10:], rtol=0, atol=1e-4)
    assert warped[..., -9:].abs().max() < 1e-4


def test_warped_masks_sum_to_one_and_outside_is_background():
    labels = torch.randint(0, 4, (2, 16, 16))
    theta = IDENTITY + 0.4 * torch.randn(2, 2, 3)
    masks = warp_masks(labels, theta)
    torch.testing.assert_close(masks.sum(1), torch.ones(2, 16, 16))
    assert masks.min() > -1e-6
    far = IDENTITY[None].clone()
    far[0, 0, 2] = 5
    assert torch.equal(warp_masks(labels[:1], far).argmax(1), torch.zeros(1, 16, 16).long())
    assert torch.equal(warp_masks(labels, IDENTITY.expand(2, 2, 3)).argmax(1), labels)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_perfect_is_zero_whatever_alpha(alpha):
    labels = discs()
    masks = torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).float()
    assert dual_loss(200 * masks, labels, alpha=alpha).item() == pytest.approx(0, abs=1e-5)
    warped = dual_loss(masks, labels, activation="none", alpha=alpha)
    assert warped.item() == pytest.approx(alpha * math.log(1.0004 / 1.0001), abs=1e-5)


def outputs_of(logits, theta):
    return {"theta": theta, "cine": logits, "lge": logits}


def test_loss_anchors():
    labels, theta = discs(), IDENTITY[None]
    batch = {"cine_labels": labels, "lge_labels": labels}
    uniform = torch.zeros(1, 4, 64, 64)
    found = loss(outputs_of(uniform, theta), batch, Config(alpha=1.0))
    assert found["cine"].item() == pytest.approx(math.log(4), abs=1e-5)
    weights = Config(registration_weight=0.5, cine_weight=2.0, lge_weight=3.0)
    found = loss(outputs_of(uniform, theta), batch, weights)
    total = 0.5 * found["registration"] + 2 * found["cine"] + 3 * found["lge"]
    torch.testing.assert_close(found["loss"], total)
    assert set(loss({"theta": theta}, batch)) == {"loss", "registration"}


def test_the_loss_is_least_at_the_true_shift():
    cine, lge = discs(), discs(shift=4)
    batch = {"cine_labels": cine, "lge_labels": lge}
    found = []
    for d in range(9):
        theta = IDENTITY[None].clone()
        theta[0, 0, 2] = 2 * d / 64
        found.append(loss({"theta": theta}, batch)["registration"].item())
    assert found.index(min(found)) == 4
    assert torch.equal(
        warp_masks(lge, torch.tensor([[[1.0, 0, 8 / 64], [0, 1, 0]]])).argmax(1), cine
    )


def test_gradient_in_theta():
    batch = {"cine_labels": discs(16), "lge_labels": discs(16, shift=2)}
    torch.manual_seed(0)
    theta = (IDENTITY + 0.1 * torch.randn(1, 2, 3)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: loss({"theta": t}, batch)["loss"], theta)


def test_gradients_of_registration_reach_the_shared_encoder():
    model = build("joint_registration", widths=(4, 6, 8))
    torch.nn.init.normal_(model.head.theta.weight, std=0.01)
    batch = {"cine_labels": discs(32), "lge_labels": discs(32, shift=3)}
    found = loss(model(*torch.randn(2, 1, 1, 32, 32)), batch)
    found["registration"].backward()
    assert model.encoder.levels[0][0].conv.weight.grad.norm() > 0
    assert all(p.grad is None for p in (*model.cine.parameters(), *model.lge.parameters()))


def test_each_decoder_sees_its_image():
    model = build("joint_registration", widths=(4, 6, 8)).eval()
    cine, lge, other = torch.randn(3, 1, 1, 32, 32)
    before, after = model(cine, lge), model(cine, other)
    torch.testing.assert_close(before["cine"], after["cine"])
    assert not torch.allclose(before["lge"], after["lge"])


def test_messages():
    for changes, match in (
        ({"variant": "both"}, r"variant must be one of joint, stn; got 'both'"),
        ({"fusion": "late"}, r"fusion must be one of feature, image; got 'late'"),
        ({"alpha": 5.0}, r"alpha must lie in \[0, 1\]; got 5.0"),
        ({"widths": (4,)}, r"widths must have two levels or more; got \(4,\)"),
    ):
        with pytest.raises(ValueError, match=f"joint_registration: {match}"):
            Config(**changes)
    model = published()
    with pytest.raises(ValueError, match=r"space axes of cine must be multiples of 16; got \(40,"):
        model(torch.zeros(1, 1, 40, 40), torch.zeros(1, 1, 40, 40))
    with pytest.raises(ValueError, match=r"cine and lge must have one shape; got .* and"):
        model(torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 48, 48))
    theta = IDENTITY[None]
    for labels, error, match in (
        (discs() + 1, ValueError, r"labels must be 0 to 3; got values from 1 to 4"),
        (discs().float(), TypeError, r"labels must be integers; got torch.float32"),
        (torch.cat((discs(), discs())), ValueError, r"labels must be \(1, 64, 64\); got \(2,"),
    ):
        with pytest.raises(error, match=f"joint_registration: {match}"):
            warp_masks(labels, theta)
