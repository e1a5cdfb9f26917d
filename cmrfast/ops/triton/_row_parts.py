"""Rows as sums of parts in a lower precision, and their products on tensor cores.

A float32 is three bfloat16 parts, which hold all of its 24 bits; a value of another dtype is one
part, itself. Rows ``x`` are what ``ScaledRows.kernel_args`` holds.
"""

import triton
import triton.language as tl

from cmrfast.ops.triton._launch import INTERPRETED


@triton.jit
def load_rows(x_ptr, rows, d, D):
    """Columns d of some rows of x. Rows and columns are padded with zeros to whole tiles."""
    return tl.load(x_ptr + rows.to(tl.int64)[:, None] * D + d[None, :])


@triton.jit
def store_rows(x_ptr, rows, d, D, values):
    """Store columns d of some rows of x, padded as for ``load_rows``."""
    offsets = rows.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(x_ptr + offsets, values.to(x_ptr.dtype.element_ty))


@triton.jit
def load_parts(x, rows, d, D, PARTS: tl.constexpr):
    """The parts of columns d of some rows, whose sum is their value."""
    x_ptr, _, _, stride = x
    first = load_rows(x_ptr, rows, d, D)
    if PARTS == 1:
        return (first,)
    else:
        size = stride.to(tl.int64) * D
        return first, load_rows(x_ptr + size, rows, d, D), load_rows(x_ptr + 2 * size, rows, d, D)


@triton.jit
def load_values(x, rows, d, D, ACC: tl.constexpr, PARTS: tl.constexpr):
    """Columns d of some rows of x."""
    parts = load_parts(x, rows, d, D, PARTS)
    value = parts[0].to(ACC)
    for part in tl.static_range(1, PARTS):
        value += parts[part].to(ACC)
    return value


@triton.jit
def to_parts(x, dtype: tl.constexpr, PARTS: tl.constexpr):
    """x as a sum of parts in the dtype of the products."""
    first = x.to(dtype)
    if PARTS == 1:
        return (first,)
    else:
        rest = x - first.to(x.dtype)
        second = rest.to(dtype)
        return first, second, (rest - second.to(x.dtype)).to(dtype)


@triton.jit
def _dot_part(a, b, acc):
    if INTERPRETED and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee", out_dtype=acc.dtype)


@triton.jit
def dot_parts(a, b, acc, TRANSPOSED: tl.constexpr, PARTS: tl.constexpr):
    """acc + a @ b (with TRANSPOSED, b^T), but for products of parts below float32's precision."""
    for i in tl.static_range(PARTS):
        for j in tl.static_range(PARTS - i):
            # The smallest products come first.
            left, right = a[PARTS - 1 - i - j], b[j]
            acc = _dot_part(left, tl.trans(right) if TRANSPOSED else right, acc)
    return acc


@triton.jit
def row_products(
    x_tile, x, rows, y, columns, d, D, acc,
    BD: tl.constexpr, WHOLE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Dot products of rows of x with rows of y, and columns d of the latter.

    With WHOLE, the columns are all there are, and ``x_tile`` holds the rows of x.
    """
    y_tile = load_parts(y, columns, d, D, PARTS)
    if WHOLE:
        return dot_parts(x_tile, y_tile, acc, True, PARTS), y_tile
    for first in range(0, D, BD):
        chunk = first + tl.arange(0, BD)
        x_chunk = load_parts(x, rows, chunk, D, PARTS)
        acc = dot_parts(x_chunk, load_parts(y, columns, chunk, D, PARTS), acc, True, PARTS)
    return acc, y_tile
