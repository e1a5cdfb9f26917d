"""Patches out of volumes: cut, flipped, normalised and cast in one pass."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from cmrfast.ops._check import (
    has_memory,
    integers,
    kind,
    require_integer,
    require_number,
    require_one_device,
    require_real,
    require_sizes,
    require_starts,
    value_range,
    values_readable,
)
from cmrfast.ops._op import define
from cmrfast.ops.volume_store import Packed, VolumeStore, full_table


def extract_patches(
    volumes: Tensor | Sequence[Tensor] | VolumeStore,
    start_vox: Tensor,
    size: Sequence[int],
    *,
    volume_index: Tensor | None = None,
    flips: Tensor | None = None,
    shift: float | Tensor | None = None,
    scale: float | Tensor | None = None,
    fill: float = 0.0,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Extract windows of volumes as a batch: ``(volume - shift) * scale``, ``fill`` outside.

    Args:
        volumes: (C, *S), (V, C, *S), a list of (C, *S_v), or a ``VolumeStore``, which is packed
            only once and so the choice for loops; any real dtype, two or three space axes.
        start_vox: (P, d) integer, first voxel of each patch, which may be partly or fully outside.
        size: of the patches, d entries.
        volume_index: (P,) integer, the volume of each patch; default the first. Checked on the
            CPU; under compilation and on other devices an invalid index gives ``fill``.
        flips: (P, d) bool, the axes along which a patch is flipped.
        shift: a number, (C,) or (V, C).
        scale: a number, (C,) or (V, C).
        fill: value outside the volume.
        dtype: of the patches, default float32; integers are rounded half to even and saturate.
        out: contiguous (P, C, *size), overwritten and returned; for large patches about twice as
            fast as a new tensor. Patches have its dtype, and no gradient.

    Returns:
        (P, C, *size); ``out``, if it is given.

    Example:
        >>> volume = torch.arange(12.0).view(1, 3, 4)
        >>> extract_patches(volume, torch.tensor([[1, 2]]), (2, 3), fill=-1.0)
        tensor([[[[ 6.,  7., -1.],
                  [10., 11., -1.]]]])
    """
    size = integers("extract_patches", "size", size)
    axes = len(size)  # an int under dynamic shapes too, where the sizes of a tensor are symbolic
    if isinstance(start_vox, Tensor) and start_vox.dim() == 2 and start_vox.shape[1] != axes:
        require_sizes("extract_patches", "size", size, axes=int(start_vox.shape[1]))
    if axes not in (2, 3):
        raise ValueError(f"extract_patches: size must have 2 or 3 entries; got {size}")
    start_vox = require_starts("extract_patches", start_vox, axes)
    size = require_sizes("extract_patches", "size", size)
    packed = Packed("extract_patches", volumes, axes)
    index = window_volumes("extract_patches", volume_index, start_vox, packed)
    if flips is None:
        flips = torch.empty(0, axes, dtype=torch.bool, device=start_vox.device)
    elif not isinstance(flips, Tensor):
        raise TypeError(f"extract_patches: flips must be a tensor; got {kind(flips)}")
    elif flips.dtype != torch.bool or flips.shape != start_vox.shape:
        raise ValueError(
            f"extract_patches: flips must be a bool tensor {tuple(start_vox.shape)}; "
            f"got {flips.dtype} {tuple(flips.shape)}"
        )
    require_one_device(
        "extract_patches",
        volumes=packed.buffer,
        start_vox=start_vox,
        volume_index=index,
        flips=flips,
        out=out,
    )
    fill = require_number("extract_patches", "fill", fill)
    source = (
        *(packed.buffer, packed.table, packed.shape, start_vox, index, flips),
        per_channel("extract_patches", "shift", shift, packed),
        per_channel("extract_patches", "scale", scale, packed),
    )
    if out is not None:
        _require_out(out, (start_vox.shape[0], packed.channels, *size), dtype, packed.buffer)
        extract_patches_into(*source, fill, out)
        if has_memory(out):
            torch.autograd.graph.increment_version(out)  # whoever saved it for a gradient is told
        return out
    dtype = torch.float32 if dtype is None else dtype
    require_patch_dtype("extract_patches", dtype)
    patches: Tensor = extract_patches_op(*source, packed.channels, size, fill, dtype)
    return patches


def _require_out(
    out: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None, buffer: Tensor
) -> None:
    """Raise unless patches of this shape and dtype can be written there."""
    require_patch_dtype("extract_patches", out.dtype)
    if out.shape != shape or not out.is_contiguous() or dtype not in (None, out.dtype):
        raise ValueError(
            f"extract_patches: out must be a contiguous {dtype or 'tensor'} {shape}; "
            f"got {out.dtype} {tuple(out.shape)}, strides {out.stride()}"
        )
    if has_memory(out) and out.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr():
        raise ValueError("extract_patches: out must not share memory with volumes")
    if torch.is_grad_enabled() and (out.requires_grad or buffer.requires_grad):
        raise ValueError(
            "extract_patches: a result in out has no gradient; leave it out, or detach the volumes"
        )


