"""TransUNet R50-ViT-B/16: a ResNet, a transformer on its last map, and a U-shaped decoder.

Chen, Lu, Yu, Luo, Adeli, Wang, Lu, Yuille, Zhou: TransUNet: Transformers Make Strong Encoders for
Medical Image Segmentation (2021), arXiv:2102.04306. The backbone of ``joint_scar``.

Input: images (B, 1, H, W), or with three channels. Output: logits (B, K, H, W).

The network equals that of the authors' code up to rounding. An image of one channel is not repeated
to three: instead, the root convolution sums its kernel over the channels, which is equivalent.
``transunet_weights`` loads the public weights.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrfast.models import transunet_weights
from cmrfast.models._check import require_finite
from cmrfast.models.blocks import ConvNormReLU
from cmrfast.models.kernels import same_conv2d
from cmrfast.models.transunet_config import Config as Config
from cmrfast.ops._check import require_floating


class StdConv(nn.Conv2d):
    """Convolution without bias, its kernels standardised to mean 0 and variance 1 on every call."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False
        )

    def standardised_weight(self) -> Tensor:
        """The kernels, (channels_out, channels_in, kernel, kernel), standardised."""
        flat = self.weight.flatten(1)
        return F.layer_norm(flat, flat.shape[1:], eps=1e-5).view_as(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) to (B, channels_out, H / stride, W / stride), rounded up."""
        kernel = self.standardised_weight()
        if self.stride == (1, 1):
            return same_conv2d(x, kernel)
        return F.conv2d(x, kernel, None, self.stride, self.padding)


class Bottleneck(nn.Module):
    """Residual block of 1×1, 3×3 (strided) and 1×1 convolutions, each with group norm."""

    def __init__(self, channels_in: int, middle: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = StdConv(channels_in, middle, 1)
        self.norm1 = nn.GroupNorm(32, middle, eps=1e-6)
        self.conv2 = StdConv(middle, middle, 3, stride)
        self.norm2 = nn.GroupNorm(32, middle, eps=1e-6)
        self.conv3 = StdConv(middle, channels_out, 1)
        self.norm3 = nn.GroupNorm(32, channels_out, eps=1e-6)
        self.project: nn.Module = nn.Identity()
        if channels_in != channels_out:
            conv = StdConv(channels_in, channels_out, 1, stride)
            norm = nn.GroupNorm(channels_out, channels_out, eps=1e-5)  # one group per channel
            self.project = nn.Sequential(conv, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) to (B, channels_out, H / stride, W / stride), rounded up."""
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = F.relu(self.norm2(self.conv2(y)), inplace=True)
        y = self.norm3(self.conv3(y))
        return F.relu(y + self.project(x), inplace=True)


class ResNet(nn.Module):
    """The convolutional part of the encoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        root = config.root
        self.conv = StdConv(3, root, 7, stride=2)
        self.norm = nn.GroupNorm(32, root, eps=1e-6)
        blocks, channels = [], root
        for level, units in enumerate(config.units):
            middle = root << level
            block = nn.Sequential()
            for unit in range(units):
                stride = 2 if level and not unit else 1
                block.append(Bottleneck(channels, middle, 4 * middle, stride))
                channels = 4 * middle
            blocks.append(block)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 1 or 3, H, W) to (B, 1024, H / 16, W / 16) and skips A, B, C."""
        kernel = self.conv.standardised_weight()
        if images.shape[1] == 1:
            kernel = kernel.sum(1, keepdim=True)
        x = F.conv2d(images, kernel, None, self.conv.stride, self.conv.padding)
        skip_c = F.relu(self.norm(x), inplace=True)  # (B, 64, H / 2, W / 2)
        x = F.max_pool2d(skip_c, 3, 2)  # no padding: H / 4 - 1 rows, W / 4 - 1 columns
        x = self.blocks[0](x)
        skip_b = F.pad(x, (0, 1, 0, 1))  # (B, 256, H / 4, W / 4), the last row and column zero
        skip_a = self.blocks[1](x)  # (B, 512, H / 8, W / 8)
        return self.blocks[2](skip_a), [skip_a, skip_b, skip_c]


