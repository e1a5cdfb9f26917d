"""The losses for MONAI: equal to MONAI's on random arguments, or refused by name."""

import re
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("monai", reason="needs the extra monai")

from monai import losses

from cmrfast.compat import monai as ours


def _case(seed):
    """An input, a target and options, at random."""
    rng = np.random.default_rng(seed)
    classes = int(rng.choice([1, 2, 4]))
    shape = [int(n) for n in rng.integers(3, 9, rng.integers(2, 4))]
    act = str(rng.choice(["softmax", "sigmoid", "other_act", "none"]))
    options = {
        "include_background": bool(rng.integers(2)),
        "jaccard": bool(rng.integers(2)),
        "batch": bool(rng.integers(2)),
        "reduction": str(rng.choice(["mean", "sum"])),
        "smooth_nr": float(rng.choice([0.0, 1e-5, 0.3])),
        "smooth_dr": float(rng.choice([1e-5, 0.7])),
    }
    if act != "none":
        options[act] = torch.tanh if act == "other_act" else True
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, classes, *shape, generator=generator)
    if act in ("none", "other_act"):  # where the sum of the prediction may be close to 0
        logits = logits.double()
    target = torch.randint(0, max(classes, 2), (3, 1, *shape), generator=generator).float()
    if classes > 1 and rng.integers(2):
        options["to_onehot_y"] = True
    elif classes > 1:
        target = torch.randint(0, 2, (3, classes, *shape), generator=generator).float()
    target = target.to(logits.dtype)
    if classes > 1 and rng.integers(2):
        options["weight"] = torch.rand(classes, generator=generator).to(logits.dtype) + 0.1
    return logits, target, options


def _same_loss(left, right, logits, target):
    values = []
    for loss in (left, right):
        x = logits.clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = loss(x, target)
        value.sum().backward()
        values.append((value.detach(), x.grad))
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(40))
def test_dice_ce_loss(seed):
    logits, target, options = _case(seed)
    rng = np.random.default_rng(seed)
    options |= {"lambda_dice": float(rng.random()), "lambda_ce": float(rng.random())}
    if logits.shape[1] == 1:
        options.pop("weight", None)
    _same_loss(ours.DiceCELoss(**options), losses.DiceCELoss(**options), logits, target)


@pytest.mark.parametrize("seed", range(40))
def test_dice_loss(seed):
    logits, target, options = _case(seed)
    if "weight" in options and not options["include_background"]:
        options["weight"] = options["weight"][1:]
    options["reduction"] = ("mean", "sum", "none")[seed % 3]
    _same_loss(ours.DiceLoss(**options), losses.DiceLoss(**options), logits, target)


@pytest.mark.parametrize("ignored", [0, 2, 255])
@pytest.mark.parametrize("classes", [1, 3])
def test_dice_loss_ignores_an_index(ignored, classes):
    if "ignore_index" not in losses.DiceLoss.__init__.__annotations__:
        pytest.skip("this MONAI has no ignore_index")
    logits, target = torch.randn(2, classes, 8, 8), torch.randint(0, max(classes, 2), (2, 1, 8, 8))
    target[:, :, 2:4] = ignored
    options = {"softmax": classes > 1, "sigmoid": classes == 1, "to_onehot_y": classes > 1}
    options["ignore_index"] = ignored
    left, right = ours.DiceLoss(**options), losses.DiceLoss(**options)
    _same_loss(left, right, logits, target)
    if classes > 1:
        options["to_onehot_y"] = False
        with pytest.raises(ValueError, match="DiceLoss: ignore_index must be None with a target"):
            ours.DiceLoss(**options)(logits, logits)


def test_losses_warn_as_monai_does():
    loss = ours.DiceLoss(softmax=True, to_onehot_y=True, include_background=False)
    with pytest.warns(UserWarning, match="single channel prediction") as caught:
        loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))
    assert {"softmax=True", "to_onehot_y=True", "include_background=False"} == {
        re.search("`(.*)`", str(warning.message))[1] for warning in caught
    }


def test_losses_keep_their_state():
    weight = torch.tensor([1.0, 2.0])
    left, right = ours.DiceCELoss(weight=weight), losses.DiceCELoss(weight=weight)
    assert left.state_dict().keys() == right.state_dict().keys()
    assert isinstance(left, losses.DiceCELoss)


def test_losses_refuse():
    for loss in (ours.DiceLoss, ours.DiceCELoss):
        with pytest.raises(ValueError, match=f"{loss.__name__}: squared_pred must be False"):
            loss(squared_pred=True)
    with pytest.raises(ValueError, match="DiceLoss: soft_label must be False"):
        ours.DiceLoss(soft_label=True)
    with pytest.raises(ValueError, match=r"DiceCELoss: label_smoothing must be 0; got 0\.1"):
        ours.DiceCELoss(label_smoothing=0.1)
    one, two = torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 4)
    with pytest.raises(ValueError, match="weight must be None for a single class"):
        ours.DiceCELoss(sigmoid=True, weight=torch.ones(1))(one, one)
    with pytest.raises(ValueError, match=r"DiceCELoss: target must be \(B, 1, \*S\)"):
        ours.DiceCELoss(softmax=True)(two, one[0])
    with pytest.raises(ValueError, match=r"DiceLoss: target must be \(1, 2, \*S\), a mask for"):
        ours.DiceLoss(softmax=True)(two, one)
    with pytest.raises(ValueError, match=r"DiceLoss: target must be \(1, 1, \*S\), labels"):
        ours.DiceLoss(softmax=True, to_onehot_y=True)(two, two)
    with pytest.raises(ValueError, match="DiceLoss: weight must have one entry per class"):
        ours.DiceLoss(softmax=True, weight=torch.ones(3))(two, two)
    with pytest.raises(ValueError, match="DiceLoss: weight must be >= 0"):
        ours.DiceLoss(softmax=True, weight=[1, -1])(two, two)
