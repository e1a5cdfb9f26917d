"""Change the spacing or shape of a grid, and bring volumes and labels onto it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cmrfast.ops import extract_patches, resample


def spacing_grid(
    shape: Sequence[int], world_from_vox: Tensor, spacing_mm: Sequence[float]
) -> tuple[tuple[int, ...], Tensor]:
    """The grid with another spacing that covers the same box, with the same centre.

    Args:
        shape: shape of the old grid, 2 or 3 entries.
        world_from_vox: (4, 4), of the old grid.
        spacing_mm: edge lengths of the new voxels, one entry per axis.

    Returns:
        The new shape (the box rounded to whole voxels) and (4, 4) world_from_vox, float64.
    """
    shape, spacing = tuple(shape), [float(s) for s in spacing_mm]
    if len(spacing) != len(shape) or not all(0 < s < float("inf") for s in spacing):
        raise ValueError(
            "spacing_grid: spacing_mm must have one positive entry per space axis "
            f"({len(shape)}); got {tuple(spacing)}"
        )
    old = world_from_vox.double()
    lengths = torch.linalg.vector_norm(old[:3, : len(shape)], dim=0).tolist()
    new_shape, new_from_old = [], torch.eye(4, dtype=torch.float64, device=old.device)
    for axis, (n, length, s) in enumerate(zip(shape, lengths, spacing, strict=True)):
        # Matrices in files are float32: a box of 7.5 - 1e-7 voxels counts as 7.5 and rounds up.
        m = max(1, int(n * length / s + 0.5 + 1e-4))
        new_shape.append(m)
        new_from_old[axis, axis] = s / length
        new_from_old[axis, 3] = (n - 1) / 2 - s / length * (m - 1) / 2
    return tuple(new_shape), old @ new_from_old


def resample_labels(
    labels: Tensor, world_from_vox: Tensor, to_world_from_vox: Tensor, to_shape: Sequence[int]
) -> Tensor:
    """Resample labels: each class is interpolated linearly, and the largest value wins.

    Outlines are smoother than with nearest neighbour. Ties go to the smaller label; voxels
    outside the labels are 0.

    Args:
        labels: (*S), bool or integer.
        world_from_vox: (4, 4), of the labels.
        to_world_from_vox: (4, 4), of the new grid.
        to_shape: shape of the new grid.

    Returns:
        (*to_shape), in the labels' dtype.
    """
    if labels.is_floating_point():
        raise TypeError(f"resample_labels: labels must be bool or integer; got {labels.dtype}")
    unsigned = labels.dtype in (torch.uint16, torch.uint32, torch.uint64)
    best = torch.full(tuple(to_shape), -1.0, device=labels.device)
    dtype = torch.int64 if unsigned else labels.dtype  # torch fills no masks of those
    result = torch.zeros(tuple(to_shape), dtype=dtype, device=labels.device)
    for value in labels.unique():  # one class in memory at a time
        weight = resample(
            (labels == value).float()[None],
            world_from_vox,
            to_world_from_vox,
            to_shape,
            fill=float(value == 0),  # outside the labels is background
        )[0]
        wins = (weight > best) & (weight > 0)
        result[wins] = value.to(dtype)
        best = torch.maximum(best, weight)
    return result.to(labels.dtype)


def crop_or_pad(
    volume: Tensor,
    world_from_vox: Tensor,
    shape: Sequence[int],
    *,
    center_vox: Sequence[int] | None = None,
    fill: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Crop a volume to a box, padded where the box extends beyond it; nothing is interpolated.

    The voxel ``center_vox`` becomes voxel ``shape // 2``, so that cropping undoes padding.

    Args:
        volume: (C, *S), any real dtype, two or three space axes.
        world_from_vox: (4, 4).
        shape: shape of the box.
        center_vox: the voxel at the centre of the box; default ``S // 2``.
        fill: value outside the volume.

    Returns:
        (C, *shape) and its (4, 4) world_from_vox.

    Example:
        >>> row = torch.arange(5).view(1, 1, 5)
        >>> crop_or_pad(row, torch.eye(4), (1, 7))[0].tolist()
        [[[0, 0, 1, 2, 3, 4, 0]]]
    """
    if volume.dim() not in (3, 4):
        raise ValueError(
            f"crop_or_pad: volume must be (C, *S) with 2 or 3 space axes; got {tuple(volume.shape)}"
        )
    old, new = tuple(volume.shape[1:]), tuple(shape)
    center = tuple(n // 2 for n in old) if center_vox is None else tuple(center_vox)
    if len(new) != len(old) or len(center) != len(old) or any(n < 1 for n in new):
        raise ValueError(
            f"crop_or_pad: shape and center_vox must have one entry per space axis ({len(old)}), "
            f"shape at least 1; got {new} and {center}"
        )
    start = torch.tensor([c - n // 2 for c, n in zip(center, new, strict=True)])
    moved = world_from_vox.clone()
    for axis, first in enumerate(start.tolist()):
        moved[:, 3] += first * world_from_vox[:, axis]
    starts = start[None].to(volume.device)
    return extract_patches(volume, starts, new, fill=fill, dtype=volume.dtype)[0], moved
