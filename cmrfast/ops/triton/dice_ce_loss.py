"""The last step of the Dice and cross-entropy losses, and its gradient, in one small launch."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.dice_ce_loss import ALL, BATCH, IMAGE, Terms, loss_op
from cmrfast.ops.triton._launch import FMA, accumulator, register

_IMAGE, _BATCH, _ALL = tl.constexpr(IMAGE), tl.constexpr(BATCH), tl.constexpr(ALL)
_TILE = 1024


@triton.jit
def _load_sums(sums_ptr, b, k, B, K, ACC: tl.constexpr):
    """The four sums of a tile of images and classes, and where they are."""
    mask = (b < B) & (k < K)
    offsets = (b.to(tl.int64) * K + k) * 4
    overlap = tl.load(sums_ptr + offsets, mask=mask, other=0).to(ACC)
    p = tl.load(sums_ptr + offsets + 1, mask=mask, other=0).to(ACC)
    t = tl.load(sums_ptr + offsets + 2, mask=mask, other=0).to(ACC)
    ce = tl.load(sums_ptr + offsets + 3, mask=mask, other=0).to(ACC)
    return overlap, p, t, ce, offsets, mask


@triton.jit
def _over_images(sums_ptr, k, B, K, ACC: tl.constexpr, BB: tl.constexpr):
    """The four sums of each class over all images, in order."""
    zero = tl.full((BB, k.shape[1]), 0, ACC)
    overlap, p, t, ce = zero, zero, zero, zero
    for first in range(0, B, BB):
        b = first + tl.arange(0, BB)[:, None]
        tile = _load_sums(sums_ptr, b, k, B, K, ACC)
        overlap += tile[0]
        p += tile[1]
        t += tile[2]
        ce += tile[3]
    return (
        tl.sum(overlap, 0)[None, :],
        tl.sum(p, 0)[None, :],
        tl.sum(t, 0)[None, :],
        tl.sum(ce, 0)[None, :],
    )


@triton.jit
def _loss(
    sums_ptr, loss_ptr, grad_ptr, B, K, first_class,
    smooth_top: tl.float64, smooth: tl.float64, weight: tl.float64, constant: tl.float64,
    ce_weight: tl.float64, pixels: tl.float64,
    OVER: tl.constexpr, LABELLED: tl.constexpr, ENTROPY: tl.constexpr,
    ACC: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One program for all images and classes: constant + cross entropy - weight · sum of scores."""
    smooth_top, smooth = tl.full((1, 1), smooth_top, ACC), tl.full((1, 1), smooth, ACC)
    weight, ce_weight = tl.full((1, 1), weight, ACC), tl.full((1, 1), ce_weight, ACC)
    entropy, labelled = tl.full((1, BK), 0, ACC), tl.full((1, BK), 0, ACC)
    overlap, p, t = tl.full((1, BK), 0, ACC), tl.full((1, BK), 0, ACC), tl.full((1, BK), 0, ACC)
    for first in range(0, K, BK):
        k = first + tl.arange(0, BK)[None, :]
        sums = _over_images(sums_ptr, k, B, K, ACC, BB)
        labelled += sums[2]
        entropy += sums[3]
        if OVER == _ALL:
            overlap += tl.where(k >= first_class, sums[0], 0)
            p += tl.where(k >= first_class, sums[1], 0)
            t += tl.where(k >= first_class, sums[2], 0)
    entropy = tl.sum(entropy, 1)[:, None]
    count = tl.full((1, 1), pixels, ACC)
    if LABELLED:
        count = tl.sum(labelled, 1)[:, None]
    grad_t = tl.where(count >= 1, -ce_weight * entropy / (count * count), 0)
    count = tl.maximum(count, 1)
    if OVER == _ALL:
        overlap, p, t = tl.sum(overlap, 1)[:, None], tl.sum(p, 1)[:, None], tl.sum(t, 1)[:, None]
    score_sum = tl.full((BB, BK), 0, ACC)
    for first in range(0, K, BK):
        k = first + tl.arange(0, BK)[None, :]
        if OVER == _BATCH:
            overlap, p, t, _ = _over_images(sums_ptr, k, B, K, ACC, BB)
        for first_image in range(0, B, BB):
            b = first_image + tl.arange(0, BB)[:, None]
            tile = _load_sums(sums_ptr, b, k, B, K, ACC)
            of = (tile[0], tile[1], tile[2]) if OVER == _IMAGE else (overlap, p, t)
            inverse = 1 / (of[1] + of[2] + smooth)
            score = (2 * of[0] + smooth_top) * inverse
            scored = tile[5] & (k >= first_class)
            # A score of several images, or classes, is counted once.
            once = scored
            if OVER != _IMAGE:
                once = scored & (b == 0)
            if OVER == _ALL:
                once = once & (k == first_class)
            score_sum += tl.where(once, score, 0)
            grad_p = tl.where(scored, weight * score * inverse, 0)
            to_ptr = grad_ptr + tile[4]
            tl.store(to_ptr, tl.where(scored, -2 * weight * inverse, 0), mask=tile[5])
            tl.store(to_ptr + 1, grad_p, mask=tile[5])
            tl.store(to_ptr + 2, grad_p + grad_t if LABELLED and ENTROPY else grad_p, mask=tile[5])
            grad_ce = ce_weight / count if ENTROPY else tl.zeros_like(count)
            tl.store(to_ptr + 3, tl.broadcast_to(grad_ce, (BB, BK)), mask=tile[5])
    loss = tl.full((1, 1), constant, ACC) - weight * tl.sum(tl.sum(score_sum, 1), 0)
    if ENTROPY:
        loss += ce_weight * entropy / count
    tl.store(loss_ptr + tl.arange(0, 1)[:, None], loss)


@register("dice_ce_loss")
def dice_ce_loss(sums: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """See the op."""
    if not sums.numel():
        loss, grad = loss_op.reference(sums, *options)
        return loss, grad
    terms, sums = Terms(*options), sums.contiguous()
    images, classes, _ = sums.shape
    loss, grad = sums.new_empty(()), torch.empty_like(sums)
    tile_classes = min(triton.next_power_of_2(classes), _TILE)
    scored = classes - terms.first_class
    scores = {IMAGE: images * scored, BATCH: scored, ALL: 1}[terms.over]
    _loss[(1,)](
        sums, loss, grad, images, classes, terms.first_class, terms.smooth_top, terms.smooth,
        terms.dice_weight / scores, terms.dice_weight * terms.offset, terms.ce_weight,
        terms.pixels, OVER=terms.over, LABELLED=terms.pixels < 0, ENTROPY=terms.ce_weight != 0,
        ACC=accumulator(sums.dtype), BB=_TILE // tile_classes, BK=tile_classes, **FMA,
    )  # fmt: skip
    return loss, grad
