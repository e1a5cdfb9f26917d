"""NT-Xent, the contrastive loss on cosine similarities, without storing the similarity matrix."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrfast.ops._check import (
    require_floating,
    require_integer,
    require_one_device,
    sum_dtype,
    upcast,
    value_range,
    values_readable,
)
from cmrfast.ops._op import define

#: The rows that are negatives of an anchor: other candidates, or other anchors too.
Negatives = Literal["candidates", "both"]


def nt_xent(
    anchors: Tensor,
    candidates: Tensor,
    *,
    temperature: float = 0.07,
    targets: Tensor | None = None,
    symmetric: bool = False,
    negatives: Negatives = "candidates",
    group: Any = None,
) -> Tensor:
    """Cross entropy of the softmax over candidates of cosine / temperature, averaged over anchors.

    The negatives of an anchor are all candidates but its target, M - 1 of them, and never other
    anchors. ``NTXentLoss(temperature)(anchors, labels, ref_emb=candidates, ref_labels=labels)`` of
    pytorch-metric-learning is equal if no label occurs twice. With repeated labels it has several
    positives per anchor, each without the others in its denominator; here every candidate but the
    target is a negative. ``symmetric`` averages the two directions without mixing them.

    SimCLR (Chen et al. 2020) takes each row of both views as an anchor and the softmax over the
    2N - 1 others: that is ``negatives="both"``, and equal to pytorch-metric-learning's
    ``NTXentLoss(temperature)(torch.cat((anchors, candidates)), torch.cat((labels, labels)))``.

    Args:
        anchors: (N, D), floating; rows of any finite magnitude, zero rows have cosine 0.
        candidates: (M, D), of the anchors' dtype.
        temperature: > 0, with a finite inverse; a number, without a gradient.
        targets: (N,) integer, the candidate that is each anchor's positive; default its own index.
            Checked on the CPU; under compilation and on other devices an invalid target gives NaN.
        symmetric: average with the loss of candidates as anchors (N = M, no targets).
        negatives: "candidates", or "both" for SimCLR's loss (N = M, no targets, not symmetric,
            since the rows of both views are anchors already).
        group: ``torch.distributed`` group whose candidates are gathered as further negatives;
            targets then index the candidates of all ranks. The mean over ranks is the loss of all
            anchors, as are the gradients under DDP; a rank without rows has the loss 0. Not under
            ``torch.compile(fullgraph=True)``.

    Returns:
        A scalar.

    Example:
        >>> features = torch.ones(32, 128)  # all equal, so every candidate is equally likely
        >>> round(nt_xent(features, features).item(), 4)
        3.4657
    """
    _check(anchors, candidates, temperature, targets, symmetric, negatives, group)
    anchors, candidates = nt_xent_op.upcast(anchors), nt_xent_op.upcast(candidates)
    if negatives == "both":
        return _both_views(torch.cat((anchors, candidates)), temperature, group)
    if not symmetric:
        return _one_way(anchors, candidates, temperature, targets, group)
    if group is None:
        loss: Tensor = symmetric_op(
            anchors, candidates, temperature, _need_gradients(anchors, candidates)
        )[0]
        return loss
    loss = _one_way(anchors, candidates, temperature, targets, group)
    return (loss + _one_way(candidates, anchors, temperature, targets, group)) / 2


def _need_gradients(anchors: Tensor, candidates: Tensor) -> bool:
    """Whether to compute the gradients along with the loss."""
    return torch.is_grad_enabled() and (anchors.requires_grad or candidates.requires_grad)


def _one_way(
    anchors: Tensor, candidates: Tensor, temperature: float, targets: Tensor | None, group: Any
) -> Tensor:
    candidates, first, factor = _of_all_ranks(candidates, anchors, group)
    count = candidates.shape[0]
    if targets is None:
        targets = torch.arange(first, first + anchors.shape[0], device=anchors.device)
    elif values_readable(targets) and targets.numel():
        low, high = value_range(targets)
        if low < 0 or high >= count:
            raise ValueError(
                f"nt_xent: targets must be 0 to {count - 1}; got values from {low} to {high}"
            )
    return _share(anchors, candidates, targets.long(), temperature, None, factor)


def _both_views(rows: Tensor, temperature: float, group: Any) -> Tensor:
    """The loss of 2N rows, N of either view, each among all rows but itself."""
    candidates, first, factor = _of_all_ranks(rows, rows, group)
    count = rows.shape[0]
    partners = torch.arange(first, first + count, device=rows.device).roll(count // 2)
    return _share(rows, candidates, partners, temperature, first, factor)


def _share(
    anchors: Tensor,
    candidates: Tensor,
    targets: Tensor,
    temperature: float,
    first: int | None,
    factor: float,
) -> Tensor:
    if factor == 0:  # no anchors here, whose mean is NaN; backward still meets the other ranks
        return (anchors.sum() + candidates[:0].sum()).to(sum_dtype(anchors))
    gradients = _need_gradients(anchors, candidates)
    loss: Tensor = nt_xent_op(anchors, candidates, targets, temperature, first, gradients)[0]
    return loss if factor == 1.0 else loss * factor


def _of_all_ranks(candidates: Tensor, anchors: Tensor, group: Any) -> tuple[Tensor, int, float]:
    """The candidates of all ranks, where this rank's begin, and the loss's share of their mean."""
    if group is None:
        return candidates, 0, 1.0
    from cmrfast.ops._collectives import gather_rows, share_of_mean

    gathered, first = gather_rows(candidates, group)
    return gathered, first, share_of_mean(anchors, group)


def _check(
    anchors: Tensor,
    candidates: Tensor,
    temperature: float,
    targets: Tensor | None,
    symmetric: bool,
    negatives: str,
    group: Any,
) -> None:
    for name, rows in (("anchors", anchors), ("candidates", candidates)):
        require_floating("nt_xent", name, rows)
        if rows.dim() != 2 or rows.shape[1] < 1:
            raise ValueError(f"nt_xent: {name} must be (rows, D), D >= 1; got {tuple(rows.shape)}")
    if anchors.dtype != candidates.dtype:
        raise TypeError(
            "nt_xent: anchors and candidates must have one dtype; "
            f"got {anchors.dtype} and {candidates.dtype}"
        )
    if anchors.shape[1] != candidates.shape[1]:
        raise ValueError(
            "nt_xent: anchors and candidates must have rows of one length; "
            f"got {anchors.shape[1]} and {candidates.shape[1]}"
        )
    require_one_device("nt_xent", anchors=anchors, candidates=candidates, targets=targets)
    if isinstance(temperature, Tensor) and temperature.requires_grad:
        raise ValueError("nt_xent: temperature has no gradient; give a number: temperature.item()")
    if not temperature > 0:
        raise ValueError(f"nt_xent: temperature must be > 0; got {temperature}")
    least = torch.finfo(sum_dtype(anchors)).tiny
    if temperature < least:
        raise ValueError(
            f"nt_xent: temperature must have a finite inverse in {sum_dtype(anchors)}, so be at "
            f"least {least}; got {temperature}"
        )
    if negatives not in get_args(Negatives):
        raise ValueError(f"nt_xent: negatives must be candidates or both; got {negatives!r}")
    both = negatives == "both"
    if both and symmetric:
        raise ValueError("nt_xent: negatives='both' is symmetric by itself; leave out symmetric")
    if (both or symmetric) and targets is not None:
        name = "negatives='both'" if both else "symmetric"
        raise ValueError(f"nt_xent: {name} pairs row i with row i; leave out targets")
    if targets is not None:
        require_integer("nt_xent", "targets", targets)
        if targets.shape != anchors.shape[:1]:
            raise ValueError(
                f"nt_xent: targets must have one entry per anchor ({anchors.shape[0]}); "
                f"got shape {tuple(targets.shape)}"
            )
    if candidates.shape[0] < 1 and group is None:
        raise ValueError("nt_xent: there must be at least one candidate; got none")
    n, m = anchors.shape[0], candidates.shape[0]
    if targets is None and (m != n if symmetric or both else m < n):
        raise ValueError(
            "nt_xent: without targets each anchor needs its own candidate; "
            f"got {n} anchors and {m} candidates"
        )


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and inverse norms; a zero row stays zero and has inverse norm 0.

    Divides by the largest entry first, so that squares neither overflow nor vanish.
    """
    largest = rows.abs().amax(1, keepdim=True)
    scaled = torch.where(largest > 0, rows / largest, rows)
    norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    unit = torch.where(largest > 0, scaled / norm, scaled)
    inverse = 1 / norm.double() / largest  # of a subnormal row infinite, and 0 x inf is NaN
    inverse = inverse.clamp(max=torch.finfo(torch.float64).max)
    return unit, torch.where(largest > 0, inverse, 0)


