"""Losses of segmentation, computed from the sums of ``dice_ce_sums``; some of them as modules too.

With ``group``, the sums are taken over all ranks of a ``torch.distributed`` process group, so that
the loss is that of the whole batch, and the gradient that DDP averages equals the gradient of a
single process.
"""

from typing import Any, Literal

from torch import Tensor, nn

from cmrfast.ops import nt_xent
from cmrfast.ops.dice_ce_loss import ALL, OVERS, Terms, loss_op
from cmrfast.ops.dice_ce_sums import Activation, class_sums
from cmrfast.ops.nt_xent import Negatives

Over = Literal["image", "batch", "all"]
Classes = Literal["foreground", "all"]
_CLASSES = ("foreground", "all")


def batch_dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    activation: Activation = "sigmoid",
    smooth: float = 1e-5,
    group: Any = None,
) -> Tensor:
    """Negative Dice of the whole batch as one ratio: all images, classes and pixels together.

    Args:
        logits: (B, K, *S).
        target: labels (B, *S) or (B, 1, *S), or masks (B, K, *S).
        activation: as in ``dice_ce_sums``.
        smooth: added to numerator and denominator, inside the factor 2: if prediction and target
            are both empty, the loss is -2.
        group: process group to sum over.

    Returns:
        -2·(smooth + Σpt) / (smooth + Σp + Σt), a scalar.

    Example:
        >>> import torch
        >>> logits = torch.full((2, 5, 8, 8, 8), 100.0)
        >>> batch_dice_loss(logits, torch.ones(2, 5, 8, 8, 8, dtype=torch.uint8)).item()
        -1.0
    """
    sums = class_sums(logits, target, activation, entropy=False)
    terms = Terms(ALL, 0, 2 * smooth, smooth, 1.0, offset=0.0, ce_weight=0.0, pixels=1.0)
    return _loss(sums, terms, group)


def dice_ce_loss(
    logits: Tensor,
    target: Tensor,
    *,
    activation: Activation = "softmax",
    ce_weight: float = 1.0,
    dice_weight: float = 1.0,
    over: Over = "image",
    classes: Classes = "foreground",
    smooth: float = 1e-6,
    group: Any = None,
) -> Tensor:
    """ce_weight · cross entropy + dice_weight · (1 - Dice).

    Args:
        logits: (B, K, *S); probabilities for ``activation="none"``.
        target: labels (B, *S) or (B, 1, *S), or masks (B, K, *S). Pixels labelled -100 are ignored;
            so are entries of masks that are -100, but the cross entropy's mean counts them.
        activation: as in ``dice_ce_sums``.
        ce_weight: weight of the cross entropy, a mean over pixels (sigmoid: over pixels and
            classes).
        dice_weight: weight of the Dice term.
        over: what a Dice score sums over: ``image`` (one score per image and class, averaged),
            ``batch`` (one per class), ``all`` (one for batch and classes together).
        classes: ``foreground`` excludes class 0 from the Dice term, unless it is the only class.
        smooth: added to numerator and denominator of each Dice score.
        group: process group to sum over.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 2, 8, 8)
        >>> labels = torch.zeros(1, 8, 8, dtype=torch.int64)
        >>> labels[:, :4, :4] = 1
        >>> round(dice_ce_loss(logits, labels).item(), 6)
        1.359814
    """
    for name, value, options in (("over", over, OVERS), ("classes", classes, _CLASSES)):
        if value not in options:
            raise ValueError(
                f"dice_ce_loss: {name} must be one of {', '.join(options)}; got {value!r}"
            )
    sums = class_sums(logits, target, activation, entropy=True)
    classes_in_mean = logits.shape[1] if activation == "sigmoid" else 1
    masks = target.shape == logits.shape
    pixels = logits.numel() / logits.shape[1] if masks else -1.0  # -1: those with a label
    terms = Terms(
        OVERS.index(over),
        int(classes == "foreground" and sums.shape[1] > 1),
        smooth,
        smooth,
        dice_weight,
        offset=1.0,
        ce_weight=ce_weight / classes_in_mean,
        pixels=pixels,
    )
    return _loss(sums, terms, group)