class Layer(nn.Module):
    """Transformer layer with layer norm before attention and MLP."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, config.hidden)
        self.contract = nn.Linear(config.hidden, width)
        self.dropout = nn.Dropout(config.dropout)
        for linear in (self.expand, self.contract):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) to the same shape."""
        fused = self.query_key_value(self.norm1(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = fused.permute(2, 0, 3, 1, 4)  # (B, heads, N, width / heads) each
        attended = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        y = self.dropout(F.gelu(self.expand(self.norm2(x))))
        out: Tensor = x + self.dropout(self.contract(y))
        return out


class Encoder(nn.Module):
    """ResNet, embedding and transformer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.resnet = ResNet(config)
        self.embed = nn.Conv2d(16 * config.root, config.width, 1)
        self.positions = nn.Parameter(torch.zeros(1, config.grid**2, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.Sequential(*(Layer(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 1 or 3, H, W) to tokens (B, N, width) and skips A, B, C."""
        x, skips = self.resnet(images)
        tokens = self.embed(x).flatten(2).transpose(1, 2)  # (B, N, width), row by row
        tokens = self.dropout(tokens + self.positions)
        return self.norm(self.layers(tokens)), skips


class Up(nn.Module):
    """Upsampling by 2, concatenation with the skip if there is one, and two convolutions."""

    def __init__(self, channels_in: int, skip: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = ConvNormReLU(channels_in + skip, channels_out)
        self.conv2 = ConvNormReLU(channels_out, channels_out)

    def forward(self, x: Tensor, *skip: Tensor) -> Tensor:
        """(B, channels_in, H, W) to (B, channels_out, 2H, 2W)."""
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        out: Tensor = self.conv2(self.conv1(torch.cat((x, *skip), 1)))
        return out


class Decoder(nn.Module):
    """The cascaded upsampler and the segmentation head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        first, *others = config.decoder
        self.first = ConvNormReLU(config.width, first)
        skips = [8 * config.root, 4 * config.root, config.root][: config.skips]
        skips += [0] * (len(others) - len(skips))
        self.ups = nn.ModuleList(
            Up(channels_in, skip, channels_out)
            for channels_in, skip, channels_out in zip(
                config.decoder[:-1], skips, others, strict=True
            )
        )
        self.head = nn.Conv2d(others[-1], config.classes, 3, padding=1)

    def forward(self, tokens: Tensor, skips: list[Tensor]) -> Tensor:
        """Tokens (B, N, width) and skips A, B, C to logits (B, K, H, W)."""
        grid = self.config.grid
        x = self.first(tokens.transpose(1, 2).unflatten(2, (grid, grid)))
        skips = skips[: self.config.skips]
        for level, up in enumerate(self.ups):
            x = up(x, *skips[level : level + 1])
        logits: Tensor = self.head(x)
        return logits


class TransUNet(nn.Module):
    """The encoder and the decoder.

    Example:
        >>> with torch.device("meta"):
        ...     network = TransUNet()
        >>> sum(p.numel() for p in network.parameters())
        105276066
    """

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config = config or Config()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode images into tokens and skips, the inputs of the decoder.

        Args:
            images: (B, 1, H, W), or with three channels.

        Returns:
            Tokens (B, H·W / 256, 768) and the skips A (B, 512, H / 8, W / 8),
            B (B, 256, H / 4, W / 4), whose last row and column are zero, and
            C (B, 64, H / 2, W / 2).
        """
        _require_images(images, self.config.image)
        encoded: tuple[Tensor, list[Tensor]] = self.encoder(images)
        return encoded

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1, H, W), or with three channels, to logits (B, K, H, W)."""
        logits: Tensor = self.decoder(*self.encode(images))
        return logits

    def load_imagenet(self, path: str | Path) -> list[str]:
        """Load ``R50+ViT-B_16.npz`` into the encoder; the decoder is not changed.

        Position embeddings are resized linearly unless the image side is 224 pixels.

        Args:
            path: path of the file, which is never unpickled.

        Returns:
            Names of the arrays in the file that this network does not use.
        """
        return transunet_weights.load_imagenet(self.config, [self.encoder.state_dict()], path)

    def load_official(self, path: str | Path) -> None:
        """Load a state dict saved by the authors' code (``.pth``) into the whole network.

        Args:
            path: path of the file; it is rejected if it holds anything but tensors.
        """
        transunet_weights.load_official(self.config, self.state_dict(), path)


def _require_images(images: Tensor, side: int) -> None:
    require_floating("transunet", "images", images)
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] not in (1, 3) or shape[2:] != (side, side):
        raise ValueError(
            f"transunet: images must be (B, 1, {side}, {side}), or of 3 channels; got {shape}"
        )
    require_finite("transunet", "images", images)
