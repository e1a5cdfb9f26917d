"""The largest of every 2 x 2 pixels, or 2 x 2 x 2 voxels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrfast.models.kernels._dispatch import use_cpu_kernel
from cmrfast.ops._check import require_floating
from cmrfast.ops._op import define


def max_pool(x: Tensor) -> Tensor:
    """Halve an image along every axis, keeping the largest of each block.

    Equal to ``torch.nn.functional.max_pool2d(x, 2)`` or ``max_pool3d(x, 2)`` to the bit, with its
    gradient. On the CPU no indices are stored. Half precision, other devices, autocast and export
    run PyTorch's.

    Args:
        x: (B, C, H, W) or (B, C, D, H, W).

    Returns:
        (B, C, H // 2, W // 2) or (B, C, D // 2, H // 2, W // 2).

    Example:
        >>> max_pool(torch.arange(16.0).reshape(1, 1, 4, 4))[0, 0].tolist()
        [[5.0, 7.0], [13.0, 15.0]]
    """
    require_floating("max_pool", "x", x)
    if x.dim() not in (4, 5) or x.shape[1] < 1 or min(x.shape[2:]) < 2:
        raise ValueError(
            "max_pool: x must be (B, C, H, W) or (B, C, D, H, W), with at least one channel and "
            f"images of at least 2 along every axis; got {tuple(x.shape)}"
        )
    output: Tensor = max_pool_op(x) if use_cpu_kernel(x) else _reference(x)
    return output


def _reference(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2) if x.dim() == 4 else F.max_pool3d(x, 2)


def _indices(x: Tensor) -> Tensor:
    """(B, C, outputs): which voxel of its image each output is."""
    pool = F.max_pool2d if x.dim() == 4 else F.max_pool3d
    return pool(x, 2, return_indices=True)[1].flatten(2)


def _backward(
    inputs: Sequence[Any], outputs: Any, grad: Tensor, needs_input_grad: Sequence[bool]
) -> tuple[Tensor]:
    return (max_pool_backward_op(grad, inputs[0]),)


def _backward_reference(grad: Tensor, x: Tensor) -> Tensor:
    if x.numel() == 0:
        return torch.zeros_like(x, memory_format=torch.contiguous_format)
    zeros = x.new_zeros(*x.shape[:2], x.shape[2:].numel())
    return zeros.scatter(2, _indices(x), grad.flatten(2)).reshape(x.shape)


def _second_backward(
    inputs: Sequence[Any], outputs: Any, grad_grad: Tensor, needs_input_grad: Sequence[bool]
) -> tuple[Tensor, None]:
    grad, x = inputs
    return grad_grad.flatten(2).gather(2, _indices(x)).reshape(grad.shape), None


max_pool_op = define(
    "max_pool(Tensor x) -> Tensor",
    reference=lambda x: _reference(x).contiguous(),
    fake=lambda x: x.new_empty(*x.shape[:2], *(n // 2 for n in x.shape[2:])),
    backward=_backward,
    of=(),
    cpu_only=True,
)

max_pool_backward_op = define(
    "max_pool_backward(Tensor grad, Tensor x) -> Tensor",
    reference=_backward_reference,
    fake=lambda grad, x: x.new_empty(x.shape),
    backward=_second_backward,
    of=(),
    cpu_only=True,
)
