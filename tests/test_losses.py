"""The losses against the numbers their methods give, MONAI, and themselves over ranks."""

import math

import pytest
import torch

from cmrfast import losses
from tests.support.ranks import on_two_ranks


def quarter(n=8):
    labels = torch.zeros(1, n, n, dtype=torch.int64)
    labels[:, : n // 2, : n // 2] = 1
    return labels


def one_hot(labels, classes):
    return torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).float()


def test_joint_scar_anchor():
    loss = losses.joint_scar_loss(torch.zeros(1, 2, 64, 64), quarter(64))
    assert loss.item() == pytest.approx(math.log(2) + 2 / 3, abs=1e-5)
    perfect = 200 * (one_hot(quarter(), 2) - 0.5)
    assert losses.joint_scar_loss(perfect, quarter()).item() == pytest.approx(0, abs=1e-6)
    empty = torch.zeros(1, 8, 8, dtype=torch.int64)
    background = 200 * (one_hot(empty, 2) - 0.5)
    assert losses.joint_scar_loss(background, empty).item() == pytest.approx(0, abs=1e-6)


def test_dual_anchors():
    labels = torch.randint(0, 4, (2, 16, 16))
    perfect = one_hot(labels, 4)
    floor = 0.5 * math.log(1.0004 / 1.0001)  # what eps inside the logarithm leaves
    loss = losses.dual_loss(perfect, labels, activation="none")
    assert loss.item() == pytest.approx(floor, abs=1e-6)
    uniform = torch.full((2, 4, 16, 16), 0.25)
    entropy = losses.dice_ce_loss(uniform, labels, activation="none", dice_weight=0.0)
    assert entropy.item() == pytest.approx(math.log(4), abs=1e-5)


def test_batch_dice_anchors():
    shape = (2, 5, 8, 8, 8)
    ones, zeros = torch.ones(shape), torch.zeros(shape)
    sure = {True: torch.full(shape, 200.0), False: torch.full(shape, -200.0)}
    assert losses.batch_dice_loss(sure[True], ones).item() == pytest.approx(-1)
    assert losses.batch_dice_loss(sure[False], zeros).item() == pytest.approx(-2)
    assert losses.batch_dice_loss(sure[False], ones).item() == pytest.approx(0, abs=1e-6)


def test_adversarial_anchor():
    labels = torch.randint(0, 4, (2, 224, 224))
    loss = losses.adversarial_segmentation_loss(torch.zeros(2, 4, 224, 224), labels)
    assert loss.item() == pytest.approx(1.322665, abs=1e-5)


def test_agrees_with_monai():
    monai = pytest.importorskip("monai.losses")
    logits, labels = torch.randn(3, 4, 16, 16), torch.randint(0, 4, (3, 16, 16))
    reference = monai.DiceCELoss(
        softmax=True, to_onehot_y=True, include_background=False, smooth_nr=1e-6, smooth_dr=1e-6
    )
    ours = losses.dice_ce_loss(logits, labels)
    torch.testing.assert_close(ours, reference(logits, labels[:, None]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("option", [{"over": "pixel"}, {"classes": "some"}])
def test_messages(option):
    with pytest.raises(ValueError, match=r"dice_ce_loss: (over|classes) must be one of"):
        losses.dice_ce_loss(torch.zeros(1, 2, 4, 4), quarter(4), **option)


CALLS = {
    "image": lambda x, t, g: losses.joint_scar_loss(x, t, group=g),
    "batch": lambda x, t, g: losses.dual_loss(x, t, group=g),
    "all": lambda x, t, g: losses.adversarial_segmentation_loss(x, t, group=g),
    "ratio": lambda x, t, g: losses.batch_dice_loss(x, t, activation="softmax", group=g),
}


def data():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 8, 8, generator=generator)
    return logits, torch.randint(0, 4, (3, 8, 8), generator=generator)


def of_its_part(rank, group):
    """Two images on rank 0 and one on rank 1: losses, and gradients as DDP would average them."""
    logits, labels = (x[:2] if rank == 0 else x[2:] for x in data())
    found = {}
    for name, call in CALLS.items():
        own = logits.clone().requires_grad_()
        loss = call(own, labels, group)
        loss.backward()
        found[name] = loss.item(), own.grad / 2
    return found


def test_two_ranks_give_the_loss_and_gradient_of_one(tmp_path):
    found = on_two_ranks(of_its_part, tmp_path)
    logits, labels = data()
    for name, call in CALLS.items():
        whole = logits.clone().requires_grad_()
        loss = call(whole, labels, None)
        loss.backward()
        assert found[0][name][0] == pytest.approx(loss.item(), abs=1e-5)
        parts = torch.cat([of_rank[name][1] for of_rank in found])
        torch.testing.assert_close(parts, whole.grad, rtol=1e-4, atol=1e-7)
