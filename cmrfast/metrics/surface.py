"""Distances between the surfaces and the centres of masks, in mm.

The surface of a mask consists of its voxels that have a face neighbour (4 in 2-D, 6 in 3-D) outside
the mask or outside the image. Distances are NaN if either mask is empty.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cmrfast.metrics.distance import distances_to
from cmrfast.metrics.masks import require_masks, require_spacing

_NAN = float("nan")


class SurfaceDistances(NamedTuple):
    """Distances between two surfaces, mm; NaN if a mask is empty."""

    assd_mm: float
    hausdorff_mm: float
    hd95_mm: float


def surface_distances(
    prediction: Tensor, reference: Tensor, spacing_mm: Sequence[float]
) -> SurfaceDistances:
    """Average symmetric surface distance, Hausdorff distance and its 95th percentile.

    The distance of each surface voxel to the nearest voxel of the other surface is exact. ASSD is
    the mean of the two directed means, HD95 the larger of the two directed 95th percentiles.

    Args:
        prediction: (*S) with 2 or 3 axes, bool or integer, nonzero inside.
        reference: same shape.
        spacing_mm: voxel edges, one entry per axis.

    Example:
        >>> mask = torch.zeros(8, 8, dtype=torch.bool)
        >>> mask[2:4] = True
        >>> surface_distances(mask, mask.roll(3, 0), (0.75, 0.75))
        SurfaceDistances(assd_mm=1.875, hausdorff_mm=2.25, hd95_mm=2.25)
    """
    directed = _directed("surface_distances", prediction, reference, spacing_mm)
    if directed is None:
        return SurfaceDistances(_NAN, _NAN, _NAN)
    level = torch.tensor(0.95, dtype=torch.float64)
    return SurfaceDistances(
        assd_mm=sum(d.mean().item() for d in directed) / 2,
        hausdorff_mm=max(d.max().item() for d in directed),
        hd95_mm=max(_quantile(d, level).item() for d in directed),
    )


def average_surface_distance(
    prediction: Tensor, reference: Tensor, spacing_mm: Sequence[float]
) -> float:
    """Mean distance to the other surface, in mm, pooled over the surface voxels of both masks.

    The paper of ``joint_registration`` uses it, slice by slice. The larger surface has more weight
    than in ASSD. Arguments as in ``surface_distances``.
    """
    directed = _directed("average_surface_distance", prediction, reference, spacing_mm)
    return _NAN if directed is None else torch.cat(directed).mean().item()


def center_distance(
    prediction: Tensor, reference: Tensor, spacing_mm: Sequence[float], *, batch_axes: int = 0
) -> Tensor:
    """Distance between the centroids of masks.

    Args:
        prediction: (…, *S), bool or integer, nonzero inside.
        reference: same shape.
        spacing_mm: voxel edges, one entry per space axis.
        batch_axes: number of leading axes to keep; (B, K, *S) with 2 gives (B, K).

    Returns:
        float64 distances in mm with the kept axes; NaN where a mask is empty.
    """
    masks = require_masks("center_distance", prediction, reference, batch_axes)
    spacing = require_spacing("center_distance", spacing_mm, prediction.dim() - batch_axes)
    predicted, truth = (_centroid(m, spacing, batch_axes) for m in masks)
    distance: Tensor = torch.linalg.vector_norm(predicted - truth, dim=-1)
    return distance


def _centroid(mask: Tensor, spacing: tuple[float, ...], batch_axes: int) -> Tensor:
    """(…, d), in mm from the centre of voxel 0; NaN for an empty mask."""
    axes = range(batch_axes, mask.dim())
    means = []
    for axis, s in zip(axes, spacing, strict=True):
        others = tuple(a for a in axes if a != axis)
        profile = (torch.count_nonzero(mask, dim=others) if others else mask).double()
        along = torch.arange(mask.shape[axis], dtype=torch.float64, device=mask.device)
        means.append(s * (profile * along).sum(-1) / profile.sum(-1))
    return torch.stack(means, -1)


def _directed(
    who: str, prediction: Tensor, reference: Tensor, spacing_mm: Sequence[float]
) -> tuple[Tensor, Tensor] | None:
    """Distances from each surface voxel to the other surface, in both directions.

    None if a mask is empty.
    """
    masks = require_masks(who, prediction, reference)
    if prediction.dim() not in (2, 3):
        raise ValueError(f"{who}: masks must have 2 or 3 axes; got {tuple(prediction.shape)}")
    spacing = require_spacing(who, spacing_mm, prediction.dim())
    if not (masks[0].any() and masks[1].any()):
        return None
    box = _box(masks[0] | masks[1])  # usually much smaller than the image
    edges = [_surface(m[box]) for m in masks]
    if len(spacing) == 2:  # as one slice of a volume
        edges, spacing = [e[None] for e in edges], (1.0, *spacing)
    both = []
    for own, other in ((0, 1), (1, 0)):
        distances = torch.zeros(edges[own].shape, dtype=torch.float64, device=prediction.device)
        separate = edges[own] & ~edges[other]  # a voxel on both surfaces has distance 0
        distances[separate] = distances_to(edges[other], separate.nonzero(), spacing)
        both.append(distances[edges[own]])
    return both[0], both[1]


def _box(mask: Tensor) -> tuple[slice, ...]:
    """The bounding box of a mask that is not empty."""
    slices = []
    for axis in range(mask.dim()):
        others = tuple(a for a in range(mask.dim()) if a != axis)
        inside = torch.count_nonzero(mask, dim=others).nonzero()
        slices.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(slices)


def _surface(mask: Tensor) -> Tensor:
    """The voxels of a mask with a face neighbour outside it."""
    inner = mask.clone()
    for axis, n in enumerate(mask.shape):
        inner.narrow(axis, 0, n - 1).logical_and_(mask.narrow(axis, 1, n - 1))
        inner.narrow(axis, 1, n - 1).logical_and_(mask.narrow(axis, 0, n - 1))
        inner.select(axis, 0).zero_()
        inner.select(axis, n - 1).zero_()
    return mask & ~inner


def _quantile(values: Tensor, level: Tensor) -> Tensor:
    """Quantile with linear interpolation; ``torch.quantile`` is limited to 16 million values."""
    ordered = values.sort().values
    at = level * (len(ordered) - 1)
    below = ordered[int(at.floor())]
    return below + (ordered[int(at.ceil())] - below) * (at - at.floor())
