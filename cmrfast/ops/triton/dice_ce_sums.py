"""Dice and cross-entropy sums: one pass over the logits, and one for their gradient."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.triton._launch import FUSED, accumulator, blocks, launches, row_sums, wide

SOFTMAX, SIGMOID = tl.constexpr(0), tl.constexpr(1)
_PROGRAMS = 4096  # enough to fill a GPU; beyond, a program takes several tiles


@triton.jit
def _tile(
    LOGITS, TARGET, image, k, n, K, N, ignore,
    ACTIVATION: tl.constexpr, LABELS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Logits, targets, which of them count, and where they lie: all (BK, BN)."""
    there = (k < K) & (n < N)
    at = (image * K + k) * N + n
    x = tl.load(LOGITS + at, mask=there, other=0).to(ACC)
    if LABELS:
        label = tl.load(TARGET + image * N + n, mask=n < N, other=0).to(tl.int64)
        counts = there & (label >= 0) & (label < K) & (label != ignore)
        t = (counts & (label == k)).to(ACC)
    else:
        mask = tl.load(TARGET + at, mask=there, other=0)
        mask = mask.to(ACC) if mask.dtype.is_floating() else mask.to(tl.int64)
        counts = there & (mask != ignore)
        t = tl.where(counts, mask.to(ACC), 0)
    if ACTIVATION == SOFTMAX:
        x = tl.where(k < K, x, float("-inf"))
    return x, t, counts, there, at


@triton.jit
def _softmax(x):
    """Probabilities over axis 0 and their logarithms."""
    x = x - tl.max(x, 0)[None, :]
    e = tl.exp(x)
    total = tl.sum(e, 0)[None, :]
    return e / total, x - tl.log(total)


@triton.jit
def _sigmoid(x):
    """1 / (1 + exp(-x)) and log(1 + exp(-|x|)), exact where exp(-|x|) is tiny too."""
    e = tl.exp(-tl.abs(x))
    up = 1 + e
    log_up = tl.where(up == 1, e, tl.log(up) * (e / tl.where(up == 1, 1, up - 1)))
    return tl.where(x >= 0, 1, e) / up, log_up


