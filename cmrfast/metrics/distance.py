"""Exact Euclidean distances from surface voxels to the nearest voxel of another surface.

Surfaces are sparse and mostly near each other: a scan gives every voxel its distance within its
row, then each asked voxel looks at the rows around it, nearest first, until none can be nearer.
That visits far fewer voxels than a distance transform of the whole image, which steps in where
surfaces turn out to be far apart or everywhere.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

_AT_ONCE = 1 << 20  # pairs of a voxel and a row that are looked at together


def distances_to(others: Tensor, points: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """Distance of voxels to the nearest voxel of a set.

    Args:
        others: (I, J, K) bool, at least one true.
        points: (N, 3) int64 voxels.
        spacing: edges of a voxel, mm.

    Returns:
        (N,) float64, mm.
    """
    axes = sorted(range(3), key=lambda axis: spacing[axis])  # rows along the finest axis: fewest
    along = _along_rows(others.permute(axes).contiguous())
    row, i, j = points[:, axes].T
    step = torch.tensor([spacing[a] for a in axes], dtype=torch.float64, device=points.device)
    height, width = along.shape[1:]
    best = torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
    open_ = torch.arange(len(points), device=points.device)
    # What the transform would look at, in order and so many times faster.
    looked, enough = 0, along.numel() * (height + width) // 64
    for di, dj, squared, nothing_below in _rings(height, width, step[1:]):
        for some in open_.split(max(1, _AT_ONCE // len(di))):
            # Held inside, a row counts as further away than it is: a bound, never a wrong minimum.
            at = (i[some, None] + di).clamp_(0, height - 1).mul_(width)
            at += (j[some, None] + dj).clamp_(0, width - 1)
            at += row[some, None] * (height * width)
            found = (along.view(-1)[at].double() * step[0]).square_().add_(squared).amin(1)
            best[some] = torch.minimum(best[some], found)
        looked += len(open_) * len(di)
        open_ = open_[best[open_] > nothing_below]
        if not len(open_):
            return best.sqrt_()
        if looked > enough:
            break
    best[open_] = _transform(along, step)[row[open_], i[open_], j[open_]]
    return best.sqrt_()


def _transform(along: Tensor, step: Tensor) -> Tensor:
    """Squared mm from every voxel to the nearest true one, from voxels within the rows."""
    squared = (along.double() * step[0]).square_()
    for axis in (1, 2):
        lines = squared.movedim(axis, -1)
        place = torch.arange(lines.shape[-1], dtype=torch.float64, device=along.device)
        between = ((place[:, None] - place) * step[axis]).square_()  # (n, n)
        flat = lines.reshape(-1, len(place))
        parts = flat.split(max(1, _AT_ONCE // between.numel()))
        nearest = torch.cat([(part[:, None] + between).amin(-1) for part in parts])
        squared = nearest.view(lines.shape).movedim(-1, axis)
    return squared


def _along_rows(mask: Tensor) -> Tensor:
    """(R, I, J) int32: voxels to the nearest true one along the first axis, huge where none is."""
    steps = torch.where(mask, 0, 1 << 24).to(torch.int32)
    rows = steps.unbind(0)
    for before, after in pairwise(rows):
        torch.minimum(after, before + 1, out=after)
    for after, before in pairwise(rows[::-1]):
        torch.minimum(before, after + 1, out=before)
    return steps


def _rings(height: int, width: int, step: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, float]]:
    """Offsets to other rows, nearest first, in growing batches: di, dj, squared mm.

    And the squared distance that no later row is below.
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
        nothing_below = squared[end].item() if end < len(order) else torch.inf
        yield di[start:end], dj[start:end], squared[start:end], nothing_below
        start, batch = end, 4 + end // 2