class _Options(nn.Module):
    """A loss with its options, which its ``repr`` shows."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in self.options.items() if k != "group")


class BatchDiceLoss(_Options):
    """``batch_dice_loss`` as a module; the same options."""

    def __init__(
        self, *, activation: Activation = "sigmoid", smooth: float = 1e-5, group: Any = None
    ) -> None:
        super().__init__(activation=activation, smooth=smooth, group=group)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar."""
        return batch_dice_loss(logits, target, **self.options)


class DiceCELoss(_Options):
    """``dice_ce_loss`` as a module; the same options.

    Example:
        >>> import torch
        >>> loss = DiceCELoss(over="batch")
        >>> loss(torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.bool)).item() > 0
        True
    """

    def __init__(
        self,
        *,
        activation: Activation = "softmax",
        ce_weight: float = 1.0,
        dice_weight: float = 1.0,
        over: Over = "image",
        classes: Classes = "foreground",
        smooth: float = 1e-6,
        group: Any = None,
    ) -> None:
        super().__init__(
            activation=activation,
            ce_weight=ce_weight,
            dice_weight=dice_weight,
            over=over,
            classes=classes,
            smooth=smooth,
            group=group,
        )

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss, a scalar."""
        return dice_ce_loss(logits, target, **self.options)


class NTXentLoss(_Options):
    """``cmrfast.ops.nt_xent`` as a module; the same options."""

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        symmetric: bool = False,
        negatives: Negatives = "candidates",
        group: Any = None,
    ) -> None:
        super().__init__(
            temperature=temperature, symmetric=symmetric, negatives=negatives, group=group
        )

    def forward(self, anchors: Tensor, candidates: Tensor, targets: Tensor | None = None) -> Tensor:
        """The loss, a scalar."""
        return nt_xent(anchors, candidates, targets=targets, **self.options)


def joint_scar_loss(logits: Tensor, target: Tensor, *, group: Any = None) -> Tensor:
    """Cross entropy + (1 - foreground Dice per image), the loss of ``joint_scar``.

    Args:
        logits: (B, 2, H, W).
        target: labels (B, H, W).
        group: process group to sum over.

    Returns:
        A scalar.
    """
    return dice_ce_loss(logits, target, group=group)


def dual_loss(
    pred: Tensor,
    target: Tensor,
    *,
    activation: Activation = "softmax",
    alpha: float = 0.5,
    group: Any = None,
) -> Tensor:
    """alpha · cross entropy + (1 - alpha) · Dice loss of the foreground classes over the batch.

    The loss of ``joint_registration``: of logits, or of warped masks with ``activation="none"``.

    Args:
        pred: (B, 4, H, W), logits or probabilities.
        target: labels (B, H, W) or masks (B, 4, H, W).
        activation: ``softmax``, or ``none`` for probabilities.
        alpha: weight of the cross entropy; the Dice loss has weight 1 - alpha.
        group: process group to sum over.

    Returns:
        A scalar.
    """
    return dice_ce_loss(
        pred,
        target,
        activation=activation,
        ce_weight=alpha,
        dice_weight=1 - alpha,
        over="batch",
        smooth=1e-5,
        group=group,
    )


def adversarial_segmentation_loss(logits: Tensor, target: Tensor, *, group: Any = None) -> Tensor:
    """0.9 · cross entropy + 0.1 · Dice loss over batch and classes together.

    The loss of ``adversarial_transfer``. Cross entropy is computed from logits and needs no
    clipping; the published code clips probabilities at 1e-7.

    Args:
        logits: (B, 4, H, W).
        target: labels (B, H, W) or masks (B, 4, H, W).
        group: process group to sum over.

    Returns:
        A scalar.
    """
    return dice_ce_loss(
        logits,
        target,
        ce_weight=0.9,
        dice_weight=0.1,
        over="all",
        classes="all",
        smooth=1.0,
        group=group,
    )


def _loss(sums: Tensor, terms: Terms, group: Any) -> Tensor:
    """The loss, over ranks with a group.

    Its gradient is summed too, which cancels DDP's division by the ranks.
    """
    loss: Tensor
    if group is None:
        loss = loss_op(sums, *terms)[0]
        return loss
    from cmrfast.ops._collectives import total

    return terms.loss(total(terms.totals(sums), group))
