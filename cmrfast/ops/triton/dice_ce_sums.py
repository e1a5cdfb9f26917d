"""Dice and cross-entropy sums in one pass over the logits, and their gradient in another.

A thread holds all classes of its pixels, four neighbouring ones in float32, so that softmax needs
no other thread; probabilities are recomputed for the gradient, not stored.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.dice_ce_sums import SIGMOID, SOFTMAX, can_hold
from cmrfast.ops.triton._launch import (
    accumulator,
    as_bytes,
    block_sizes,
    exp2,
    register,
    row_sums,
    sum_dtype,
)

_SOFTMAX, _SIGMOID = tl.constexpr(SOFTMAX), tl.constexpr(SIGMOID)
_LOG2E = tl.constexpr(1.4426950408889634)
_PROGRAMS = 4096  # enough to fill a GPU; with more tiles, each program takes several
_MAX_CHUNKS = 65535  # of the grid's second axis


@triton.jit
def _image_and_classes(K: tl.constexpr, ACTIVATION: tl.constexpr, BK: tl.constexpr):
    """The image and the classes (BK, 1) of a program: all of them for softmax, else one."""
    row = tl.program_id(0).to(tl.int64)
    if ACTIVATION == _SOFTMAX:
        return row, tl.arange(0, BK)[:, None]
    return row // K, (row % K).to(tl.int32) + tl.arange(0, BK)[:, None]


@triton.jit
def _load_tile(
    logits_ptr, target_ptr, image, k, n, N, offsets, ignore_index,
    K: tl.constexpr, ACTIVATION: tl.constexpr, LABELS: tl.constexpr, IGNORES: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Logits and targets (BK, BN), and which pixels count, (1, BN) or (BK, BN).

    Beyond the end, probabilities and targets are 0.
    """
    mask = (k < K) & (n < N)
    other = 0.0
    if ACTIVATION == _SIGMOID:
        other = float("-inf")
    x = tl.load(logits_ptr + offsets, mask=mask, other=other).to(ACC)
    if ACTIVATION == _SOFTMAX:
        x = tl.where(k < K, x, float("-inf"))
    if LABELS:
        label = tl.load(target_ptr + image * N + n, mask=n < N, other=0)
        if label.dtype.primitive_bitwidth < 32:
            label = label.to(tl.int32)
        valid = (n < N) & (label >= 0) & (label < K)
        if IGNORES:
            valid = valid & (label != ignore_index)
        t = (tl.where(valid, label, -1).to(tl.int32) == k).to(ACC)
    else:
        target = tl.load(target_ptr + offsets, mask=mask, other=0)
        valid = mask
        if IGNORES:
            valid = valid & (target != ignore_index)
        t = target.to(ACC)
        if IGNORES:
            t = tl.where(valid, t, 0)
    return x, t, valid


@triton.jit
def _softmax(x, valid):
    """Probabilities over axis 0, 0 where a pixel does not count, and minus their logarithms."""
    x = x - tl.max(x, 0)[None, :]
    e = exp2(x * _LOG2E)
    total = tl.sum(e, 0)[None, :]
    return tl.where(valid, e * (1 / total), 0), tl.log(total) - x


@triton.jit
def _sigmoid(x):
    return 1 / (1 + exp2(x * -_LOG2E))


@triton.jit
def _softplus(x):
    """log(1 + exp(x)), accurate where exp(-|x|) is tiny too."""
    e = exp2(tl.abs(x) * -_LOG2E)
    one_plus_e = 1 + e
    log1p = tl.where(
        one_plus_e == 1, e, tl.log(one_plus_e) * (e / tl.where(one_plus_e == 1, 1, one_plus_e - 1))
    )
    return tl.maximum(x, 0) + log1p