def require_patch_dtype(op: str, dtype: torch.dtype) -> None:
    """Raise unless it is a dtype that patches can have."""
    if not isinstance(dtype, torch.dtype) or dtype.is_complex:
        raise TypeError(f"{op}: dtype must be a real torch.dtype; got {dtype}")


def window_volumes(
    op: str, volume_index: Tensor | None, positions: Tensor, packed: Packed
) -> Tensor:
    """The volume of each position, checked where values are readable; empty for the first."""
    count = positions.shape[0]
    if volume_index is None:
        return positions.new_empty(0, dtype=torch.int64)
    require_integer(op, "volume_index", volume_index)
    if volume_index.shape != (count,):
        raise ValueError(
            f"{op}: volume_index must have one entry per patch ({count}); "
            f"got shape {tuple(volume_index.shape)}"
        )
    if count and values_readable(volume_index):
        low, high = value_range(volume_index)
        if low < 0 or high >= packed.count:
            raise ValueError(
                f"{op}: volume_index must be 0 to {packed.count - 1}; "
                f"got values from {low} to {high}"
            )
    return volume_index.long()


def per_channel(op: str, name: str, value: float | Tensor | None, packed: Packed) -> Tensor:
    """Expand a number, (C,) or (V, C) to (V, C) float64; empty for the default."""
    shape, device = (packed.count, packed.channels), packed.buffer.device
    if value is None:
        return torch.empty(0, dtype=torch.float64, device=device)
    if not isinstance(value, Tensor):
        if not isinstance(value, Real):
            raise TypeError(f"{op}: {name} must be a number or tensor; got {kind(value)}")
        return torch.full(shape, float(value), dtype=torch.float64, device=device)
    require_real(op, name, value)
    given = tuple(value.shape)
    if given != () and given != shape[1:] and given != shape:
        raise ValueError(
            f"{op}: {name} must be a number, ({shape[1]},) or {shape}; got {tuple(value.shape)}"
        )
    return value.detach().to(device, torch.float64).expand(shape)


def cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast to a real dtype; integers round half to even and saturate, NaN becomes 0."""
    if dtype.is_floating_point:
        return values.to(dtype)
    if dtype == torch.bool:
        return values.round() >= 1
    limits = torch.iinfo(dtype)
    rounded = values.round().nan_to_num(0.0, torch.inf, -torch.inf)
    high, low = rounded >= limits.max, rounded <= limits.min
    inside = torch.where(high | low, 0, rounded).to(dtype)
    return torch.where(high, limits.max, torch.where(low, limits.min, inside)).to(dtype)


def needs_double(dtype: torch.dtype) -> bool:
    """Whether float32 cannot represent all values of a dtype."""
    return dtype in (torch.float64, torch.int32, torch.int64, torch.uint32, torch.uint64)


def given_or(value: float, numbers: Tensor, table: Tensor, channels: int) -> Tensor:
    """Numbers (V, C) of the volumes in a table; all ``value`` if they are empty."""
    return numbers if numbers.numel() else numbers.new_full((len(table), channels), value)


def given_volumes(index: Tensor, positions: Tensor) -> Tensor:
    """The volume of each position; the first if the index is empty."""
    return index if len(index) else index.new_zeros(len(positions))


def _window_index(
    table: Tensor,
    start_vox: Tensor,
    index: Tensor,
    flips: Tensor,
    channels: int,
    size: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Buffer index of every patch voxel (P, C, *size), whether it is inside, the volume (P,)."""
    axes, count = len(size), start_vox.shape[0]
    index = given_volumes(index, start_vox)
    valid = (index >= 0) & (index < len(table))
    volume = torch.where(valid, index, 0)
    entry = table[volume] if len(table) else table.new_zeros(count, 1 + axes)
    inside = valid.view(-1, *[1] * (axes + 1))
    flat = torch.arange(channels, device=table.device).view(1, -1, *[1] * axes)
    for axis, s in enumerate(size):
        offset = torch.arange(s, device=table.device).expand(count, s)
        if flips.numel():
            offset = torch.where(flips[:, axis, None], s - 1 - offset, offset)
        at, n = start_vox[:, axis, None] + offset, entry[:, 1 + axis, None]
        view = (count, 1, *(s if a == axis else 1 for a in range(axes)))
        inside = inside & ((at >= 0) & (at < n)).view(view)
        at = torch.minimum(at.clamp(min=0), (n - 1).clamp(min=0))
        flat = flat * n.view(-1, *[1] * (axes + 1)) + at.view(view)
    flat = flat + entry[:, 0].view(-1, *[1] * (axes + 1))
    shape = (count, channels, *size)
    return torch.where(inside, flat, 0).expand(shape), inside.expand(shape), volume


