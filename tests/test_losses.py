"""The losses against the numbers their methods give, MONAI, and themselves over ranks."""

import inspect
import math

import pytest
import torch

from cmrfast import losses, ops
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


@pytest.mark.parametrize("labels", [(), (1,)], ids=["(B, *S)", "(B, 1, *S)"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_labels_as_other_libraries_shape_and_store_them(labels, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    target = torch.randint(0, 2, (2, 8, 8), generator=generator)
    given = target.to(dtype).view(2, *labels, 8, 8)
    for loss in (losses.dice_ce_loss, losses.batch_dice_loss):
        assert torch.equal(loss(logits, given), loss(logits, target))


def test_one_class_with_a_channel_is_a_mask():
    logits, mask = torch.randn(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    soft = losses.dice_ce_loss(logits, 0.5 * mask, activation="sigmoid")
    assert soft != losses.dice_ce_loss(logits, mask, activation="sigmoid")


def test_modules_are_their_functions():
    logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    rows, others = torch.randn(2, 6, 4).unbind()
    for module, function, args, options in (
        (losses.BatchDiceLoss, losses.batch_dice_loss, (logits, target), {"activation": "softmax"}),
        (losses.DiceCELoss, losses.dice_ce_loss, (logits, target), {"over": "all", "smooth": 1.0}),
        (losses.NTXentLoss, ops.nt_xent, (rows, others), {"temperature": 0.2, "symmetric": True}),
    ):
        assert torch.equal(module()(*args), function(*args))
        assert torch.equal(module(**options)(*args), function(*args, **options))
        assert all(f"{k}={v!r}" in repr(module(**options)) for k, v in options.items())
        assert not list(module().parameters())
    targets = torch.arange(6).flip(0)
    assert torch.equal(
        losses.NTXentLoss()(rows, others, targets), ops.nt_xent(rows, others, targets=targets)
    )


def test_modules_take_the_options_of_their_functions():
    for module, function in (
        (losses.BatchDiceLoss, losses.batch_dice_loss),
        (losses.DiceCELoss, losses.dice_ce_loss),
    ):
        given = inspect.signature(module).parameters
        theirs = list(inspect.signature(function).parameters.values())[2:]
        assert [(p.name, p.default) for p in given.values()] == [
            (p.name, p.default) for p in theirs
        ]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_ignored_labels_count_as_if_cropped_away(activation):
    logits, labels = torch.randn(2, 3, 8, 6), torch.randint(3, (2, 8, 6))
    labels[:, 4:] = -100
    whole = losses.dice_ce_loss(logits, labels, activation=activation)
    cropped = losses.dice_ce_loss(logits[:, :, :4], labels[:, :4], activation=activation)
    torch.testing.assert_close(whole, cropped)