@triton.jit
def _sums(
    LOGITS, TARGET, PARTS, K, N, ignore: tl.int64, eps: tl.float64, chunks, steps,
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
    overlap = tl.full((BK, BN), 0, ACC)
    p_sum = tl.full((BK, BN), 0, ACC)
    t_sum = tl.full((BK, BN), 0, ACC)
    ce_sum = tl.full((BK, BN), 0, ACC)
    for step in range(steps):
        n = (chunk * steps + step) * BN + tl.arange(0, BN)[None, :]
        x, t, counts, _, _ = _tile(
            LOGITS, TARGET, image, k, n, K, N, ignore, ACTIVATION, LABELS, ACC
        )
        if ACTIVATION == SOFTMAX:
            p, log_p = _softmax(x)
            ce = tl.where(t != 0, -t * log_p, 0)
        elif ACTIVATION == SIGMOID:
            p, log_up = _sigmoid(x)
            ce = tl.full((BK, BN), 0, ACC)
            if ENTROPY:
                ce = tl.maximum(x, 0) - x * t + log_up
        else:
            p = x
            ce = tl.where(t != 0, -t * tl.log((p + eps) / (1 + K * eps)), 0)
        overlap += tl.where(counts, p * t, 0)
        p_sum += tl.where(counts, p, 0)
        t_sum += t
        ce_sum += tl.where(counts, ce, 0)
    at = (image * K + k) * 4 * chunks + chunk
    tl.store(PARTS + at, tl.sum(overlap, 1)[:, None], mask=k < K)
    tl.store(PARTS + at + chunks, tl.sum(p_sum, 1)[:, None], mask=k < K)
    tl.store(PARTS + at + 2 * chunks, tl.sum(t_sum, 1)[:, None], mask=k < K)
    tl.store(PARTS + at + 3 * chunks, tl.sum(ce_sum, 1)[:, None], mask=k < K)


@triton.jit
def _gradient(
    GRAD, LOGITS, TARGET, OUT, K, N, ignore: tl.int64, eps: tl.float64, chunks,
    ACTIVATION: tl.constexpr, LABELS: tl.constexpr, ACC: tl.constexpr,
    BK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A program makes one tile of the gradient: reads logits and targets, stores no p."""
    class_blocks = (K + BK - 1) // BK
    program = tl.program_id(0).to(tl.int64)
    k = program % class_blocks * BK + tl.arange(0, BK)[:, None]
    n = program // class_blocks % chunks * BN + tl.arange(0, BN)[None, :]
    image = program // class_blocks // chunks
    x, t, counts, there, at = _tile(
        LOGITS, TARGET, image, k, n, K, N, ignore, ACTIVATION, LABELS, ACC
    )
    eps = tl.full((1, 1), eps, ACC)
    g = GRAD + (image * K + k) * 4
    g_overlap = tl.load(g, mask=k < K, other=0).to(ACC)
    g_p = tl.load(g + 1, mask=k < K, other=0).to(ACC)
    g_ce = tl.load(g + 3, mask=k < K, other=0).to(ACC)
    inner = tl.where(counts, g_overlap * t + g_p, 0)
    if ACTIVATION == SOFTMAX:
        p, _ = _softmax(x)
        mean = tl.sum(p * inner, 0)[None, :]
        weight = tl.sum(g_ce * t, 0)[None, :]
        gradient = p * (inner - mean + weight) - g_ce * t
    elif ACTIVATION == SIGMOID:
        p, _ = _sigmoid(x)
        gradient = inner * p * (1 - p) + tl.where(counts, g_ce * (p - t), 0)
    else:
        gradient = inner - tl.where(t != 0, g_ce * t / (x + eps), 0)
    tl.store(OUT + at, gradient.to(OUT.dtype.element_ty), mask=there)


def _tiles(op: str, logits: Tensor, activation: int) -> dict[str, Any]:
    """Block sizes: softmax needs all classes of a pixel in one tile, the others none."""
    chosen = dict(blocks(op, logits, classes=logits.shape[1]))
    tile = chosen.pop("tile")
    classes = triton.next_power_of_2(logits.shape[1]) if activation == 0 else 1
    return {"BK": classes, "BN": max(1, tile // classes), **chosen}


def _bytes(target: Tensor) -> Tensor:
    return target.contiguous().view(torch.uint8) if target.dtype == torch.bool else target


@launches("dice_ce_sums")
def dice_ce_sums(
    logits: Tensor, target: Tensor, activation: int, ignore_index: int, eps: float, entropy: bool
) -> Tensor:
    """See the op; the parts of a chunk of pixels are summed by a second kernel in double."""
    logits, target = logits.contiguous(), _bytes(target).contiguous()
    batch, classes, pixels = logits.shape
    dtype = wide(logits.dtype)
    chosen = _tiles("dice_ce_sums", logits, activation)
    rows = batch * triton.cdiv(classes, chosen["BK"])
    tiles = triton.cdiv(pixels, chosen["BN"])
    steps = min(max(rows * tiles // _PROGRAMS, 1), 32)
    chunks = triton.cdiv(tiles, steps)
    parts = torch.empty(batch * classes * 4, chunks, dtype=dtype, device=logits.device)
    if parts.numel():
        _sums[(rows * chunks,)](
            logits, target, parts, classes, pixels, ignore_index, eps, chunks, steps,
            ACTIVATION=activation, LABELS=target.dim() == 2, ENTROPY=entropy,
            ACC=accumulator(logits.dtype), **chosen,
        )  # fmt: skip
    return row_sums(parts, dtype).view(batch, classes, 4)


@launches("dice_ce_sums_backward")
def dice_ce_sums_backward(
    grad: Tensor, logits: Tensor, target: Tensor, activation: int, ignore_index: int, eps: float
) -> Tensor:
    """See the op; every tile of the gradient stands alone."""
    grad, logits, target = grad.contiguous(), logits.contiguous(), _bytes(target).contiguous()
    batch, classes, pixels = logits.shape
    out = torch.empty_like(logits)
    if not out.numel():
        return out
    chosen = _tiles("dice_ce_sums_backward", logits, activation)
    chunks = triton.cdiv(pixels, chosen["BN"])
    _gradient[(batch * triton.cdiv(classes, chosen["BK"]) * chunks,)](
        grad, logits, target, out, classes, pixels, ignore_index, eps, chunks,
        ACTIVATION=activation, LABELS=target.dim() == 2, ACC=accumulator(logits.dtype), **chosen,
    )  # fmt: skip
    return out


@triton.jit
def _faults(TARGET, PARTS, numel, classes, ignore: tl.int64, steps, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    count = tl.full((BLOCK,), 0, tl.int64)
    for step in range(steps):
        at = (program * steps + step) * BLOCK + tl.arange(0, BLOCK)
        label = tl.load(TARGET + at, mask=at < numel, other=0).to(tl.int64)
        bad = ((label < 0) | (label >= classes)) & (label != ignore) & (at < numel)
        count += bad.to(tl.int64)
    tl.store(PARTS + program, tl.sum(count, 0))


@launches("label_faults")
def label_faults(target: Tensor, classes: int, ignore_index: int) -> Tensor:
    """See the op; integers, so any order of summing gives the same."""
    target = target.contiguous()
    block = 1024
    tiles = triton.cdiv(target.numel(), block)
    steps = max(tiles // _PROGRAMS, 1)
    parts = torch.empty(triton.cdiv(tiles, steps), dtype=torch.int64, device=target.device)
    if parts.numel():
        _faults[(len(parts),)](
            target, parts, target.numel(), classes, ignore_index, steps, BLOCK=block, **FUSED
        )
    return parts.sum()
