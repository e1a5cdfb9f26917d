"""The last step of the Dice and cross-entropy losses: from ``dice_ce_sums`` to a scalar."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmrfast.ops._op import define

OVERS = ("image", "batch", "all")
IMAGE, BATCH, ALL = range(3)


class Terms(NamedTuple):
    """ce_weight · cross entropy / pixels + dice_weight · (offset - mean Dice score).

    A score is (2 Σpt + smooth_top) / (Σp + Σt + smooth), of the classes from ``first_class`` on.
    """

    over: int  # what its sums are taken over, an index of OVERS
    first_class: int
    smooth_top: float
    smooth: float
    dice_weight: float
    offset: float
    ce_weight: float  # if 0, the cross entropy is left out, infinite or not
    pixels: float  # negative: those that have a label

    def scores(self, sums: Tensor) -> Tensor:
        """Dice scores from their sums (..., 3)."""
        overlap, p, t = sums.unbind(-1)
        score: Tensor = (2 * overlap + self.smooth_top) / (p + t + self.smooth)
        return score

    def totals(self, sums: Tensor) -> Tensor:
        """What the loss needs of the sums (B, K, 4) of one rank, such that ranks can be added.

        Cross entropy, pixels, sum of the images' scores, images; then the sums of each score that
        is taken over more than an image.
        """
        scored = sums[:, self.first_class :, :3]
        scores, shared = sums.new_zeros(()), sums.new_zeros(0)
        if self.over == IMAGE:
            scores = self.scores(scored).mean(1).sum()
        else:
            shared = scored.sum(0 if self.over == BATCH else (0, 1))
        pixels = sums[..., 2].sum() if self.pixels < 0 else sums.new_tensor(self.pixels)
        images = sums.new_tensor(float(sums.shape[0]))
        parts = torch.stack((sums[..., 3].sum(), pixels, scores, images))
        return torch.cat((parts, shared.flatten()))

    def loss(self, totals: Tensor) -> Tensor:
        """The loss from the totals of all ranks."""
        entropy, pixels, scores, images = totals[:4].unbind()
        over_image = self.over == IMAGE
        dice = scores / images if over_image else self.scores(totals[4:].view(-1, 3)).mean()
        loss: Tensor = self.dice_weight * (self.offset - dice)
        return self.ce_weight * entropy / pixels.clamp(min=1) + loss if self.ce_weight else loss


def _reference(sums: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    terms = Terms(*options)
    totals = terms.totals(sums)
    scored = sums[:, terms.first_class :, :3]
    if terms.over != IMAGE:
        scored = scored.sum(0 if terms.over == BATCH else (0, 1), keepdim=True)
    overlap, p, t = scored.unbind(-1)
    weight = terms.dice_weight / max(overlap.numel(), 1)
    bottom = p + t + terms.smooth
    grad = torch.zeros_like(sums, memory_format=torch.contiguous_format)
    grad[:, terms.first_class :, 0] = -2 * weight / bottom
    slope = weight * (2 * overlap + terms.smooth_top) / bottom**2
    grad[:, terms.first_class :, 1:3] = slope[..., None]
    if terms.ce_weight:
        entropy, pixels = totals[:2].unbind()
        grad[..., 3] = terms.ce_weight / pixels.clamp(min=1)
        if terms.pixels < 0:
            grad[..., 2] -= torch.where(pixels >= 1, terms.ce_weight * entropy / pixels**2, 0)
    return terms.loss(totals), grad


def _fake(sums: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    grad = torch.empty_like(sums, memory_format=torch.contiguous_format)
    return sums.new_empty(()), grad


def _backward(inputs: Any, outputs: Any, grad: Tensor, needs_input_grad: Any) -> Any:
    return grad * outputs[1], *(None,) * len(Terms._fields)


loss_op = define(
    "dice_ce_loss(Tensor sums, int over, int first_class, float smooth_top, float smooth,"
    " float dice_weight, float offset, float ce_weight, float pixels) -> (Tensor, Tensor)",
    reference=_reference,
    fake=_fake,
    backward=_backward,
    saves_output=True,
    of=(),
)
