"""Exact Euclidean distances from voxels to the nearest voxel of a sparse set.

Axis by axis, as squared distances separate: a scan along the last axis, the lower envelope of
parabolas along the middle one, and along the first one only what the asked voxels need.
"""

import torch
from torch import Tensor

_AT_ONCE = 1 << 22  # voxels whose envelopes are held at a time


def distances_to(others: Tensor, points: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """Distance of voxels to the nearest voxel of a set.

    Args:
        others: (I, J, K) bool, at least one true.
        points: (N, 3) int64 voxels.
        spacing: edges of a voxel, mm.

    Returns:
        (N,) float64, mm.
    """
    planes = others.flatten(1).any(1).nonzero()[:, 0]
    best = torch.full((len(points),), torch.inf, dtype=torch.float64, device=others.device)
    column = points[:, 1] * others.shape[2] + points[:, 2]
    for some in planes.split(max(1, _AT_ONCE // others[0].numel())):
        squared = _along_row(others[some]).mul_(spacing[2]).square_()
        squared = _lower_envelope(squared, spacing[1])
        for plane, in_plane in zip(some, squared, strict=True):
            across = ((points[:, 0] - plane) * spacing[0]).square_()
            best = torch.minimum(best, across + in_plane.flatten()[column])
    return best.sqrt_()


def _along_row(mask: Tensor) -> Tensor:
    """(P, J, K) float64 voxels to the nearest true voxel of the same row; inf where none is."""
    n = mask.shape[2]
    at = torch.arange(n, dtype=torch.float64, device=mask.device)
    before = torch.where(mask, at, -torch.inf).cummax(2).values
    after = torch.where(mask, at, torch.inf).flip(2).cummin(2).values.flip(2)
    return torch.minimum(at - before, after - at)


def _lower_envelope(squared: Tensor, spacing: float) -> Tensor:
    """Minimum over j' of squared[p, j', k] + (spacing · (j - j'))², all lines (p, k) at once.

    Each line keeps the stack of those j' whose parabola is lowest somewhere, and where each begins
    to be; a new one first takes off those that it covers.
    """
    planes, n, width = squared.shape
    f = squared.transpose(1, 2).reshape(-1, n) / spacing**2  # (lines, n), in voxels
    lines = torch.arange(len(f), device=f.device)
    stack = torch.zeros(len(f), n + 1, dtype=torch.int64, device=f.device)
    begins = torch.full_like(stack, torch.inf, dtype=torch.float64)
    top = torch.full_like(lines, -1)
    for j in range(n):
        new = f[:, j].isfinite().nonzero()[:, 0]
        begin = torch.full((len(new),), -torch.inf, dtype=torch.float64, device=f.device)
        height = f[new, j] + j * j
        asked = (top[new] >= 0).nonzero()[:, 0]
        while len(asked):
            line = new[asked]
            last = stack[line, top[line]]
            meet = (height[asked] - f[line, last] - last * last) / (2 * (j - last))
            covers = meet <= begins[line, top[line]]
            begin[asked] = torch.where(covers, -torch.inf, meet)
            asked = asked[covers]
            top[new[asked]] -= 1  # begins[:, 0] is -inf: only a first parabola can empty the stack
            asked = asked[top[new[asked]] >= 0]
        top[new] += 1
        stack[new, top[new]] = j
        begins[new, top[new]] = begin
    at = torch.arange(n, dtype=torch.float64, device=f.device)
    begins.masked_fill_(torch.arange(n + 1, device=f.device) > top[:, None], torch.inf)
    which = torch.searchsorted(begins, at.expand(len(f), n).contiguous()).sub_(1).clamp_(min=0)
    nearest = stack.gather(1, which)
    lowest = f.gather(1, nearest).add_((at - nearest).square_()).mul_(spacing**2)
    return lowest.view(planes, width, n).transpose(1, 2)
