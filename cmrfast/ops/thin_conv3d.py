"""Convolutions of 3 x 3 x 3 voxels between few channels, fused with a leaky ReLU."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrfast.ops._op import define


def thin_conv3d(x: Tensor, weight: Tensor, bias: Tensor, *, slope: float = 1.0) -> Tensor:
    """Convolution with a border of zeros, then a leaky ReLU.

    Meant for a handful of channels on a CPU, where torch's own convolution runs at a fraction of
    the processor's speed. What is not float32 on a CPU, or is traced for other programs or under
    autocast, is torch's.

    Args:
        x: (B, C, D, H, W).
        weight: (O, C, 3, 3, 3).
        bias: (O,).
        slope: of the leaky ReLU below 0, positive; 1 leaves it out.

    Returns:
        (B, O, D, H, W).

    Example:
        >>> ones = torch.ones(1, 1, 3, 3, 3)
        >>> thin_conv3d(ones, ones, torch.zeros(1))[0, 0, 1].tolist()
        [[12.0, 18.0, 12.0], [18.0, 27.0, 18.0], [12.0, 18.0, 12.0]]
    """
    ours = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    if not ours or torch.is_autocast_enabled("cpu") or torch.compiler.is_exporting():
        x = F.conv3d(x, weight, bias, padding=1)
        return x if slope == 1 else F.leaky_relu(x, slope)
    out: Tensor = thin_conv3d_op(x, weight, bias, slope)
    return out


def _reference(x: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    return F.leaky_relu(F.conv3d(x, weight, bias, padding=1), slope).contiguous()


def _fake(x: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:])


def _backward(
    inputs: Sequence[Any], outputs: tuple[Tensor, ...], grad: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    x, weight, bias, slope = inputs
    if slope != 1:
        grad = torch.where(outputs[0] > 0, grad, slope * grad)
    to_x = to_weight = to_bias = None
    if needed[0]:  # the gradient goes back through every tap: the same, mirrored
        mirrored = weight.flip(2, 3, 4).transpose(0, 1)
        to_x = thin_conv3d_op(grad, mirrored, bias.new_zeros(x.shape[1]), 1.0)
    if needed[1] or needed[2]:
        to_weight, to_bias = thin_conv3d_backward_op(grad, x)
    return to_x, to_weight, to_bias, None


def _backward_reference(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    shape = (grad.shape[1], x.shape[1], 3, 3, 3)
    weight = (
        torch.nn.grad.conv3d_weight(x, shape, grad, padding=1) if x.numel() else x.new_zeros(shape)
    )
    return weight.contiguous(), grad.sum((0, 2, 3, 4))


thin_conv3d_op = define(
    "thin_conv3d(Tensor x, Tensor weight, Tensor bias, float slope) -> Tensor",
    reference=_reference,
    fake=_fake,
    backward=_backward,
    gradients=(0, 1, 2),
    saves_output=True,
    cpu_only=True,
)

thin_conv3d_backward_op = define(
    "thin_conv3d_backward(Tensor grad, Tensor x) -> (Tensor, Tensor)",  # of the weight and bias
    reference=_backward_reference,
    fake=lambda grad, x: (
        x.new_empty(grad.shape[1], x.shape[1], 3, 3, 3),
        x.new_empty(grad.shape[1]),
    ),
    serves="thin_conv3d",
    cpu_only=True,
)
