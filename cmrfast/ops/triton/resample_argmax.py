"""Labels on another grid, from running winners over the classes, without resampled logits."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.affine_sample import CLAMP_HALF, LINEAR, VOXELS
from cmrfast.ops.triton._launch import NO_FMA, accumulator, block_sizes, register, three_axes
from cmrfast.ops.triton.affine_sample import cells

_LINEAR, _CLAMP_HALF = tl.constexpr(LINEAR), tl.constexpr(CLAMP_HALF)
_VOXELS = tl.constexpr(VOXELS)


@triton.jit
def _argmax(
    logits_ptr, matrix_ptr, out_ptr, classes, shape, size, voxels: tl.int64, numel, fill: tl.int64,
    AXES: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program labels BLOCK voxels: it finds their taps once, and reads them class by class."""
    offsets = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < numel
    index, _, above, fraction, _, valid, _ = cells(
        matrix_ptr, offsets, shape, size, _VOXELS, AXES, _LINEAR, _CLAMP_HALF, INDEX
    )
    # Positions are clamped, and beyond the last voxel along an axis it is read again with weight 0:
    # no tap needs a check.
    next0 = tl.where(above[0], shape[1] * shape[2], 0)
    next1 = tl.where(above[1], shape[2], 0)
    next2 = tl.where(above[2], 1, 0)
    f0, f1, f2 = fraction[0].to(ACC), fraction[1].to(ACC), fraction[2].to(ACC)
    best = tl.full((BLOCK,), -float("inf"), ACC)
    label = tl.full((BLOCK,), 0, tl.int32)
    for k in range(classes):
        volume_ptr = logits_ptr + k * voxels
        value = tl.full((BLOCK,), 0, ACC)
        for a0 in tl.static_range(AXES - 1):
            for a1 in tl.static_range(2):
                for a2 in tl.static_range(2):
                    at = index + (next0 if a0 else 0) + (next1 if a1 else 0) + (next2 if a2 else 0)
                    weight = (f0 if a0 else 1 - f0) * (f1 if a1 else 1 - f1)
                    weight *= f2 if a2 else 1 - f2
                    value = tl.fma(tl.load(volume_ptr + at).to(ACC), weight, value)
        larger = (best == best) & ((value > best) | (value != value))  # as torch.argmax takes NaN
        best = tl.where(larger, value, best)
        label = tl.where(larger, k, label)
    label = tl.where(valid, label.to(tl.int64), fill)
    tl.store(out_ptr + offsets, label.to(out_ptr.dtype.element_ty), mask=mask)


@register("resample_argmax")
def resample_argmax(
    logits: Tensor, matrix: Tensor, size: Sequence[int], fill: int, dtype: torch.dtype
) -> Tensor:
    """See the op."""
    out = torch.empty(tuple(size), dtype=dtype, device=logits.device)
    chosen = block_sizes("resample_argmax", logits) | NO_FMA
    shape, voxels = three_axes(logits.shape[1:]), logits.shape[1:].numel()
    index = tl.int64 if max(voxels, out.numel()) >= 2**30 else tl.int32
    _argmax[(triton.cdiv(out.numel(), chosen["BLOCK"]),)](
        logits.contiguous(), matrix.contiguous(), out, len(logits), tuple(shape),
        tuple(three_axes(size)), voxels, out.numel(), fill, AXES=len(size),
        ACC=accumulator(logits.dtype), INDEX=index, **chosen,
    )  # fmt: skip
    return out
