"""Dice and cross-entropy sums in one pass over the logits, and their gradient in another."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.dice_ce_sums import SIGMOID, SOFTMAX
from cmrfast.ops.triton._launch import (
    FMA,
    accumulator,
    as_bytes,
    block_sizes,
    register,
    row_sums,
    sum_dtype,
)

_SOFTMAX, _SIGMOID = tl.constexpr(SOFTMAX), tl.constexpr(SIGMOID)
_PROGRAMS = 4096  # enough to fill a GPU; with more tiles, each program takes several


@triton.jit
def _load_tile(
    logits_ptr, target_ptr, image, k, n, K, N, ignore_index,
    ACTIVATION: tl.constexpr, LABELS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Logits, targets, which pixels count, and the mask and offsets of the tile: all (BK, BN)."""
    mask = (k < K) & (n < N)
    offsets = (image * K + k) * N + n
    x = tl.load(logits_ptr + offsets, mask=mask, other=0).to(ACC)
    if LABELS:
        label = tl.load(target_ptr + image * N + n, mask=n < N, other=0).to(tl.int64)
        valid = mask & (label >= 0) & (label < K) & (label != ignore_index)
        t = (valid & (label == k)).to(ACC)
    else:
        target = tl.load(target_ptr + offsets, mask=mask, other=0)
        target = target.to(ACC) if target.dtype.is_floating() else target.to(tl.int64)
        valid = mask & (target != ignore_index)
        t = tl.where(valid, target.to(ACC), 0)
    if ACTIVATION == _SOFTMAX:
        x = tl.where(k < K, x, float("-inf"))
    return x, t, valid, mask, offsets


@triton.jit
def _softmax(x):
    """Probabilities over axis 0 and their logarithms."""
    x = x - tl.max(x, 0)[None, :]
    e = tl.exp(x)
    total = tl.sum(e, 0)[None, :]
    return e / total, x - tl.log(total)


@triton.jit
def _sigmoid(x):
    """1 / (1 + exp(-x)) and log(1 + exp(-|x|)), accurate where exp(-|x|) is tiny too."""
    e = tl.exp(-tl.abs(x))
    one_plus_e = 1 + e
    log1p = tl.where(
        one_plus_e == 1, e, tl.log(one_plus_e) * (e / tl.where(one_plus_e == 1, 1, one_plus_e - 1))
    )
    return tl.where(x >= 0, 1, e) / one_plus_e, log1p