def _reference(
    anchors: Tensor,
    candidates: Tensor,
    targets: Tensor,
    temperature: float,
    first: int | None,
    gradients: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    (a, a_inverse), (c, c_inverse) = _unit(upcast(anchors)), _unit(upcast(candidates))
    valid = (targets >= 0) & (targets < len(c))
    one_hot = F.one_hot(torch.where(valid, targets, 0), len(c)).to(a.dtype)
    one_hot = torch.where(valid[:, None], one_hot, torch.nan)
    similarity = a @ c.T
    if first is not None:  # anchor i is candidate first + i, which it skips
        itself = torch.arange(first, first + len(a), device=a.device)
        itself = itself[:, None] == torch.arange(len(c), device=a.device)
        similarity = similarity.masked_fill(itself, -torch.inf)
    log_p = (similarity / temperature).log_softmax(1)
    loss = -torch.where(one_hot == 0, 0, one_hot * log_p).sum(1).mean()
    if not gradients:
        return loss, a.new_empty(0, a.shape[1]), c.new_empty(0, c.shape[1])
    grad = (log_p.exp() - one_hot) / (temperature * max(len(a), 1))  # of the similarities
    grad_a, grad_c = grad @ c, grad.T @ a
    grad_a = (grad_a - a * (a * grad_a).sum(1, keepdim=True)) * a_inverse
    grad_c = (grad_c - c * (c * grad_c).sum(1, keepdim=True)) * c_inverse
    return loss, grad_a.to(a.dtype), grad_c.to(c.dtype)


def _symmetric_reference(
    anchors: Tensor, candidates: Tensor, temperature: float, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    targets = torch.arange(len(anchors), device=anchors.device)
    there = nt_xent_op.call(anchors, candidates, targets, temperature, None, gradients)
    back = nt_xent_op.call(candidates, anchors, targets, temperature, None, gradients)
    loss, *grads = ((x + y) / 2 for x, y in zip(there, (back[0], back[2], back[1]), strict=True))
    return loss, grads[0], grads[1]


def _fake(anchors: Tensor, candidates: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    gradients = options[-1]
    n, m = (anchors.shape[0], candidates.shape[0]) if gradients else (0, 0)
    shapes = ((), (n, anchors.shape[1]), (m, anchors.shape[1]))
    loss, *grads = (anchors.new_empty(shape, dtype=sum_dtype(anchors)) for shape in shapes)
    return loss, grads[0], grads[1]


def _backward(inputs: Any, outputs: Any, grad: Tensor, needs_input_grad: Any) -> Any:
    op = nt_xent_op if len(inputs) == 6 else symmetric_op
    gradients = (outputs if inputs[-1] else op(*inputs[:-1], True))[1:]
    return (
        *(
            times_op(grad, gradient, *inputs[:2]).to(rows.dtype) if needed else None
            for gradient, rows, needed in zip(gradients, inputs, needs_input_grad, strict=False)
        ),
        *(None,) * (len(inputs) - 2),
    )


def _times(grad: Tensor, gradient: Tensor, anchors: Tensor, candidates: Tensor) -> Tensor:
    return grad * gradient


nt_xent_op = define(
    "nt_xent(Tensor anchors, Tensor candidates, Tensor targets, float temperature, int? first,"
    " bool gradients) -> (Tensor, Tensor, Tensor)",
    reference=_reference,
    fake=_fake,
    backward=_backward,
    gradients=(0, 1),
    saves_output=True,
)

#: The chain rule, as an op that says that it cannot be differentiated: what multiplies depends on
#: the rows, but was saved, so a product of tensors would have a second derivative of 0.
times_op = define(
    "nt_xent_backward(Tensor grad, Tensor gradient, Tensor anchors, Tensor candidates) -> Tensor",
    reference=_times,
    fake=lambda grad, gradient, *_: torch.empty_like(gradient),
    of=(),
    cpu_only=True,
)

symmetric_op = define(
    "nt_xent_symmetric(Tensor anchors, Tensor candidates, float temperature, bool gradients)"
    " -> (Tensor, Tensor, Tensor)",
    reference=_symmetric_reference,
    fake=_fake,
    backward=_backward,
    gradients=(0, 1),
    saves_output=True,
    of=(),
)
