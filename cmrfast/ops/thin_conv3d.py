"""Convolutions of 3 x 3 x 3 voxels between few channels, with a leaky ReLU behind."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv3d_weight

from cmrfast.ops._check import cpu_kernel_serves, require_floating, require_one_device
from cmrfast.ops._op import define


def thin_conv3d(x: Tensor, weight: Tensor, bias: Tensor, *, slope: float = 1.0) -> Tensor:
    """Convolution with zeros beyond the border, then a leaky ReLU.

    For up to some 50 channels on a CPU, where torch's own convolution reaches a fraction of what
    the processor can do. Halves, other devices, autocast and export get torch's.

    Args:
        x: (B, C, D, H, W).
        weight: (O, C, 3, 3, 3).
        bias: (O,).
        slope: of the leaky ReLU below 0, positive; 1 leaves it out.

    Returns:
        (B, O, D, H, W). An infinite voxel makes NaN of sums that it is close to.

    Example:
        >>> ones = torch.ones(1, 1, 3, 3, 3)
        >>> thin_conv3d(ones, ones, torch.zeros(1))[0, 0, 1].tolist()
        [[12.0, 18.0, 12.0], [18.0, 27.0, 18.0], [12.0, 18.0, 12.0]]
    """
    for name, tensor in {"x": x, "weight": weight, "bias": bias}.items():
        require_floating("thin_conv3d", name, tensor)
    require_one_device("thin_conv3d", x=x, weight=weight, bias=bias)
    if x.dim() != 5 or x.shape[1] < 1:
        raise ValueError(f"thin_conv3d: x must be (B, C, D, H, W); got {tuple(x.shape)}")
    if weight.dim() != 5 or weight.shape[1:] != (x.shape[1], 3, 3, 3):
        raise ValueError(
            f"thin_conv3d: weight must be (O, {x.shape[1]}, 3, 3, 3); got {tuple(weight.shape)}"
        )
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"thin_conv3d: bias must be ({weight.shape[0]},); got {tuple(bias.shape)}")
    if not slope > 0:
        raise ValueError(f"thin_conv3d: slope must be positive; got {slope}")
    if not cpu_kernel_serves(x, weight, bias):
        out = F.conv3d(x, weight, bias, padding=1)
        return out if slope == 1 else F.leaky_relu(out, slope)
    found: Tensor = thin_conv3d_op(x, weight, bias, slope)
    return found


def _reference(x: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    return F.leaky_relu(F.conv3d(x, weight, bias, padding=1), slope).contiguous()


def _backward(
    inputs: Sequence[Any], outputs: tuple[Tensor, ...], grad: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    x, weight, bias, slope = inputs
    if slope != 1:  # the output has the sign of what went into the leaky ReLU
        grad = torch.where(outputs[0] > 0, grad, slope * grad)
    to_x = to_weight = to_bias = None
    if needed[0]:
        mirrored = weight.flip(2, 3, 4).transpose(0, 1)
        to_x = thin_conv3d_op(grad, mirrored, bias.new_zeros(x.shape[1]), 1.0)
    if needed[1] or needed[2]:
        to_weight, to_bias = thin_conv3d_backward_op(grad, x)
    return to_x, to_weight, to_bias, None


def _backward_reference(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    shape = (grad.shape[1], x.shape[1], 3, 3, 3)
    if x.numel() == 0:
        return x.new_zeros(shape), x.new_zeros(shape[:1])
    weight = conv3d_weight(x, shape, grad, padding=1)
    return weight.contiguous(), grad.sum((0, 2, 3, 4))


thin_conv3d_op = define(
    "thin_conv3d(Tensor x, Tensor weight, Tensor bias, float slope) -> Tensor",
    reference=_reference,
    fake=lambda x, weight, *_: x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:]),
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
