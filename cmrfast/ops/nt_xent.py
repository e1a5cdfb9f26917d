"""Contrastive pairing by cosine similarity, without ever holding the similarity matrix."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrfast.ops._check import (
    require_floating,
    require_integer,
    require_one_device,
    sum_dtype,
    upcast,
    values_readable,
)
from cmrfast.ops._op import define


def nt_xent(
    anchors: Tensor,
    candidates: Tensor,
    *,
    temperature: float = 0.07,
    targets: Tensor | None = None,
    symmetric: bool = False,
    group: Any = None,
) -> Tensor:
    """Mean over anchors of -log softmax over candidates of cosine / temperature, at the target.

    Args:
        anchors: (N, D), floating; rows of any finite magnitude, zero rows have cosine 0.
        candidates: (M, D), of the anchors' dtype.
        temperature: > 0.
        targets: (N,) integer, which candidate each anchor belongs to; default its own index.
            Checked on the CPU; under compilation and on other devices a wrong one gives NaN.
        symmetric: average with the same loss of candidates against anchors (N = M, no targets).
        group: ``torch.distributed`` group whose candidates are gathered as further negatives;
            targets then count through all ranks' candidates. The mean over ranks is the loss of
            all anchors, and so are DDP's gradients. Not under ``torch.compile(fullgraph=True)``.

    Returns:
        A scalar.

    Example:
        >>> features = torch.ones(32, 128)  # all alike: every candidate is as likely
        >>> round(nt_xent(features, features).item(), 4)
        3.4657
    """
    _check(anchors, candidates, temperature, targets, symmetric)
    anchors, candidates = nt_xent_op.upcast(anchors), nt_xent_op.upcast(candidates)
    loss = _one_way(anchors, candidates, temperature, targets, group)
    if symmetric:
        loss = (loss + _one_way(candidates, anchors, temperature, targets, group)) / 2
    return loss


def _one_way(
    anchors: Tensor, candidates: Tensor, temperature: float, targets: Tensor | None, group: Any
) -> Tensor:
    first, share = 0, 1.0
    if group is not None:
        from cmrfast.ops._collectives import gather_rows, share_of_mean

        candidates, first = gather_rows(candidates, group)
        share = share_of_mean(anchors, group)
    count = candidates.shape[0]
    if targets is None:
        targets = torch.arange(first, first + anchors.shape[0], device=anchors.device)
    elif values_readable(targets) and targets.numel():
        low, high = (int(v) for v in targets.aminmax())
        if low < 0 or high >= count:
            raise ValueError(
                f"nt_xent: targets must be 0 to {count - 1}; got values from {low} to {high}"
            )
    wanted = torch.is_grad_enabled() and (anchors.requires_grad or candidates.requires_grad)
    loss: Tensor = nt_xent_op(anchors, candidates, targets.long(), temperature, wanted)[0]
    return loss if share == 1.0 else loss * share


def _check(
    anchors: Tensor,
    candidates: Tensor,
    temperature: float,
    targets: Tensor | None,
    symmetric: bool,
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
    if not temperature > 0:
        raise ValueError(f"nt_xent: temperature must be > 0; got {temperature}")
    if symmetric and targets is not None:
        raise ValueError("nt_xent: symmetric pairs row i with row i; leave out targets")
    if targets is not None:
        require_integer("nt_xent", "targets", targets)
        if targets.shape != anchors.shape[:1]:
            raise ValueError(
                f"nt_xent: targets must have one entry per anchor ({anchors.shape[0]}); "
                f"got shape {tuple(targets.shape)}"
            )
    if candidates.shape[0] < 1:
        raise ValueError("nt_xent: there must be at least one candidate; got none")
    n, m = anchors.shape[0], candidates.shape[0]
    if targets is None and (m != n if symmetric else m < n):
        raise ValueError(
            "nt_xent: without targets each anchor needs its own candidate; "
            f"got {n} anchors and {m} candidates"
        )


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length one, and one over the length; zero rows stay zero and have 0."""
    largest = rows.abs().amax(1, keepdim=True)
    scaled = torch.where(largest > 0, rows / largest, rows)
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    unit = torch.where(largest > 0, scaled / length, scaled)
    return unit, torch.where(largest > 0, 1 / (length * largest), 0)


def _reference(
    anchors: Tensor, candidates: Tensor, targets: Tensor, temperature: float, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    (a, a_inverse), (c, c_inverse) = _unit(upcast(anchors)), _unit(upcast(candidates))
    legal = (targets >= 0) & (targets < len(c))
    own = F.one_hot(torch.where(legal, targets, 0), len(c)).to(a.dtype)
    own = torch.where(legal[:, None], own, torch.nan)
    similarity = a @ c.T
    log_p = (similarity / temperature).log_softmax(1)
    loss = -torch.where(own == 0, 0, own * log_p).sum(1).mean()
    if not gradients:
        return loss, a.new_empty(0, a.shape[1]), c.new_empty(0, c.shape[1])
    slope = (log_p.exp() - own) / (temperature * max(len(a), 1))
    grad_a, grad_c = slope @ c, slope.T @ a
    grad_a = (grad_a - a * (a * grad_a).sum(1, keepdim=True)) * a_inverse
    grad_c = (grad_c - c * (c * grad_c).sum(1, keepdim=True)) * c_inverse
    return loss, grad_a, grad_c


def _fake(
    anchors: Tensor, candidates: Tensor, targets: Tensor, temperature: float, gradients: bool
) -> tuple[Tensor, Tensor, Tensor]:
    n, m = (anchors.shape[0], candidates.shape[0]) if gradients else (0, 0)
    shapes = ((), (n, anchors.shape[1]), (m, anchors.shape[1]))
    loss, *grads = (anchors.new_empty(shape, dtype=sum_dtype(anchors)) for shape in shapes)
    return loss, grads[0], grads[1]


def _backward(inputs: Any, outputs: Any, grad: Tensor, needed: Any) -> Any:
    _, grad_anchors, grad_candidates = outputs if inputs[-1] else nt_xent_op(*inputs[:-1], True)
    return (
        (grad * grad_anchors).to(inputs[0].dtype) if needed[0] else None,
        (grad * grad_candidates).to(inputs[1].dtype) if needed[1] else None,
        *(None,) * 3,
    )


nt_xent_op = define(
    "nt_xent(Tensor anchors, Tensor candidates, Tensor targets, float temperature, bool gradients)"
    " -> (Tensor, Tensor, Tensor)",
    reference=_reference,
    fake=_fake,
    backward=_backward,
    gradients=(0, 1),
    saves_output=True,
)
