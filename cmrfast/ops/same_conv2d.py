"""Convolutions that keep the image's size."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from cmrfast.ops._check import cpu_kernel_serves, require_floating, require_one_device
from cmrfast.ops._op import define


def same_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1
) -> Tensor:
    """Convolution with zeros beyond the border, as many as keep the image's size.

    On a CPU, 3 x 3 kernels between 16 channels or more, and 5 x 5 between 32, take about a third of
    the products of torch's and round twice as coarsely. All else, other devices, halves, autocast
    and export get torch's.

    Args:
        x: (B, C, H, W).
        weight: (O, C, K, K), K odd.
        bias: (O,).
        dilation: pixels from one tap to the next.

    Returns:
        (B, O, H, W). An infinite pixel makes NaN of sums that it is close to.

    Example:
        >>> import torch
        >>> ones = torch.ones(1, 1, 3, 3)
        >>> same_conv2d(ones, ones)[0, 0].tolist()
        [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    given = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, tensor in given.items():
        require_floating("same_conv2d", name, tensor)
    require_one_device("same_conv2d", **given)
    if x.dim() != 4 or x.shape[1] < 1:
        raise ValueError(f"same_conv2d: x must be (B, C, H, W); got {tuple(x.shape)}")
    side = weight.shape[-1] if weight.dim() else 0
    if weight.shape[1:] != (x.shape[1], side, side) or side % 2 == 0:
        raise ValueError(
            f"same_conv2d: weight must be (O, {x.shape[1]}, K, K), K odd; got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"same_conv2d: bias must be ({weight.shape[0]},); got {tuple(bias.shape)}")
    if dilation < 1:
        raise ValueError(f"same_conv2d: dilation must be >= 1; got {dilation}")
    if not (_pays(weight) and cpu_kernel_serves(*given.values())):
        return F.conv2d(x, weight, bias, padding=dilation * (side // 2), dilation=dilation)
    shift = weight.new_zeros(len(weight)) if bias is None else bias
    found: Tensor = same_conv2d_op(x, weight, shift, dilation, False)
    return found


def _pays(weight: Tensor) -> bool:
    least = {3: 16, 5: 32}.get(weight.shape[-1])  # channels; below, the transforms cost too much
    return least is not None and min(weight.shape[:2]) >= least


def _reference(x: Tensor, weight: Tensor, bias: Tensor, dilation: int, mirrored: bool) -> Tensor:
    p = dilation * (weight.shape[-1] // 2)
    if not mirrored:
        return F.conv2d(x, weight, bias, padding=p, dilation=dilation).contiguous()
    shape = (x.shape[0], len(bias), *x.shape[2:])
    if x.numel() == 0:
        return x.new_empty(shape)
    found: Tensor = conv2d_input(shape, weight, x, padding=p, dilation=dilation)
    return (found + bias[:, None, None]).contiguous()


def _backward(
    inputs: Sequence[Any], outputs: Any, grad: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    x, weight, _, dilation, mirrored = inputs
    to_x = to_weight = to_bias = None
    if needed[0]:
        none = weight.new_zeros(weight.shape[0 if mirrored else 1])
        to_x = same_conv2d_op(grad, weight, none, dilation, not mirrored)
    if needed[1]:
        pair = (x, grad) if mirrored else (grad, x)
        to_weight = same_conv2d_backward_op(*pair, weight.shape[-1], dilation)
    if needed[2]:
        to_bias = grad.sum((0, 2, 3))
    return to_x, to_weight, to_bias, None, None


def _second_backward(
    inputs: Sequence[Any], outputs: Any, grad: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The weight's gradient is linear in both: each gets the convolution with ``grad``."""
    to_sums, x, _, dilation = inputs
    by_sums = by_x = None
    if needed[0]:
        by_sums = same_conv2d_op(x, grad, grad.new_zeros(grad.shape[0]), dilation, False)
    if needed[1]:
        by_x = same_conv2d_op(to_sums, grad, grad.new_zeros(grad.shape[1]), dilation, True)
    return by_sums, by_x, None, None


def _backward_reference(grad: Tensor, x: Tensor, side: int, dilation: int) -> Tensor:
    shape = (grad.shape[1], x.shape[1], side, side)
    if x.numel() == 0:
        return x.new_zeros(shape)
    p = dilation * (side // 2)
    found: Tensor = conv2d_weight(x, shape, grad, padding=p, dilation=dilation)
    return found.contiguous()


# Mirrored, it is the gradient in x of the convolution with this weight, from (B, O, H, W).
same_conv2d_op = define(
    "same_conv2d(Tensor x, Tensor weight, Tensor bias, int dilation, bool mirrored) -> Tensor",
    reference=_reference,
    fake=lambda x, weight, bias, *_: x.new_empty(x.shape[0], len(bias), *x.shape[2:]),
    backward=_backward,
    gradients=(0, 1, 2),
    cpu_only=True,
)

same_conv2d_backward_op = define(  # in the weight
    "same_conv2d_backward(Tensor grad, Tensor x, int side, int dilation) -> Tensor",
    reference=_backward_reference,
    fake=lambda grad, x, side, _: x.new_empty(grad.shape[1], x.shape[1], side, side),
    backward=_second_backward,
    gradients=(0, 1),
    serves="same_conv2d",
    cpu_only=True,
)
