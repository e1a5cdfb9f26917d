"""The matrix from voxels of a new grid to voxels of a volume, in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.triton._launch import register

_INTEGERS_FROM = tl.constexpr(2.0**52)  # from here on every float64 is an integer


@triton.jit
def _entry(affine_ptr, row, column):
    return tl.load(affine_ptr + row * 4 + column).to(tl.float64)


@triton.jit
def _minor(affine_ptr, top, p, q):
    """The minor of two columns and the rows from ``top`` on."""
    return _entry(affine_ptr, top, p) * _entry(affine_ptr, top + 1, q) - _entry(
        affine_ptr, top, q
    ) * _entry(affine_ptr, top + 1, p)


@triton.jit
def _vox_from_vox(source_ptr, target_ptr, out_ptr, AXES: tl.constexpr):
    """One program; cofactor (r, c) is expanded along row r ^ 1 and the rows of the other half."""
    r, c = tl.arange(0, 4)[:, None], tl.arange(0, 4)[None, :]
    x, y, z = (c < 1).to(tl.int32), 1 + (c < 2).to(tl.int32), 2 + (c < 3).to(tl.int32)
    row, top = r ^ 1, 2 - (r // 2) * 2
    cofactor = _entry(source_ptr, row, x) * _minor(source_ptr, top, y, z)
    cofactor -= _entry(source_ptr, row, y) * _minor(source_ptr, top, x, z)
    cofactor += _entry(source_ptr, row, z) * _minor(source_ptr, top, x, y)
    cofactor = tl.where((r + c) % 2 == 1, -cofactor, cofactor)
    along_first = tl.where(r == 0, _entry(source_ptr, r, c) * cofactor, 0)
    inverse = cofactor / tl.sum(tl.sum(along_first, 1), 0)  # transposed
    product = tl.sum(inverse[:, :, None] * _entry(target_ptr, r, c)[:, None, :], 0)
    # Below 2^-36 there is only the rounding error of the inverse.
    units = tl.abs(product) * 2.0**36
    units = tl.where(units < _INTEGERS_FROM, (units + _INTEGERS_FROM) - _INTEGERS_FROM, units)
    matrix = tl.where(product < 0, -units, units) * 2.0**-36
    a, d = tl.arange(0, 4)[:, None], tl.arange(0, 4)[None, :]
    column = tl.where(d < 3, d, AXES)
    tl.store(out_ptr + a * (AXES + 1) + column, matrix, mask=(a < AXES) & ((d < AXES) | (d == 3)))


@register("vox_from_vox")
def vox_from_vox(world_from_vox: Tensor, to_world_from_vox: Tensor, axes: int) -> Tensor:
    """See the op."""
    out = torch.empty(axes, axes + 1, dtype=torch.float64, device=world_from_vox.device)
    _vox_from_vox[(1,)](
        world_from_vox.contiguous(), to_world_from_vox.contiguous(), out, AXES=axes,
        enable_fp_fusion=False, num_warps=1,
    )  # fmt: skip
    return out
