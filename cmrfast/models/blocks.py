"""Blocks that two or more of the papers share, with identical maths."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrfast.models.kernels import max_pool, same_conv2d


class SameConv2d(nn.Conv2d):
    """Convolution that keeps the image size.

    Args:
        channels_in: number of input channels.
        channels_out: number of output channels.
        kernel: side of the kernel, odd.
        dilation: distance between neighbouring kernel taps in pixels.
        bias: add a learnable bias.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            channels_in, channels_out, kernel, padding=padding, dilation=dilation, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) to (B, channels_out, H, W)."""
        return same_conv2d(x, self.weight, self.bias, dilation=self.dilation[0])


class MaxPool(nn.Module):
    """The largest of every 2 x 2 pixels, or 2 x 2 x 2 voxels."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H / 2, W / 2); 3-D likewise."""
        return max_pool(x)


class ConvNormReLU(nn.Module):
    """Convolution without bias, batch norm, ReLU; keeps the image size.

    Args:
        channels_in: number of input channels.
        channels_out: number of output channels.
        kernel: side of the kernel, odd.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = SameConv2d(channels_in, channels_out, kernel, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) to (B, channels_out, H, W)."""
        return F.relu(self.norm(self.conv(x)), inplace=True)


@torch.no_grad()
def init_glorot(module: nn.Module) -> None:
    """Set all convolutions and linear layers to Glorot-uniform weights and zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
