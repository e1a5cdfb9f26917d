"""2-D convolution that keeps the size of the image."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from cmrfast.models.kernels._dispatch import use_cpu_kernel
from cmrfast.ops._check import require_floating, require_one_device
from cmrfast.ops._op import define


def same_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1
) -> Tensor:
    """Convolution with the zero padding that keeps the size of the image.

    On the CPU, 3 x 3 kernels with at least 16 channels in and out, and 5 x 5 kernels with 16 on one
    side and 32 on the other, run a Winograd algorithm: about a third of the multiplications of
    PyTorch's convolution. Everything else (other kernels and devices, half precision, autocast,
    export) runs ``torch.nn.functional.conv2d``.

    Winograd's rounding error is relative to the pixels of a tile, not only to those that an output
    depends on: at most (C + 20)·eps·Σ|weight|·m, summed over channels, where m is the channel's
    largest pixel up to 5 dilations away. On normally distributed pixels it is about three times
    PyTorch's; where pixels of very different size lie side by side, it can be far more, relative to
    the smallest outputs. Tiles with a pixel that is not finite, or exceeds 256 times the mean
    magnitude both of its channel and of its image, are summed directly, as PyTorch does: such a
    pixel changes no output that does not depend on it.

    Args:
        x: (B, C, H, W).
        weight: (O, C, K, K), K odd.
        bias: (O,).
        dilation: spacing between the kernel's taps, in pixels.

    Returns:
        (B, O, H, W).

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
    dilation = min(dilation, max(1, *x.shape[2:]))  # beyond, all taps but the central one miss
    if not (_is_faster(weight) and use_cpu_kernel(*given.values())):
        return F.conv2d(x, weight, bias, padding=dilation * (side // 2), dilation=dilation)
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    output: Tensor = same_conv2d_op(x, weight, bias, dilation, False)
    return output


#: Side of the kernel → channels needed on the side that has fewer, and on the other.
_LEAST_CHANNELS = {3: (16, 16), 5: (16, 32)}


def _is_faster(weight: Tensor) -> bool:
    """Whether there are enough channels to make up for the cost of the transforms."""
    least = _LEAST_CHANNELS.get(weight.shape[-1])
    return least is not None and all(
        channels >= few for channels, few in zip(sorted(weight.shape[:2]), least, strict=True)
    )


def _reference(x: Tensor, weight: Tensor, bias: Tensor, dilation: int, mirrored: bool) -> Tensor:
    padding = dilation * (weight.shape[-1] // 2)
    if not mirrored:
        return F.conv2d(x, weight, bias, padding=padding, dilation=dilation).contiguous()
    shape = (x.shape[0], len(bias), *x.shape[2:])
    if x.numel() == 0:
        return x.new_empty(shape)
    output: Tensor = conv2d_input(shape, weight, x, padding=padding, dilation=dilation)
    return (output + bias[:, None, None]).contiguous()


def _backward(
    inputs: Sequence[Any], outputs: Any, grad: Tensor, needs_input_grad: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    x, weight, _, dilation, mirrored = inputs
    grad_x = grad_weight = grad_bias = None
    if needs_input_grad[0]:
        no_bias = weight.new_zeros(weight.shape[0 if mirrored else 1])
        grad_x = same_conv2d_op(grad, weight, no_bias, dilation, not mirrored)
    if needs_input_grad[1]:
        pair = (x, grad) if mirrored else (grad, x)
        grad_weight = same_conv2d_backward_op(*pair, weight.shape[-1], dilation)
    if needs_input_grad[2]:
        grad_bias = grad.sum((0, 2, 3))
    return grad_x, grad_weight, grad_bias, None, None


def _second_backward(
    inputs: Sequence[Any], outputs: Any, grad_grad: Tensor, needs_input_grad: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The weight's gradient is bilinear in grad and x: both derivatives are convolutions again."""
    grad, x, _, dilation = inputs
    grad_of_grad = grad_x = None
    if needs_input_grad[0]:
        no_bias = grad_grad.new_zeros(grad_grad.shape[0])
        grad_of_grad = same_conv2d_op(x, grad_grad, no_bias, dilation, False)
    if needs_input_grad[1]:
        no_bias = grad_grad.new_zeros(grad_grad.shape[1])
        grad_x = same_conv2d_op(grad, grad_grad, no_bias, dilation, True)
    return grad_of_grad, grad_x, None, None


def _backward_reference(grad: Tensor, x: Tensor, side: int, dilation: int) -> Tensor:
    shape = (grad.shape[1], x.shape[1], side, side)
    if x.numel() == 0:
        return x.new_zeros(shape)
    padding = dilation * (side // 2)
    grad_weight: Tensor = conv2d_weight(x, shape, grad, padding=padding, dilation=dilation)
    return grad_weight.contiguous()


# With `mirrored`, the transposed convolution: the gradient of x from that of the output.
same_conv2d_op = define(
    "same_conv2d(Tensor x, Tensor weight, Tensor bias, int dilation, bool mirrored) -> Tensor",
    reference=_reference,
    fake=lambda x, weight, bias, *_: x.new_empty(x.shape[0], len(bias), *x.shape[2:]),
    backward=_backward,
    gradients=(0, 1, 2),
    of=(),
    cpu_only=True,
)

same_conv2d_backward_op = define(  # the gradient of the weight
    "same_conv2d_backward(Tensor grad, Tensor x, int side, int dilation) -> Tensor",
    reference=_backward_reference,
    fake=lambda grad, x, side, _: x.new_empty(grad.shape[1], x.shape[1], side, side),
    backward=_second_backward,
    gradients=(0, 1),
    of=(),
    cpu_only=True,
)
