"""Late-enhancement images aligned with cine images, and both segmented, by one network.

Upendra, Simon, Linte: Joint Deep Learning Framework for Image Registration and Segmentation of
Late Gadolinium Enhanced MRI and Cine Cardiac MRI (2021), doi:10.1117/12.2581386.

In: a cine and an LGE slice of one place. Out: the affine matrix that samples the LGE slice where
the cine slice is, and four-class logits (background, LV, myocardium, RV) of both slices.

Where the paper is silent or contradicts itself:

- No width is given; all are ours.
- The text feeds the localisation network the concatenated pair of images (``fusion="image"``). The
  default runs one encoder on each image and joins the features of all scales (``"feature"``), as
  the works do from which the paper takes its coupling of the tasks.
- Both images pass the encoder as one batch: its batch norms then see in training the mixture of
  contrasts that their running statistics describe in evaluation.
- The weights of the three losses and of the two terms of each are equal.
- What comes from outside the LGE image is background.
- The LGE slices stay where they are, 5 mm apart in the published data; only the cine stack is
  interpolated between slices. Bringing images to 224 pixels crops or pads, as the spacing counts.
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
from cmrfast.models._check import require_batch, require_images, require_labels, require_option
from cmrfast.models.blocks import ConvNormReLU
from cmrfast.ops import affine_sample

Variant = Literal["joint", "stn"]
Fusion = Literal["feature", "image"]
Pairing = Literal["position", "index"]
Unit = Literal["slice", "patient"]


@dataclass(frozen=True)
class Config:
    """P: the paper, with its section; D: our decision."""

    variant: Variant = "joint"  # P 2.3; stn: the stand-alone registration of section 2.2
    fusion: Fusion = "feature"  # D; of variant joint (stn always takes the pair as one image)
    widths: tuple[int, ...] = (32, 64, 128, 256, 512)  # D: channels of the encoder's levels
    head_width: int = 32  # D: channels kept of each level by the head of theta
    head_grid: int = 7  # D: to which side each level is averaged there
    hidden: int = 64  # D: of the head's last convolution and of its hidden linear layer
    classes: int = 4  # P 2.1: background, LV, myocardium, RV
    alpha: float = 0.5  # D: equation 2
    registration_weight: float = 1.0  # D: lambda 1 of equation 3
    cine_weight: float = 1.0  # D: lambda 2
    lge_weight: float = 1.0  # D: lambda 3

    def __post_init__(self) -> None:
        require_option("joint_registration", "variant", self.variant, get_args(Variant))
        require_option("joint_registration", "fusion", self.fusion, get_args(Fusion))
        if len(self.widths) < 2:
            raise ValueError(
                f"joint_registration: widths must have two levels or more; got {self.widths}"
            )


@dataclass(frozen=True)
class Recipe(recipe.Recipe):
    """P: the paper, with its section; D: our decision.

    Args:
        spacing_mm: of the network's images, in plane.
        side: of the network's images, in pixels.
        pairing: a cine slice lies where the scanner's coordinates say (``position``) or, for
            headers without them, at the same share of its stack (``index``).
        clip_percent: percentiles of a slice that become 0 and 1.
        rotate_deg, shift_px: largest change of a pair, both images alike.
        lge_rotate_deg, lge_shift_px: largest further change of the LGE image alone.
        gamma: smallest and largest exponent, of each image its own.
        unit: what a row of an evaluation stands for: a pair of slices, or a patient's mean.
    """

    lr: float = 1e-4  # P 2.4
    batch: int = 16  # D
    epochs: int = 100  # P 2.4
    lr_factor: float = 0.99  # P 2.4
    lr_every: int = 2  # P 2.4
    keep: recipe.Keep = "best"  # D: the lowest registration loss of the validation patients
    split: tuple[float, float, float] = (35, 5, 5)  # P 2.3; its other one is 25, 15, 5
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
        if self.side < 1:
            raise ValueError(f"joint_registration: side must be at least 1; got {self.side}")


RECIPE = Recipe()
_SLOPE = 0.1  # of the head's hidden units below 0


class Encoder(nn.Module):
    """Two convolutions a level, each level at half the size of the one above."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(ConvNormReLU(a, b), ConvNormReLU(b, b))
            for a, b in pairwise((channels, *widths))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, channels, H, W) to one (B, width, H / 2^level, W / 2^level) a level, finest first."""
        features = []
        for i, level in enumerate(self.levels):
            x = level(F.max_pool2d(x, 2) if i else x)
            features.append(x)
        return features


class Decoder(nn.Module):
    """From the coarsest level up, each joined by the encoder's features; then the class logits."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        steps = list(pairwise(reversed(widths)))  # (coarse, fine)
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in steps)
        self.levels = nn.ModuleList(
            nn.Sequential(ConvNormReLU(2 * b, b), ConvNormReLU(b, b)) for _, b in steps
        )
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features of all levels, finest first, to (B, classes, H, W)."""
        x, *skips = reversed(features)
        for up, level, skip in zip(self.up, self.levels, skips, strict=True):
            x = level(torch.cat((up(x), skip), 1))
        logits: Tensor = self.head(x)
        return logits


class ThetaHead(nn.Module):
    """The affine matrix from the features of all levels; the identity before training."""

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
        # Leaky: while theta is about right, its gradient changes sign from batch to batch and moves
        # all units alike, which soon leaves none of plain ReLUs on.
        x = F.leaky_relu(self.hidden(x.flatten(1)), _SLOPE)
        # Under autocast the product has eight bits, which are enough for a difference from the
        # identity and far too few for a sum with it (half a pixel of 112).
        return (F.linear(x, self.theta.weight) + self.theta.bias).view(-1, 2, 3)


class JointRegistration(nn.Module):
    """The encoder, two decoders and the head of theta; as ``stn`` without the decoders.

    Example:
        >>> model = JointRegistration(Config(widths=(4, 8))).eval()
        >>> outputs = model(torch.zeros(2, 1, 32, 32), torch.zeros(2, 1, 32, 32))
        >>> {name: tuple(x.shape) for name, x in outputs.items()}
        {'theta': (2, 2, 3), 'cine': (2, 4, 32, 32), 'lge': (2, 4, 32, 32)}
    """

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config = config or Config()
        self._each = config.variant == "joint" and config.fusion == "feature"
        widths = config.widths
        self.encoder = Encoder(1 if self._each else 2, widths)
        self.head = ThetaHead([2 * w for w in widths] if self._each else widths, config)
        if config.variant == "joint":
            self.cine = Decoder(widths, config.classes)
            self.lge = Decoder(widths, config.classes)

    def forward(self, cine: Tensor, lge: Tensor) -> dict[str, Tensor]:
        """Align an LGE slice with a cine slice and segment both.

        Args:
            cine: (B, 1, H, W), H and W multiples of 16; the fixed image.
            lge: the same; the moving image.

        Returns:
            ``theta`` (B, 2, 3), for which ``affine_sample(lge, theta)`` overlays on cine, and of
            variant ``joint`` ``cine`` and ``lge`` (B, 4, H, W).
        """
        multiple = 2 ** (len(self.config.widths) - 1)
        require_images("joint_registration", {"cine": cine, "lge": lge}, multiple=multiple)
        if self._each:
            levels = self.encoder(torch.cat((cine, lge)))  # (2 B, …)
            halves = (level.unflatten(0, (2, -1)).unbind() for level in levels)
            of_cine, of_lge = zip(*halves, strict=True)
            joined = [torch.cat(pair, 1) for pair in zip(of_cine, of_lge, strict=True)]
        else:
            joined = of_cine = of_lge = self.encoder(torch.cat((cine, lge), 1))
        outputs = {"theta": self.head(joined)}
        if self.config.variant == "joint":
            outputs |= {"cine": self.cine(of_cine), "lge": self.lge(of_lge)}
        return outputs


def warp_masks(labels: Tensor, theta: Tensor, classes: int = 4) -> Tensor:
    """The masks of all classes, sampled linearly; their argmax are the warped labels.

    Args:
        labels: (B, H, W), 0 for background.
        theta: (B, 2, 3).
        classes: number of labels, background included.

    Returns:
        (B, classes, H, W) that sum to 1; what comes from outside the image is background.
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
    """The dual loss of the warped LGE labels and of both segmentations (equations 2 and 3).

    Args:
        outputs: of the model.
        batch: ``cine_labels``, ``lge_labels`` (B, H, W).
        config: of the model; default as published.
        group: process group whose batches count as one.

    Returns:
        ``loss``, ``registration`` and, of variant ``joint``, ``cine`` and ``lge``.
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
