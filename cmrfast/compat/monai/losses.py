"""MONAI's DiceLoss and DiceCELoss on the sums of ``dice_ce_sums``."""

import warnings
from typing import Any

from monai import losses
from torch import Tensor

from cmrfast.compat.monai._check import refuse
from cmrfast.ops.dice_ce_sums import Activation, class_sums


class DiceLoss(losses.DiceLoss):
    """``monai.losses.DiceLoss``; the same arguments and values.

    One pass over the input, and one for its gradient, without one-hot labels or probabilities in
    memory. Raises for ``squared_pred`` and ``soft_label``, and for ``ignore_index`` with a target
    that has a channel for each of several classes.

    Example:
        >>> import torch
        >>> loss = DiceLoss(to_onehot_y=True, softmax=True)
        >>> labels = torch.ones(1, 1, 8, 8)
        >>> round(loss(torch.zeros(1, 2, 8, 8), labels).item(), 4)
        0.6667
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _require_kept("DiceLoss", self)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss.

        Args:
            input: (B, K, *S).
            target: labels (B, 1, *S) with ``to_onehot_y``, else masks (B, K, *S).

        Returns:
            A scalar; with the reduction ``none`` (B, K, 1, ...), or (K, 1, ...) over a batch.
        """
        return _dice(self, _sums("DiceLoss", self, input, target), input.dim() - 2)


class DiceCELoss(losses.DiceCELoss):
    """``monai.losses.DiceCELoss``; the same arguments and values.

    With ``softmax``, or one class and ``sigmoid``, Dice and cross entropy share one pass over the
    input; otherwise MONAI defines them of different activations, which takes two. Raises for
    ``squared_pred`` and ``label_smoothing``, and for ``weight`` with a single class.

    Example:
        >>> import torch
        >>> loss = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
        >>> labels = torch.ones(1, 1, 8, 8)
        >>> round(loss(torch.zeros(1, 2, 8, 8), labels).item(), 4)
        1.0265
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _require_kept("DiceCELoss", self.dice)
        smoothing = self.cross_entropy.label_smoothing
        if smoothing:
            refuse("DiceCELoss", "label_smoothing", "0", smoothing)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            input: (B, K, *S).
            target: labels (B, 1, *S) with ``to_onehot_y``, else masks (B, K, *S).
        """
        classes = input.shape[1]
        if input.dim() != target.dim() or target.shape[1] not in (1, classes):
            raise ValueError(
                "compat.monai.DiceCELoss: target must be (B, 1, *S) or (B, K, *S) for input "
                f"{tuple(input.shape)}; got {tuple(target.shape)}"
            )
        activation: Activation = "softmax" if classes > 1 else "sigmoid"
        if classes == 1 and self.cross_entropy.weight is not None:
            refuse("DiceCELoss", "weight", "None for a single class", self.cross_entropy.weight)
        dice_sums = _sums("DiceCELoss", self.dice, input, target)
        entropy_sums = (
            dice_sums
            if _activation(self.dice, classes) == activation
            else class_sums(input, target, activation, entropy=True)
        )
        dice = _dice(self.dice, dice_sums, input.dim() - 2)
        entropy = self._entropy(entropy_sums, input, labels=target.shape[1] != classes)
        return self.lambda_dice * dice + self.lambda_ce * entropy

    def _entropy(self, sums: Tensor, input: Tensor, *, labels: bool) -> Tensor:
        """Cross entropy from the sums, a weighted mean over pixels or their sum."""
        weight = self.cross_entropy.weight
        weight = 1.0 if weight is None else weight.to(sums)
        entropy = (weight * sums[..., 3]).sum()
        if self.cross_entropy.reduction == "sum":
            return entropy
        if labels:  # a mean weighted by the class of each pixel
            return entropy / (weight * sums[..., 2]).sum()
        return entropy / (input.numel() // input.shape[1])


def _require_kept(name: str, loss: losses.DiceLoss) -> None:
    """Raise for options of a Dice loss that its sums do not give."""
    for option in ("squared_pred", "soft_label"):
        if getattr(loss, option):
            refuse(name, option, "False", True)


def _activation(loss: losses.DiceLoss, classes: int) -> Activation:
    if loss.sigmoid:
        return "sigmoid"
    return "softmax" if loss.softmax and classes > 1 else "none"


def _sums(name: str, loss: losses.DiceLoss, input: Tensor, target: Tensor) -> Tensor:
    """The sums (B, K, 4) of all classes under a Dice loss's activation."""
    classes = input.shape[1]
    for option, ignored in (
        ("softmax=True", loss.softmax),
        ("to_onehot_y=True", loss.to_onehot_y),
        ("include_background=False", not loss.include_background),
    ):
        if classes == 1 and ignored:
            warnings.warn(f"single channel prediction, `{option}` ignored.", stacklevel=4)
    channels = 1 if loss.to_onehot_y else classes
    if tuple(target.shape) != (len(input), channels, *input.shape[2:]):
        raise ValueError(
            f"compat.monai.{name}: target must be ({len(input)}, {channels}, *S), "
            f"{'labels' if channels < classes else 'a mask for each class'}, for input "
            f"{tuple(input.shape)} and to_onehot_y={loss.to_onehot_y}; got {tuple(target.shape)}"
        )
    ignore_index = getattr(loss, "ignore_index", None)  # of MONAI 1.6.1
    if ignore_index is not None and channels > 1:
        refuse(name, "ignore_index", "None with a target of several channels", ignore_index)
    entropy = name == "DiceCELoss"
    if loss.other_act is not None:
        input = loss.other_act(input)
    return class_sums(
        input,
        target,
        _activation(loss, classes),
        -100 if ignore_index is None else ignore_index,
        1e30,  # no logarithm of values that are not probabilities, unused here, may be infinite
        entropy=entropy,
    )


def _dice(loss: losses.DiceLoss, sums: Tensor, axes: int) -> Tensor:
    """A Dice loss from the sums of all classes of an input with this many space axes."""
    if not loss.include_background and sums.shape[1] > 1:
        sums = sums[:, 1:]
    overlap, p, t, _ = (sums.sum(0) if loss.batch else sums).unbind(-1)
    union = 2 * (p + t - overlap) if loss.jaccard else p + t
    f = 1 - (2 * overlap + loss.smooth_nr) / (union + loss.smooth_dr)
    classes = sums.shape[1]
    if loss.class_weight is not None and classes != 1:
        weight = loss.class_weight.to(f)
        if weight.dim() and len(weight) != classes:
            raise ValueError(
                "compat.monai.DiceLoss: weight must have one entry per class, without the "
                f"background if that is not included ({classes}); got {len(weight)}"
            )
        if weight.min() < 0:
            raise ValueError(f"compat.monai.DiceLoss: weight must be >= 0; got {weight.tolist()}")
        f = f * weight
    if loss.reduction == "none":
        return f.view(*f.shape, *[1] * axes)
    return f.sum() if loss.reduction == "sum" else f.mean()