@triton.jit
def _sums(
    logits_ptr, target_ptr, partial_ptr, N, ignore_index: tl.int64, eps: tl.float64, steps,
    K: tl.constexpr, ACTIVATION: tl.constexpr, LABELS: tl.constexpr, IGNORES: tl.constexpr,
    ENTROPY: tl.constexpr, ACC: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A program takes ``steps`` tiles of BK classes x BN pixels of one image, in order."""
    image, k = _image_and_classes(K, ACTIVATION, BK)
    chunk = tl.program_id(1)
    eps = tl.full((1, 1), eps, ACC)
    pt_sum = tl.full((BK, BN), 0, ACC)
    p_sum = tl.full((BK, BN), 0, ACC)
    t_sum = tl.full((BK, BN), 0, ACC)
    ce_sum = tl.full((BK, BN), 0, ACC)
    for step in range(steps):
        n = (chunk * steps + step).to(tl.int64) * BN + tl.arange(0, BN)[None, :]
        offsets = (image * K + k) * N + n
        x, t, valid = _load_tile(
            logits_ptr, target_ptr, image, k, n, N, offsets, ignore_index,
            K, ACTIVATION, LABELS, IGNORES, ACC,
        )  # fmt: skip
        if ACTIVATION == _SOFTMAX:
            p, minus_log_p = _softmax(x, valid)
            ce_sum += tl.where(t != 0, t * minus_log_p, 0)
        elif ACTIVATION == _SIGMOID:
            p = _sigmoid(x)
            if LABELS or IGNORES:
                p = tl.where(valid, p, 0)
            if ENTROPY:
                ce_sum += tl.where(valid, _softplus(x) - x * t, 0)
        else:
            p = tl.where(valid, x, 0)
            ce_sum += tl.where(t != 0, -t * tl.log((p + eps) / (1 + K * eps)), 0)
        pt_sum += p * t
        p_sum += p
        t_sum += t
    chunks = tl.num_programs(1)
    out_ptr = partial_ptr + (image * K + k) * 4 * chunks + chunk
    tl.store(out_ptr, tl.sum(pt_sum, 1)[:, None], mask=k < K)
    tl.store(out_ptr + chunks, tl.sum(p_sum, 1)[:, None], mask=k < K)
    tl.store(out_ptr + 2 * chunks, tl.sum(t_sum, 1)[:, None], mask=k < K)
    tl.store(out_ptr + 3 * chunks, tl.sum(ce_sum, 1)[:, None], mask=k < K)


@triton.jit
def _gradient(
    grad_ptr, logits_ptr, target_ptr, out_ptr, N, ignore_index: tl.int64, eps: tl.float64, steps,
    K: tl.constexpr, ACTIVATION: tl.constexpr, LABELS: tl.constexpr, IGNORES: tl.constexpr,
    ACC: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A program computes ``steps`` tiles of the gradient of one image."""
    image, k = _image_and_classes(K, ACTIVATION, BK)
    eps = tl.full((1, 1), eps, ACC)
    grad_ptr = grad_ptr + (image * K + k) * 4
    grad_pt = tl.load(grad_ptr, mask=k < K, other=0).to(ACC)
    grad_p = tl.load(grad_ptr + 1, mask=k < K, other=0).to(ACC)
    grad_ce = tl.load(grad_ptr + 3, mask=k < K, other=0).to(ACC)
    for step in range(steps):
        n = (tl.program_id(1) * steps + step).to(tl.int64) * BN + tl.arange(0, BN)[None, :]
        offsets = (image * K + k) * N + n
        x, t, valid = _load_tile(
            logits_ptr, target_ptr, image, k, n, N, offsets, ignore_index,
            K, ACTIVATION, LABELS, IGNORES, ACC,
        )  # fmt: skip
        inner = grad_pt * t + grad_p
        if ACTIVATION == _SOFTMAX:
            p, _ = _softmax(x, valid)
            entropy = grad_ce * t
            change = tl.sum(entropy - p * inner, 0)[None, :]
            grad = p * (inner + change) - entropy
        elif ACTIVATION == _SIGMOID:
            p = _sigmoid(x)
            grad = tl.where(valid, inner * p * (1 - p) + grad_ce * (p - t), 0)
        else:
            grad = tl.where(valid, inner, 0) - tl.where(t != 0, grad_ce * t / (x + eps), 0)
        tl.store(out_ptr + offsets, grad.to(out_ptr.dtype.element_ty), mask=(k < K) & (n < N))


def _launch_sizes(
    op: str, logits: Tensor, target: Tensor, activation: int, ignore_index: int
) -> tuple[tuple[int, int], int, dict[str, Any]]:
    """The grid, the tiles of each program, and the constants of a kernel."""
    batch, classes, pixels = logits.shape
    chosen = dict(block_sizes(op, logits, classes=classes if activation == SOFTMAX else 1))
    tile = chosen.pop("tile")
    chosen["BK"] = triton.next_power_of_2(classes) if activation == SOFTMAX else 1
    chosen["BN"] = max(1, tile // chosen["BK"])
    rows, tiles = batch * triton.cdiv(classes, chosen["BK"]), triton.cdiv(pixels, chosen["BN"])
    steps = max(min(rows * tiles // _PROGRAMS, 32), triton.cdiv(tiles, _MAX_CHUNKS), 1)
    constants = {
        "K": classes,
        "ACTIVATION": activation,
        "LABELS": target.dim() == 2,
        "IGNORES": can_hold(target.dtype, ignore_index),
        "ACC": accumulator(logits.dtype),
    }
    return (rows, triton.cdiv(tiles, steps)), steps, constants | chosen


@register("dice_ce_sums")
def dice_ce_sums(
    logits: Tensor, target: Tensor, activation: int, ignore_index: int, eps: float, entropy: bool
) -> Tensor:
    """See the op; partial sums over chunks of pixels are added in float64 by a second kernel."""
    logits = logits.contiguous()
    batch, classes, pixels = logits.shape
    dtype = sum_dtype(logits.dtype)
    grid, steps, constants = _launch_sizes("dice_ce_sums", logits, target, activation, ignore_index)
    partial = torch.empty(batch * classes * 4, grid[1], dtype=dtype, device=logits.device)
    if partial.numel():
        _sums[grid](
            logits, as_bytes(target), partial, pixels, ignore_index, eps, steps,
            ENTROPY=entropy, **constants,
        )  # fmt: skip
    return row_sums(partial, dtype).view(batch, classes, 4)


@register("dice_ce_sums_backward")
def dice_ce_sums_backward(
    grad: Tensor, logits: Tensor, target: Tensor, activation: int, ignore_index: int, eps: float
) -> Tensor:
    """See the op; the tiles of the gradient are independent."""
    logits = logits.contiguous()
    out = torch.empty_like(logits)
    if out.numel():
        grid, steps, constants = _launch_sizes(
            "dice_ce_sums_backward", logits, target, activation, ignore_index
        )
        _gradient[grid](
            grad.contiguous(), logits, as_bytes(target), out, logits.shape[2], ignore_index, eps,
            steps, **constants,
        )  # fmt: skip
    return out