def _reference(
    buffer: Tensor,
    table: Tensor,
    shape: Sequence[int],
    start_vox: Tensor,
    index: Tensor,
    flips: Tensor,
    shift: Tensor,
    scale: Tensor,
    channels: int,
    size: Sequence[int],
    fill: float,
    dtype: torch.dtype,
) -> Tensor:
    table = full_table(table, shape, channels, buffer.numel())
    shift, scale = given_or(0, shift, table, channels), given_or(1, scale, table, channels)
    flat, inside, volume = _window_index(table, start_vox, index, flips, channels, size)
    real = torch.float64 if needs_double(buffer.dtype) or needs_double(dtype) else torch.float32
    view = (-1, channels, *[1] * len(size))
    if not buffer.numel():
        return cast(torch.full(flat.shape, fill, dtype=real, device=buffer.device), dtype)
    minus, times = shift[volume].to(real).view(view), scale[volume].to(real).view(view)
    values = (buffer[flat].to(real) - minus) * times
    patches = cast(torch.where(inside, values, fill), dtype)
    if dtype != buffer.dtype:
        return patches
    unchanged = inside & (minus == 0) & (times == 1)  # exact for integers that no float represents
    return torch.where(unchanged, buffer[flat], patches)


def _reference_into(
    buffer: Tensor,
    table: Tensor,
    shape: Sequence[int],
    start_vox: Tensor,
    index: Tensor,
    flips: Tensor,
    shift: Tensor,
    scale: Tensor,
    fill: float,
    out: Tensor,
) -> None:
    channels, size, dtype = out.shape[1], out.shape[2:], out.dtype
    patches = _reference(
        buffer, table, shape, start_vox, index, flips, shift, scale, channels, size, fill, dtype
    )
    out.copy_(patches)


def _reference_backward(
    grad: Tensor,
    table: Tensor,
    shape: Sequence[int],
    start_vox: Tensor,
    index: Tensor,
    flips: Tensor,
    scale: Tensor,
    numel: int,
) -> Tensor:
    channels, size = grad.shape[1], grad.shape[2:]
    table = full_table(table, shape, channels, numel)
    scale = given_or(1, scale, table, channels)
    flat, inside, volume = _window_index(table, start_vox, index, flips, channels, size)
    if not numel or not len(table):
        return grad.new_zeros(numel)
    times = scale[volume].to(grad.dtype).view(-1, channels, *[1] * len(size))
    values = torch.where(inside, grad * times, 0)
    return grad.new_zeros(numel).index_add_(0, flat.flatten(), values.flatten())


def _backward(inputs: Any, outputs: None, grad: Tensor, needs_input_grad: Any) -> Any:
    buffer, table, shape, start_vox, index, flips, _, scale, *_ = inputs
    grad = grad.to(torch.float64 if buffer.dtype == torch.float64 else torch.float32)
    grad_buffer = extract_patches_backward(
        grad, table, shape, start_vox, index, flips, scale, buffer.shape[0]
    )
    return grad_buffer.to(buffer.dtype), *(None,) * 11


def _fake(
    buffer: Tensor, table: Tensor, shape: Sequence[int], start_vox: Tensor, *others: Any
) -> Tensor:
    channels, size, _, dtype = others[-4:]
    return buffer.new_empty(start_vox.shape[0], channels, *size, dtype=dtype)


extract_patches_op = define(
    "extract_patches(Tensor buffer, Tensor table, SymInt[] shape, Tensor start_vox,"
    " Tensor volume_index, Tensor flips, Tensor shift, Tensor scale, SymInt channels,"
    " SymInt[] size, float fill, ScalarType dtype) -> Tensor",
    reference=_reference,
    fake=_fake,
    backward=_backward,
)

extract_patches_into = define(
    "extract_patches_into(Tensor buffer, Tensor table, SymInt[] shape, Tensor start_vox,"
    " Tensor volume_index, Tensor flips, Tensor shift, Tensor scale, float fill,"
    " Tensor(a!) out) -> ()",
    reference=_reference_into,
    fake=lambda *_: None,
    of="extract_patches",
)

extract_patches_backward = define(
    "extract_patches_backward(Tensor grad, Tensor table, SymInt[] shape, Tensor start_vox,"
    " Tensor volume_index, Tensor flips, Tensor scale, SymInt numel) -> Tensor",
    reference=_reference_backward,
    fake=lambda grad, *others: grad.new_empty(others[-1]),
    of="extract_patches",
)
