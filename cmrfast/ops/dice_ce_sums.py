"""The four sums that Dice and cross-entropy losses need, in one pass over the logits."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrfast.ops._check import (
    kind,
    require_floating,
    require_one_device,
    sum_dtype,
    upcast,
    values_readable,
)
from cmrfast.ops._op import define

Activation = Literal["softmax", "sigmoid", "none"]
_ACTIVATIONS = ("softmax", "sigmoid", "none")
SOFTMAX, SIGMOID, NONE = range(3)  # numbered as in csrc/enums.h
_MAX_CLASSES = 16384  # so that a tile of the CPU kernel holds all classes of a pixel


def dice_ce_sums(
    logits: Tensor,
    target: Tensor,
    *,
    activation: Activation = "softmax",
    ignore_index: int = -100,
    eps: float = 1e-4,
) -> Tensor:
    """Sums of p·t, p, t and cross entropy over the pixels of each image and class.

    Args:
        logits: (B, K, *S), floating; probabilities for ``activation="none"``.
        target: of any dtype: labels (B, *S) or (B, 1, *S), which are whole numbers, or a mask or
            probability for each class, (B, K, *S). With K = 1, (B, 1, *S) is a mask. It has no
            gradient, so it must not require one.
        activation: ``softmax`` over K: cross entropy is -t·log p, its sum over K the usual one;
            ``sigmoid``: binary cross entropy per channel; ``none``: the logits are probabilities
            and cross entropy is -t·log((p + eps) / (1 + K·eps)).
        ignore_index: pixels with this target value are left out of all sums. Other labels outside
            0…K-1 raise on the CPU; under compilation and on other devices they are ignored too.
        eps: keeps the logarithm of ``none`` finite.

    Returns:
        (B, K, 4): sum p·t, sum p, sum t, cross entropy; float32, or float64 for float64 logits.

    Example:
        >>> logits = torch.zeros(1, 2, 8, 8)
        >>> target = torch.ones(1, 8, 8, dtype=torch.int64)
        >>> overlap, p, t, ce = dice_ce_sums(logits, target)[0, 1].tolist()
        >>> overlap, p, t, round(ce, 3)
        (32.0, 32.0, 64.0, 44.361)
    """
    return class_sums(logits, target, activation, ignore_index, eps, entropy=True)


def class_sums(
    logits: Tensor,
    target: Tensor,
    activation: Activation,
    ignore_index: int = -100,
    eps: float = 1e-4,
    *,
    entropy: bool,
) -> Tensor:
    """``dice_ce_sums``, where ``entropy=False`` saves the cross entropy of sigmoid, which is 0."""
    labels = _check(logits, target, activation)
    logits = sums_op.upcast(logits)
    target = _whole(target.flatten(1)) if labels else target.flatten(2)
    if target.dtype not in _TARGETS:
        target = target.long() if not target.is_floating_point() else target.float()
    logits = logits.flatten(2)
    if labels and values_readable(target):
        faults = int(label_faults(target, logits.shape[1], ignore_index))
        if faults:
            raise ValueError(
                f"dice_ce_sums: labels must be 0 to {logits.shape[1] - 1} or ignore_index "
                f"{ignore_index}; {faults} pixels hold something else"
            )
    index = _ACTIVATIONS.index(activation)
    sums: Tensor = sums_op(logits, target, index, ignore_index, eps, entropy)
    return sums


_TARGETS = (
    *(torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64),
    *(torch.float32, torch.float64),
)


def _check(logits: Tensor, target: Tensor, activation: str) -> bool:
    """Raise for wrong arguments; returns whether the target holds labels, else masks."""
    require_floating("dice_ce_sums", "logits", logits)
    if not isinstance(target, Tensor) or target.is_complex():
        raise TypeError(f"dice_ce_sums: target must be a real tensor; got {kind(target)}")
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"dice_ce_sums: activation must be one of {', '.join(_ACTIVATIONS)}; got {activation!r}"
        )
    if target.requires_grad and torch.is_grad_enabled():
        raise ValueError("dice_ce_sums: target has no gradient; detach it (target.detach())")
    require_one_device("dice_ce_sums", logits=logits, target=target)
    if logits.dim() < 3:
        raise ValueError(f"dice_ce_sums: logits must be (B, K, *S); got {tuple(logits.shape)}")
    if not 1 <= logits.shape[1] <= _MAX_CLASSES:
        raise ValueError(
            f"dice_ce_sums: there must be 1 to {_MAX_CLASSES} classes; got {logits.shape[1]}"
        )
    if target.shape == logits.shape:
        return False
    batch, *space = logits.shape[0], *logits.shape[2:]
    if list(target.shape) not in ([batch, *space], [batch, 1, *space]):
        raise ValueError(
            "dice_ce_sums: target must be labels (B, *S) or (B, 1, *S), or masks (B, K, *S), for "
            f"logits {tuple(logits.shape)}; got {tuple(target.shape)}"
        )
    return True


def _whole(labels: Tensor) -> Tensor:
    """Labels as integers."""
    if labels.dtype == torch.bool:
        return labels.byte()
    if not labels.is_floating_point():
        return labels
    if values_readable(labels) and not bool((labels == labels.round()).all()):
        raise ValueError(
            "dice_ce_sums: labels must be whole numbers; masks or probabilities of each class have "
            "the shape of the logits"
        )
    return labels.long()


def can_hold(dtype: torch.dtype, value: int) -> bool:
    """Whether a target's dtype can hold exactly this value."""
    if dtype.is_floating_point:
        return int(torch.tensor(value, dtype=dtype)) == value
    limits = torch.iinfo(torch.uint8 if dtype == torch.bool else dtype)
    return limits.min <= value <= limits.max


