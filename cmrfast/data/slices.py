"""Slices of a volume: packed as a batch, one with its geometry, pairs from two stacks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cmrfast.data.prepare import crop_or_pad
from cmrfast.data.volume import Volume


class Plane(NamedTuple):
    """One slice (C, I, J) and its own (4, 4) world_from_vox, as slice k = 0."""

    data: Tensor
    world_from_vox: Tensor


def slice_plane(volume: Volume, k: int) -> Plane:
    """Slice k (third axis) of a volume."""
    return Plane(volume.data[..., k], world_from_slice(volume, k))


def world_from_slice(volume: Volume, k: int) -> Tensor:
    """(4, 4) world_from_vox of slice k (third axis) on its own, as slice k = 0."""
    moved = volume.world_from_vox.clone()
    moved[:, 3] += k * volume.world_from_vox[:, 2]
    return moved


def pack_slices(data: Tensor) -> Tensor:
    """Pack (C, I, J, K) as a batch of slices (C · K, I, J), channel by channel."""
    return data.movedim(-1, 1).flatten(0, 1)


def unpack_slices(slices: Tensor, channels: int) -> Tensor:
    """Unpack (C · K, I, J) to (C, I, J, K), the inverse of ``pack_slices``."""
    stack: Tensor = slices.unflatten(0, (channels, -1))
    return stack.movedim(1, -1)


def center_slices(slices: Tensor, shape: Sequence[int]) -> Tensor:
    """Crop or zero-pad slices about their centre; the old shape restores the part that was kept.

    Args:
        slices: (N, I, J), any real dtype.
        shape: shape of the result, two entries.

    Returns:
        (N, *shape), in the slices' dtype.

    Example:
        >>> square = center_slices(torch.ones(1, 3, 5), (4, 4))
        >>> center_slices(square, (3, 5))[0, 0].tolist()
        [1.0, 1.0, 1.0, 1.0, 0.0]
    """
    return crop_or_pad(slices, torch.eye(4), shape)[0]


class SlicePair(NamedTuple):
    """Slice ``source`` of one volume and slice ``target`` of another.

    ``apart_mm`` is the distance of the target slice's centre from the plane of the source slice.
    """

    source: int
    target: int
    apart_mm: float


def slice_pairs(source: Volume, target: Volume) -> list[SlicePair]:
    """Pair each slice of the target (third axis) with the source slice in which it lies.

    A target slice whose centre lies outside the source's slab has no partner. Planes may be tilted
    against each other: the position of a target slice is that of its central voxel.

    Example:
        >>> thick = Volume(torch.zeros(1, 4, 4, 3), torch.diag(torch.tensor([1.0, 1, 10, 1])))
        >>> thin = Volume(torch.zeros(1, 4, 4, 5), torch.diag(torch.tensor([1.0, 1, 5, 1])))
        >>> [(pair.source, pair.target) for pair in slice_pairs(thick, thin)]
        [(0, 0), (1, 1), (1, 2), (2, 3), (2, 4)]
    """
    i, j, count = target.shape
    centres = torch.zeros(4, count, dtype=torch.float64)
    centres[0], centres[1], centres[3] = (i - 1) / 2, (j - 1) / 2, 1
    centres[2] = torch.arange(count)
    vox_from_world = torch.linalg.inv(source.world_from_vox)
    position = (vox_from_world @ target.world_from_vox @ centres)[2]
    # The third row of the inverse is the normal of the slices, in slices per mm.
    mm_per_slice = 1 / vox_from_world[2, :3].norm()
    nearest = (position + 0.5).floor()  # ties go up, unlike in torch.round
    inside = (nearest >= 0) & (nearest < source.shape[2])
    apart_mm = (position - nearest).abs() * mm_per_slice
    return [SlicePair(int(nearest[k]), k, float(apart_mm[k])) for k in range(count) if inside[k]]


def slice_pairs_by_index(source_slices: int, target_slices: int) -> list[SlicePair]:
    """Pair source slice i with target slice floor(i · n / m), for headers without positions.

    adversarial_transfer uses the same rule to make pseudo masks of LGE slices.
    """
    if min(source_slices, target_slices) < 1:
        raise ValueError(
            "slice_pairs_by_index: both counts must be positive; "
            f"got {source_slices}, {target_slices}"
        )
    nan = float("nan")  # the distance is unknown
    return [SlicePair(i, i * target_slices // source_slices, nan) for i in range(source_slices)]
