"""Differentiable collectives: sums and rows over the ranks of a process group."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def total(part: Tensor, group: Any) -> Tensor:
    """The sum over ranks. Every rank's loss depends on it, so the gradients are summed as well."""
    summed: Tensor = _Total.apply(part, group)  # type: ignore[no-untyped-call]
    return summed


def gather_rows(rows: Tensor, group: Any) -> tuple[Tensor, int]:
    """The rows of all ranks, in order, and the index of this rank's first; counts may differ."""
    counts = row_counts(rows, group)
    first = sum(counts[: dist.get_rank(group)])
    gathered: Tensor = _Gather.apply(rows, counts, first, group)  # type: ignore[no-untyped-call]
    return gathered, first


def row_counts(rows: Tensor, group: Any) -> list[int]:
    """The number of rows of each rank."""
    own = torch.tensor([rows.shape[0]], device=rows.device)
    counts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(counts, own, group=group)
    return [int(count) for count in counts]


def share_of_mean(rows: Tensor, group: Any) -> float:
    """The factor of a rank's mean that makes the mean over ranks equal the mean over all rows."""
    counts = row_counts(rows, group)
    return rows.shape[0] * len(counts) / max(sum(counts), 1)


def mean(values: Tensor, group: Any) -> Tensor:
    """The mean of values (N,); of a group's values, this rank's share.

    The mean of the shares over ranks is the mean over all values. A rank without values has 0.
    """
    if group is None:
        return values.mean()
    counts = row_counts(values, group)
    return values.sum() * (len(counts) / max(sum(counts), 1))


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _summed(part.detach(), group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _summed(grads[0], ctx.group), None


def _summed(part: Tensor, group: Any) -> Tensor:
    summed = part.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed, group=group)
    return summed


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], first: int, group: Any) -> Tensor:
        ctx.group, ctx.first, ctx.count = group, first, rows.shape[0]
        padded = rows.new_zeros(max(counts), rows.shape[1])
        padded[: rows.shape[0]] = rows.detach()
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded, group=group)
        return torch.cat([part[:n] for part, n in zip(gathered, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        summed = _summed(grads[0], ctx.group)
        return summed[ctx.first : ctx.first + ctx.count], None, None, None
