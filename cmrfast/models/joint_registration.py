"""Registration of LGE to cine images and segmentation of both, by one network.

Upendra, Simon, Linte: Joint Deep Learning Framework for Image Registration and Segmentation of
Late Gadolinium Enhanced MRI and Cine Cardiac MRI (2021), doi:10.1117/12.2581386.

Input: a cine and an LGE slice at the same position. Output: the affine matrix that resamples the
LGE slice onto the cine slice, and four-class logits (background, LV, myocardium, RV) of both.

Where the paper is silent or contradicts itself:

- No channel widths are given; all are ours.
- In the text the localisation network takes the concatenated pair of images (``fusion="image"``).
  The default runs one encoder on each image and concatenates the features of all scales
  (``"feature"``), as in the works from which the paper takes the coupling of the two tasks.
- Both images pass through the encoder as one batch, so that batch norm sees in training the mixture
  of contrasts that its running statistics describe in evaluation.
- The three losses have equal weights, and so have the two terms of each.
- Samples from outside the LGE image are background.
- The hidden layer of the theta head has a leaky ReLU, because plain ones die.
- LGE slices keep their positions, 5 mm apart in the published data; only the cine stack is
  interpolated between slices. Images are cropped or padded to 224 pixels, which keeps the spacing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrfast.losses import dual_loss
from cmrfast.models import recipe
from cmrfast.models._check import (
    require_batch,
    require_images,
    require_labels,
    require_option,
    require_shares,
)
from cmrfast.models.blocks import ConvNormReLU, MaxPool
from cmrfast.ops import affine_sample

Variant = Literal["joint", "stn"]
Fusion = Literal["feature", "image"]
Pairing = Literal["position", "index"]
Unit = Literal["slice", "patient"]


@dataclass(frozen=True)
class Config:
    """P: the paper, with its section; D: our decision."""

    variant: Variant = "joint"  # P 2.3; stn: the stand-alone registration of section 2.2
    fusion: Fusion = "feature"  # D; for variant joint (stn always concatenates the images)
    widths: tuple[int, ...] = (32, 64, 128, 256, 512)  # D: channels of the encoder's levels
    head_width: int = 32  # D: channels to which the theta head reduces each level
    head_grid: int = 7  # D: side of the grid to which it pools each level
    hidden: int = 64  # D: width of the head's last convolution and of its hidden layer
    classes: int = 4  # P 2.1: background, LV, myocardium, RV
    alpha: float = 0.5  # D: weight of the cross entropy in equation 2
    registration_weight: float = 1.0  # D: lambda 1 of equation 3
    cine_weight: float = 1.0  # D: lambda 2
    lge_weight: float = 1.0  # D: lambda 3

    def __post_init__(self) -> None:
        require_option("joint_registration", "variant", self.variant, get_args(Variant))
        require_option("joint_registration", "fusion", self.fusion, get_args(Fusion))
        require_shares("joint_registration", alpha=self.alpha)
        if len(self.widths) < 2:
            raise ValueError(
                f"joint_registration: widths must have two levels or more; got {self.widths}"
            )


@dataclass(frozen=True)
class Recipe(recipe.Recipe):
    """P: the paper, with its section; D: our decision.

    Args:
        spacing_mm: in-plane spacing of the network's images.
        side: side of the network's images in pixels.
        pairing: cine slices are located by scanner coordinates (``position``) or, for headers
            without them, by their relative position in the stack (``index``).
        clip_percent: percentiles of a slice that are mapped to 0 and 1.
        rotate_deg, shift_px: largest rotation and shift of a pair, the same for both images.
        lge_rotate_deg, lge_shift_px: largest additional rotation and shift of the LGE image.
        gamma: smallest and largest exponent, drawn for each image.
        unit: what a row of an evaluation is: a pair of slices, or the mean of a patient.
    """

    lr: float = 1e-4  # P 2.4
    batch: int = 16  # D
    epochs: int = 100  # P 2.4
    lr_factor: float = 0.99  # P 2.4
    lr_every: int = 2  # P 2.4
    keep: recipe.Keep = "best"  # D: lowest registration loss on the validation patients
    split: tuple[float, float, float] = (35, 5, 5)  # P 2.3; its other split is 25, 15, 5
    spacing_mm: float = 0.75  # P 2.1
    side: int = 224  # P 2.1
    pairing: Pairing = "position"  # D
    clip_percent: tuple[float, float] = (1.0, 99.0)  # D
    rotate_deg: float = 15.0  # D; P 2.4 names translation, rotation and gamma correction
    shift_px: float = 20.0  # D
    lge_rotate_deg: float = 5.0  # D
    lge_shift_px: float = 5.0  # D
    gamma: tuple[float, float] = (0.7, 1.5)  # D
    unit: Unit = "slice"  # D

    def __post_init__(self) -> None:
        super().__post_init__()
        require_option("joint_registration", "pairing", self.pairing, get_args(Pairing))
        require_option("joint_registration", "unit", self.unit, get_args(Unit))
        if not 0 < self.spacing_mm < float("inf"):
            raise ValueError(
                f"joint_registration: spacing_mm must be positive; got {self.spacing_mm}"
            )
        if not 0 <= self.clip_percent[0] < self.clip_percent[1] <= 100:
            raise ValueError(
                "joint_registration: clip_percent must be 0 <= low < high <= 100; "
                f"got {self.clip_percent}"
            )
        if self.side < 1:
            raise ValueError(f"joint_registration: side must be at least 1; got {self.side}")


RECIPE = Recipe()
_NEGATIVE_SLOPE = 0.1  # of the leaky ReLU in the theta head


def _double_conv(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        ConvNormReLU(channels_in, channels_out), ConvNormReLU(channels_out, channels_out)
    )


class Encoder(nn.Module):
    """Two convolutions per level, each level at half the size of the one before."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.pool = MaxPool()
        self.levels = nn.ModuleList(_double_conv(a, b) for a, b in pairwise((channels, *widths)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, channels, H, W) to (B, width, H / 2^level, W / 2^level) per level, finest first."""
        features = []
        for i, level in enumerate(self.levels):
            x = level(self.pool(x) if i else x)
            features.append(x)
        return features


class Decoder(nn.Module):
    """Upsampling from the coarsest level, with the encoder's features as skips, to class logits."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        pairs = list(pairwise(reversed(widths)))  # (coarse, fine)
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.levels = nn.ModuleList(_double_conv(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features of all levels, finest first, to (B, classes, H, W)."""
        x, *skips = reversed(features)
        for up, level, skip in zip(self.up, self.levels, skips, strict=True):
            x = level(torch.cat((up(x), skip), 1))
        logits: Tensor = self.head(x)
        return logits


class ThetaHead(nn.Module):
    """Predicts the affine matrix from the features of all levels; initially the identity."""

    def __init__(self, channels: Sequence[int], config: Config) -> None:
        super().__init__()
        width, hidden = config.head_width, config.hidden
        self.reduce = nn.ModuleList(ConvNormReLU(c, width, kernel=1) for c in channels)
        self.grid = config.head_grid
        self.mix = ConvNormReLU(width * len(channels), hidden)
        self.hidden = nn.Linear(hidden * self.grid**2, hidden)
        self.theta = nn.Linear(hidden, 6)
        nn.init.zeros_(self.theta.weight)
        with torch.no_grad():
            self.theta.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features of all levels to (B, 2, 3)."""
        pooled = [
            F.adaptive_avg_pool2d(reduce(x), self.grid)
            for reduce, x in zip(self.reduce, features, strict=True)
        ]
        x = self.mix(torch.cat(pooled, 1))  # (B, hidden, grid, grid)
        # Leaky, because plain ReLUs die here: once theta is about right, its gradient changes sign
        # from batch to batch and moves all units together, until none of them is active.
        x = F.leaky_relu(self.hidden(x.flatten(1)), _NEGATIVE_SLOPE)
        # Under autocast the product has eight bits: enough for a difference from the identity, but
        # far too few for the sum with it (half a pixel of 112), so the bias is added afterwards.
        return (F.linear(x, self.theta.weight) + self.theta.bias).view(-1, 2, 3)


class JointRegistration(nn.Module):
    """The encoder, two decoders and the theta head; variant ``stn`` has no decoders.

    Example:
        >>> model = JointRegistration(Config(widths=(4, 8))).eval()
        >>> outputs = model(torch.zeros(2, 1, 32, 32), torch.zeros(2, 1, 32, 32))
        >>> {name: tuple(x.shape) for name, x in outputs.items()}
        {'theta': (2, 2, 3), 'cine': (2, 4, 32, 32), 'lge': (2, 4, 32, 32)}
    """

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config = config or Config()
        self._encodes_each = config.variant == "joint" and config.fusion == "feature"
        widths = config.widths
        self.encoder = Encoder(1 if self._encodes_each else 2, widths)
        self.head = ThetaHead([2 * w for w in widths] if self._encodes_each else widths, config)
        if config.variant == "joint":
            self.cine = Decoder(widths, config.classes)
            self.lge = Decoder(widths, config.classes)

    def forward(self, cine: Tensor, lge: Tensor) -> dict[str, Tensor]:
        """Align an LGE slice with a cine slice and segment both.

        Args:
            cine: (B, 1, H, W), H and W multiples of 16; the fixed image.
            lge: same shape; the moving image.

        Returns:
            ``theta`` (B, 2, 3), such that ``affine_sample(lge, theta)`` overlays on cine, and for
            variant ``joint`` the logits ``cine`` and ``lge``, (B, 4, H, W) each.
        """
        multiple = 2 ** (len(self.config.widths) - 1)
        require_images("joint_registration", {"cine": cine, "lge": lge}, multiple=multiple)
        if self._encodes_each:
            levels = self.encoder(torch.cat((cine, lge)))  # (2 B, …)
            images = (level.unflatten(0, (2, -1)).unbind() for level in levels)
            cine_features, lge_features = zip(*images, strict=True)
            features = [torch.cat(x, 1) for x in zip(cine_features, lge_features, strict=True)]
        else:
            features = cine_features = lge_features = self.encoder(torch.cat((cine, lge), 1))
        outputs = {"theta": self.head(features)}
        if self.config.variant == "joint":
            outputs |= {"cine": self.cine(cine_features), "lge": self.lge(lge_features)}
        return outputs


def warp_masks(labels: Tensor, theta: Tensor, classes: int = 4) -> Tensor:
    """Warp the masks of all classes, with linear interpolation; argmax gives the warped labels.

    Args:
        labels: (B, H, W), 0 is background.
        theta: (B, 2, 3).
        classes: number of labels, background included.

    Returns:
        (B, classes, H, W) that sum to 1; samples from outside the image are background.
    """
    require_labels(
        "joint_registration", "labels", labels, (theta.shape[0], *labels.shape[1:]), classes
    )
    foreground = torch.stack([labels == k for k in range(1, classes)], 1)
    foreground = affine_sample(
        foreground.to(torch.promote_types(theta.dtype, torch.float32)), theta
    )
    return torch.cat((1 - foreground.sum(1, keepdim=True), foreground), 1)


def loss(
    outputs: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    config: Config | None = None,
    *,
    group: Any = None,
) -> dict[str, Tensor]:
    """Dual loss of the warped LGE labels and of both segmentations (equations 2 and 3).

    Args:
        outputs: the model's outputs.
        batch: ``cine_labels``, ``lge_labels`` (B, H, W).
        config: the model's config; default: as published.
        group: process group whose batches are treated as one.

    Returns:
        ``loss``, ``registration`` and, for variant ``joint``, ``cine`` and ``lge``.
    """
    config = config or Config()
    require_batch("joint_registration", batch, "cine_labels", "lge_labels")
    cine, lge = batch["cine_labels"], batch["lge_labels"]
    warped = warp_masks(lge, outputs["theta"], config.classes)
    parts = {
        "registration": dual_loss(warped, cine, activation="none", alpha=config.alpha, group=group)
    }
    total = config.registration_weight * parts["registration"]
    if "cine" in outputs:
        parts["cine"] = dual_loss(outputs["cine"], cine, alpha=config.alpha, group=group)
        parts["lge"] = dual_loss(outputs["lge"], lge, alpha=config.alpha, group=group)
        total = total + config.cine_weight * parts["cine"] + config.lge_weight * parts["lge"]
    return {"loss": total, **parts}
