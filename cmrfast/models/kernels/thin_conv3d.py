"""3 x 3 x 3 convolution between few channels, followed by a leaky ReLU."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv3d_weight

from cmrfast.models.kernels._dispatch import use_cpu_kernel
from cmrfast.ops._check import require_floating, require_one_device
from cmrfast.ops._op import define


def thin_conv3d(x: Tensor, weight: Tensor, bias: Tensor, *, slope: float = 1.0) -> Tensor:
    """Convolution with zero padding, then a leaky ReLU.

    For up to about 50 channels on the CPU, where PyTorch's convolution reaches only a fraction of
    the processor's peak. Half precision, other devices, autocast and export run
    ``torch.nn.functional.conv3d``.

    The CPU kernel is a Winograd algorithm in depth and height. Its rounding error is at most
    (C + 20)·eps·Σ|weight|·m, summed over channels, where m is the channel's largest voxel up to
    3 planes or rows and one column away. Rows near a voxel that is not finite, or exceeds 256 times
    the mean magnitude both of its channel and of its volume, are summed directly: such a voxel
    changes no output that does not depend on it.

    Args:
        x: (B, C, D, H, W).
        weight: (O, C, 3, 3, 3).
        bias: (O,).
        slope: negative slope of the leaky ReLU, > 0; 1 for none.

    Returns:
        (B, O, D, H, W).

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
    if not use_cpu_kernel(x, weight, bias):
        out = F.conv3d(x, weight, bias, padding=1)
        return out if slope == 1 else F.leaky_relu(out, slope)
    output: Tensor = thin_conv3d_op(x, weight, bias, slope)
    return output


def _reference(x: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    return F.leaky_relu(F.conv3d(x, weight, bias, padding=1), slope).contiguous()


def _backward(
    inputs: Sequence[Any],
    outputs: tuple[Tensor, ...],
    grad: Tensor,
    needs_input_grad: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    x, weight, bias, slope = inputs
    if slope != 1:  # a leaky ReLU keeps the sign, so the output tells where its input was positive
        grad = torch.where(outputs[0] > 0, grad, slope * grad)
    grad_x = grad_weight = grad_bias = None
    if needs_input_grad[0]:
        mirrored = weight.flip(2, 3, 4).transpose(0, 1)
        grad_x = thin_conv3d_op(grad, mirrored, bias.new_zeros(x.shape[1]), 1.0)
    if needs_input_grad[1] or needs_input_grad[2]:
        grad_weight, grad_bias = thin_conv3d_backward_op(grad, x)
    return grad_x, grad_weight, grad_bias, None


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
    of=(),
    cpu_only=True,
)

thin_conv3d_backward_op = define(
    "thin_conv3d_backward(Tensor grad, Tensor x) -> (Tensor, Tensor)",  # of the weight and bias
    reference=_backward_reference,
    fake=lambda grad, x: (
        x.new_empty(grad.shape[1], x.shape[1], 3, 3, 3),
        x.new_empty(grad.shape[1]),
    ),
    of=(),
    cpu_only=True,
)