def _is_ignored(target: Tensor, ignore_index: int) -> Tensor:
    """Where the target is ``ignore_index``."""
    if can_hold(target.dtype, ignore_index):
        return target == ignore_index
    return torch.zeros_like(target, dtype=torch.bool)


def _masks(
    target: Tensor, classes: int, ignore_index: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The target as masks (B, K, N), and which of its entries count."""
    if target.dim() == 3:
        valid = ~_is_ignored(target, ignore_index)
        return torch.where(valid, target.to(dtype), 0), valid
    valid = (target >= 0) & (target < classes) & ~_is_ignored(target, ignore_index)
    labels = torch.where(valid, target, 0).long()
    masks = F.one_hot(labels, classes).movedim(-1, 1) * valid[:, None]
    return masks.to(dtype), valid[:, None].expand(-1, classes, -1)


def _reference(
    logits: Tensor, target: Tensor, activation: int, ignore_index: int, eps: float, entropy: bool
) -> Tensor:
    logits, classes = upcast(logits), logits.shape[1]
    t, valid = _masks(target, classes, ignore_index, logits.dtype)
    if activation == SOFTMAX:
        p, log_p = logits.softmax(1), logits.log_softmax(1)
        ce = torch.where(t != 0, -t * log_p, 0)
    elif activation == SIGMOID:
        p = logits.sigmoid()
        ce = F.binary_cross_entropy_with_logits(logits, t, reduction="none") * entropy
    else:
        p = logits
        ce = torch.where(t != 0, -t * ((p + eps) / (1 + classes * eps)).log(), 0)
    p, ce = torch.where(valid, p, 0), torch.where(valid, ce, 0)
    sums = torch.stack((p * t, p, t, ce), -1)
    return sums.sum(2, dtype=torch.float64).to(logits.dtype)


def _reference_backward(
    grad: Tensor, logits: Tensor, target: Tensor, activation: int, ignore_index: int, eps: float
) -> Tensor:
    dtype, logits = logits.dtype, upcast(logits)
    t, valid = _masks(target, logits.shape[1], ignore_index, logits.dtype)
    grad_pt, grad_p, _, grad_ce = (g[..., None] for g in grad.unbind(-1))  # each (B, K, 1)
    inner = torch.where(valid, grad_pt * t + grad_p, 0)
    if activation == SOFTMAX:
        p = logits.softmax(1)
        mean = (p * inner).sum(1, keepdim=True)
        gradient = p * (inner - mean + (grad_ce * t).sum(1, keepdim=True)) - grad_ce * t
    elif activation == SIGMOID:
        p = logits.sigmoid()
        gradient = inner * p * (1 - p) + torch.where(valid, grad_ce * (p - t), 0)
    else:
        gradient = inner - torch.where(t != 0, grad_ce * t / (logits + eps), 0)
    return gradient.to(dtype).contiguous()


def _backward(inputs: Any, outputs: None, grad: Tensor, needs_input_grad: Any) -> Any:
    logits, target, *options, _ = inputs
    return dice_ce_sums_backward(grad, logits, target, *options), *(None,) * 5


def _reference_faults(target: Tensor, classes: int, ignore_index: int) -> Tensor:
    return (((target < 0) | (target >= classes)) & ~_is_ignored(target, ignore_index)).sum()


sums_op = define(
    "dice_ce_sums(Tensor logits, Tensor target, int activation, int ignore_index, float eps,"
    " bool entropy) -> Tensor",
    reference=_reference,
    fake=lambda logits, *_: logits.new_empty(*logits.shape[:2], 4, dtype=sum_dtype(logits)),
    backward=_backward,
)

dice_ce_sums_backward = define(
    "dice_ce_sums_backward(Tensor grad, Tensor logits, Tensor target, int activation,"
    " int ignore_index, float eps) -> Tensor",
    reference=_reference_backward,
    fake=lambda grad, logits, *_: torch.empty_like(logits, memory_format=torch.contiguous_format),
    of="dice_ce_sums",
)

label_faults = define(
    "label_faults(Tensor target, int classes, int ignore_index) -> Tensor",
    reference=_reference_faults,
    fake=lambda target, *_: target.new_empty((), dtype=torch.int64),
    of=(),
    cpu_only=True,
)
