"""Exact Euclidean distances from surface voxels to the nearest voxel of another surface.

Small surfaces are compared voxel by voxel. Larger ones are sparse and mostly close to each other.
One scan computes the distance of every voxel within its row; each query voxel then searches the
rows around it, nearest first, until no row can be closer. This visits far fewer voxels than a
distance transform of the whole image, which is the fallback where surfaces are far apart or dense.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

_CHUNK = 1 << 20  # pairs of a voxel and a row that are processed at a time
_FEW = 1 << 18  # pairs of voxels that are compared faster than a search begins


def distances_to(others: Tensor, points: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """Distance from voxels to the nearest voxel of a set.

    Args:
        others: (I, J, K) bool, at least one true.
        points: (N, 3) int64 voxel indices.
        spacing: voxel edges, mm.

    Returns:
        (N,) float64, mm.
    """
    axes = sorted(range(3), key=lambda axis: spacing[axis])  # fewest rows: along the finest axis
    if len(points) * torch.count_nonzero(others).item() <= _FEW:
        return _between_all(others.nonzero(), points, axes, spacing)
    along = _along_rows(others.permute(axes).contiguous())
    row, i, j = points[:, axes].T
    step = torch.tensor([spacing[a] for a in axes], dtype=torch.float64, device=points.device)
    height, width = along.shape[1:]
    best = torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
    open_ = torch.arange(len(points), device=points.device)
    # Give up when the search costs as much as the transform, which is about 64 times as fast per
    # voxel because it reads memory in order.
    visited, limit = 0, along.numel() * (height + width) // 64
    for di, dj, squared, lower_bound in _rings(height, width, step[1:]):
        for some in open_.split(max(1, _CHUNK // len(di))):
            # Clamped to the image, a row counts as further away than it is, which cannot lower
            # the minimum.
            at = (i[some, None] + di).clamp_(0, height - 1).mul_(width)
            at += (j[some, None] + dj).clamp_(0, width - 1)
            at += row[some, None] * (height * width)
            nearest = (along.view(-1)[at].double() * step[0]).square_().add_(squared).amin(1)
            best[some] = torch.minimum(best[some], nearest)
        visited += len(open_) * len(di)
        open_ = open_[best[open_] > lower_bound]
        if not len(open_):
            return best.sqrt_()
        if visited > limit:
            break
    best[open_] = _transform(along, step)[row[open_], i[open_], j[open_]]
    return best.sqrt_()


def _between_all(
    others: Tensor, points: Tensor, axes: list[int], spacing: tuple[float, ...]
) -> Tensor:
    """The distances from comparing all pairs, with the sums of a search, so to the same bits."""
    x, y, z = (((points[:, None, a] - others[:, a]).double() * spacing[a]).square_() for a in axes)
    return y.add_(z).add_(x).amin(1).sqrt_()


def _transform(along: Tensor, step: Tensor) -> Tensor:
    """Squared distance in mm² from every voxel to the nearest true one, from those in its row."""
    squared = (along.double() * step[0]).square_()
    for axis in (1, 2):
        lines = squared.movedim(axis, -1)
        place = torch.arange(lines.shape[-1], dtype=torch.float64, device=along.device)
        between = ((place[:, None] - place) * step[axis]).square_()  # (n, n)
        flat = lines.reshape(-1, len(place))
        parts = flat.split(max(1, _CHUNK // between.numel()))
        nearest = torch.cat([(part[:, None] + between).amin(-1) for part in parts])
        squared = nearest.view(lines.shape).movedim(-1, axis)
    return squared


def _along_rows(mask: Tensor) -> Tensor:
    """(R, I, J) int32: steps to the nearest true voxel along the first axis, huge without one."""
    # 2^24 is longer than any row, and far from overflow.
    steps = torch.where(mask, 0, 1 << 24).to(torch.int32)
    rows = steps.unbind(0)
    for before, after in pairwise(rows):
        torch.minimum(after, before + 1, out=after)
    for after, before in pairwise(rows[::-1]):
        torch.minimum(before, after + 1, out=before)
    return steps


def _rings(height: int, width: int, step: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, float]]:
    """Yield offsets to other rows, nearest first, in growing batches.

    Each is (di, dj, squared mm, lower bound of the squared distance of all later rows).
    """
    di = torch.arange(1 - height, height, device=step.device)
    dj = torch.arange(1 - width, width, device=step.device)
    squared = ((di.double() * step[0]).square()[:, None] + (dj.double() * step[1]).square()).view(
        -1
    )
    squared, order = squared.sort(stable=True)
    di, dj = di[order // len(dj)], dj[order % len(dj)]
    start, batch = 0, 1
    while start < len(order):
        end = start + batch
        lower_bound = squared[end].item() if end < len(order) else torch.inf
        yield di[start:end], dj[start:end], squared[start:end], lower_bound
        start, batch = end, 4 + end // 2