@triton.jit
def _sums(
    logits_ptr, target_ptr, partial_ptr, K, N, ignore_index: tl.int64, eps: tl.float64,
    chunks, steps,
    ACTIVATION: tl.constexpr, LABELS: tl.constexpr, ENTROPY: tl.constexpr, ACC: tl.constexpr,
    BK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A program takes ``steps`` tiles of BK classes x BN pixels of one image, in order."""
    class_blocks = (K + BK - 1) // BK
    program = tl.program_id(0).to(tl.int64)
    k = program % class_blocks * BK + tl.arange(0, BK)[:, None]
    chunk = program // class_blocks % chunks
    image = program // class_blocks // chunks
    eps = tl.full((1, 1), eps, ACC)
    pt_sum = tl.full((BK, BN), 0, ACC)
    p_sum = tl.full((BK, BN), 0, ACC)
    t_sum = tl.full((BK, BN), 0, ACC)
    ce_sum = tl.full((BK, BN), 0, ACC)
    for step in range(steps):
        n = (chunk * steps + step) * BN + tl.arange(0, BN)[None, :]
        x, t, valid, _, _ = _load_tile(
            logits_ptr, target_ptr, image, k, n, K, N, ignore_index, ACTIVATION, LABELS, ACC
        )
        if ACTIVATION == _SOFTMAX:
            p, log_p = _softmax(x)
            ce = tl.where(t != 0, -t * log_p, 0)
        elif ACTIVATION == _SIGMOID:
            p, log1p = _sigmoid(x)
            ce = tl.full((BK, BN), 0, ACC)
            if ENTROPY:
                ce = tl.maximum(x, 0) - x * t + log1p
        else:
            p = x
            ce = tl.where(t != 0, -t * tl.log((p + eps) / (1 + K * eps)), 0)
        pt_sum += tl.where(valid, p * t, 0)
        p_sum += tl.where(valid, p, 0)
        t_sum += t
        ce_sum += tl.where(valid, ce, 0)
    out_ptr = partial_ptr + (image * K + k) * 4 * chunks + chunk
    tl.store(out_ptr, tl.sum(pt_sum, 1)[:, None], mask=k < K)
    tl.store(out_ptr + chunks, tl.sum(p_sum, 1)[:, None], mask=k < K)
    tl.store(out_ptr + 2 * chunks, tl.sum(t_sum, 1)[:, None], mask=k < K)
    tl.store(out_ptr + 3 * chunks, tl.sum(ce_sum, 1)[:, None], mask=k < K)


@triton.jit
def _gradient(
    grad_ptr, logits_ptr, target_ptr, out_ptr, K, N, ignore_index: tl.int64, eps: tl.float64,
    chunks,
    ACTIVATION: tl.constexpr, LABELS: tl.constexpr, ACC: tl.constexpr,
    BK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A program computes one tile of the gradient; probabilities are recomputed, not loaded."""
    class_blocks = (K + BK - 1) // BK
    program = tl.program_id(0).to(tl.int64)
    k = program % class_blocks * BK + tl.arange(0, BK)[:, None]
    n = program // class_blocks % chunks * BN + tl.arange(0, BN)[None, :]
    image = program // class_blocks // chunks
    x, t, valid, mask, offsets = _load_tile(
        logits_ptr, target_ptr, image, k, n, K, N, ignore_index, ACTIVATION, LABELS, ACC
    )
    eps = tl.full((1, 1), eps, ACC)
    grad_ptr = grad_ptr + (image * K + k) * 4
    grad_pt = tl.load(grad_ptr, mask=k < K, other=0).to(ACC)
    grad_p = tl.load(grad_ptr + 1, mask=k < K, other=0).to(ACC)
    grad_ce = tl.load(grad_ptr + 3, mask=k < K, other=0).to(ACC)
    inner = tl.where(valid, grad_pt * t + grad_p, 0)
    if ACTIVATION == _SOFTMAX:
        p, _ = _softmax(x)
        mean = tl.sum(p * inner, 0)[None, :]
        weight = tl.sum(grad_ce * t, 0)[None, :]
        grad = p * (inner - mean + weight) - grad_ce * t
    elif ACTIVATION == _SIGMOID:
        p, _ = _sigmoid(x)
        grad = inner * p * (1 - p) + tl.where(valid, grad_ce * (p - t), 0)
    else:
        grad = inner - tl.where(t != 0, grad_ce * t / (x + eps), 0)
    tl.store(out_ptr + offsets, grad.to(out_ptr.dtype.element_ty), mask=mask)


def _tile_sizes(op: str, logits: Tensor, activation: int) -> dict[str, Any]:
    """Block sizes; only softmax needs all classes of a pixel in one tile."""
    chosen = dict(block_sizes(op, logits, classes=logits.shape[1]))
    tile = chosen.pop("tile")
    classes = triton.next_power_of_2(logits.shape[1]) if activation == SOFTMAX else 1
    return {"BK": classes, "BN": max(1, tile // classes), **chosen}


@register("dice_ce_sums")
def dice_ce_sums(
    logits: Tensor, target: Tensor, activation: int, ignore_index: int, eps: float, entropy: bool
) -> Tensor:
    """See the op; partial sums over chunks of pixels are added in float64 by a second kernel."""
    logits, target = logits.contiguous(), as_bytes(target)
    batch, classes, pixels = logits.shape
    dtype = sum_dtype(logits.dtype)
    chosen = _tile_sizes("dice_ce_sums", logits, activation)
    rows = batch * triton.cdiv(classes, chosen["BK"])
    tiles = triton.cdiv(pixels, chosen["BN"])
    steps = min(max(rows * tiles // _PROGRAMS, 1), 32)
    chunks = triton.cdiv(tiles, steps)
    partial = torch.empty(batch * classes * 4, chunks, dtype=dtype, device=logits.device)
    if partial.numel():
        _sums[(rows * chunks,)](
            logits, target, partial, classes, pixels, ignore_index, eps, chunks, steps,
            ACTIVATION=activation, LABELS=target.dim() == 2, ENTROPY=entropy,
            ACC=accumulator(logits.dtype), **chosen,
        )  # fmt: skip
    return row_sums(partial, dtype).view(batch, classes, 4)


@register("dice_ce_sums_backward")
def dice_ce_sums_backward(
    grad: Tensor, logits: Tensor, target: Tensor, activation: int, ignore_index: int, eps: float
) -> Tensor:
    """See the op; the tiles of the gradient are independent."""
    grad, logits, target = grad.contiguous(), logits.contiguous(), as_bytes(target)
    batch, classes, pixels = logits.shape
    out = torch.empty_like(logits)
    if not out.numel():
        return out
    chosen = _tile_sizes("dice_ce_sums_backward", logits, activation)
    chunks = triton.cdiv(pixels, chosen["BN"])
    _gradient[(batch * triton.cdiv(classes, chosen["BK"]) * chunks,)](
        grad, logits, target, out, classes, pixels, ignore_index, eps, chunks,
        ACTIVATION=activation, LABELS=target.dim() == 2, ACC=accumulator(logits.dtype), **chosen,
    )  # fmt: skip
    return out


@triton.jit
def _faults(
    target_ptr, partial_ptr, numel, classes, ignore_index: tl.int64, steps, BLOCK: tl.constexpr
):
    program = tl.program_id(0).to(tl.int64)
    count = tl.full((BLOCK,), 0, tl.int64)
    for step in range(steps):
        offsets = (program * steps + step) * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < numel
        label = tl.load(target_ptr + offsets, mask=mask, other=0).to(tl.int64)
        fault = ((label < 0) | (label >= classes)) & (label != ignore_index) & mask
        count += fault.to(tl.int64)
    tl.store(partial_ptr + program, tl.sum(count, 0))


@register("label_faults")
def label_faults(target: Tensor, classes: int, ignore_index: int) -> Tensor:
    """See the op; sums of integers are equal in any order."""
    target = target.contiguous()
    block = 1024
    tiles = triton.cdiv(target.numel(), block)
    steps = max(tiles // _PROGRAMS, 1)
    partial = torch.empty(triton.cdiv(tiles, steps), dtype=torch.int64, device=target.device)
    if partial.numel():
        _faults[(len(partial),)](
            target, partial, target.numel(), classes, ignore_index, steps, BLOCK=block, **FMA
        )
    return partial.sum()
