"""New MS lesions between two FLAIR volumes: a shared small block, then a comparison of its maps.

Fenneteau, Bourdon, Helbert, Fernandez-Maloigne, Habas, Guillevin: Siamese convolutional neural
network for new multiple sclerosis lesion segmentation (2021), MSSEG-2 challenge, hal-03359032.

Input: patches of the earlier and the later volume. Output: logits of five maps of new lesions, the
consensus and raters 1 to 4.

**A reconstruction, not the authors' network.** The paper gives 40,465 parameters, 28 convolutions
and a description, but no layer table. Of some 18 million layouts that fit the description, 14 meet
both totals; ``preset`` a is the one that fits the text best, b the one with batch norm after
literally every convolution. These choices are also ours:

- Leaky ReLU with slope 0.01, dropout 0.3 of whole channels, nearest-neighbour upsampling, and the
  sigmoid applied to the maps before they are compared.
- Both time points pass through the block as one batch: in training, batch norm's statistics are
  those of both together.
- Only the five final maps are supervised, because the labels do not describe a single time point.
  With ``aux_weight`` the maps before them are too, because the paper mentions deep supervision:
  those of the later time point by the new lesions, or, with ``aux_on="all"``, those of both by all
  lesions of their visit, which is what a single time point can show.
- Images are cropped to the box around the brain and set to 0 outside the brain; where no brain mask
  is available, the foreground is used. Coil shading is corrected by N4 where the extra ``n4`` is
  installed; from the paper's images the challenge's own script had removed it.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cmrfast.losses import batch_dice_loss
from cmrfast.models import recipe
from cmrfast.models._check import (
    require_batch,
    require_images,
    require_option,
    require_shares,
)
from cmrfast.models.blocks import MaxPool
from cmrfast.models.kernels import thin_conv3d

Preset = Literal["a", "b"]
AuxOn = Literal["new", "all"]
Stored = Literal["float16", "float32"]


@dataclass(frozen=True)
class Config:
    """P: the paper, with its section; D: our decision."""

    preset: Preset = "a"  # D: one of the layouts that meet the paper's totals
    dropout: float = 0.3  # D; P 1.2: in every block
    aux_weight: float = 0.0  # D: weight of the maps of single time points in the loss
    aux_on: AuxOn = "new"  # D: what these maps learn: new lesions, or all lesions of the visit

    def __post_init__(self) -> None:
        require_option("new_lesions", "preset", self.preset, get_args(Preset))
        require_option("new_lesions", "aux_on", self.aux_on, get_args(AuxOn))
        require_shares("new_lesions", dropout=self.dropout)
        if self.aux_weight < 0:
            raise ValueError(f"new_lesions: aux_weight must be >= 0; got {self.aux_weight}")

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Channels of the four levels."""
        return (3, 5, 7, 9) if self.preset == "a" else (3, 6, 9, 12)

    @property
    def maps(self) -> int:
        """Output maps of each of the three decoders for one time point."""
        return 1 if self.preset == "a" else 5

    @property
    def refinement(self) -> int:
        """Channels of the refinement block."""
        return 14 if self.preset == "a" else 5


@dataclass(frozen=True)
class Recipe(recipe.Recipe):
    """P: the paper, with its section; D: our decision.

    Args:
        spacing_mm: voxel spacing of the network's images, along all axes.
        bias_field: correct coil shading first (N4; takes a minute per volume); by default where the
            extra n4 is installed. A run keeps what it began with.
        histogram: map intensities to landmarks learned from the training set.
        patch: edge of a window in voxels, a multiple of 8.
        per_patient: patches per patient and epoch.
        on_lesion: probability that a patch contains new lesions, for patients who have some.
        flip: probability of a flip along each axis.
        stored: dtype in which prepared images are stored.
        overlap: overlap of neighbouring windows in prediction, in voxels.
        threshold: probability of the consensus above which a voxel is new lesion.
        found: smallest overlap, as a fraction of a lesion's volume, that counts as found.
    """

    lr: float = 0.004  # P 1.4
    batch: int = 40  # P 1.4
    epochs: int = 40  # P 1.4
    lr_factor: float = 0.9  # P 1.4, after every epoch
    spacing_mm: float = 0.8  # P 1.1
    # P 1.1, by the challenge's own script; D: N4
    bias_field: bool = field(default_factory=lambda: find_spec("SimpleITK") is not None)
    histogram: bool = True  # P 1.1
    patch: int = 56  # P 1.3
    per_patient: int = 872  # P 1.3
    on_lesion: float = 0.8  # P 1.3
    flip: float = 0.0  # D; no augmentation is published
    stored: Stored = "float16"  # D: resolves z-scores to a thousandth
    overlap: int = 14  # P 1.5, called provisional
    threshold: float = 0.6  # P 1.5, which calls 0.5 better
    found: float = 0.1  # D

    def __post_init__(self) -> None:
        super().__post_init__()
        require_option("new_lesions", "stored", self.stored, get_args(Stored))
        if not 0 < self.spacing_mm < float("inf"):
            raise ValueError(f"new_lesions: spacing_mm must be positive; got {self.spacing_mm}")
        if self.patch < 8 or self.patch % 8:
            raise ValueError(f"new_lesions: patch must be a multiple of 8; got {self.patch}")
        if not 0 <= self.overlap < self.patch:
            raise ValueError(
                f"new_lesions: overlap must be 0 to {self.patch - 1}; got {self.overlap}"
            )
        if self.per_patient < 1:
            raise ValueError(f"new_lesions: per_patient must be at least 1; got {self.per_patient}")
        for name in ("on_lesion", "flip", "threshold", "found"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"new_lesions: {name} must lie in [0, 1]; got {getattr(self, name)}"
                )


#: The published recipe.
RECIPE = Recipe()
#: Negative slope of the leaky ReLU.
SLOPE = 0.01


class Conv(nn.Conv3d):
    """3³ convolution, followed by a leaky ReLU if ``slope`` is not 1."""

    slope = 1.0  # ``fold`` sets SLOPE

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, D, H, W) to (B, channels_out, D, H, W)."""
        assert self.bias is not None
        return thin_conv3d(x, self.weight, self.bias, slope=self.slope)


class ConvNorm(nn.Module):
    """3³ convolution, batch norm and, if ``active``, leaky ReLU."""

    def __init__(self, channels_in: int, channels_out: int, *, active: bool = True) -> None:
        super().__init__()
        self.conv = Conv(channels_in, channels_out)
        self.norm: nn.Module = nn.BatchNorm3d(channels_out)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, D, H, W) to (B, channels_out, D, H, W)."""
        x = self.norm(self.conv(x))
        return F.leaky_relu(x, SLOPE, inplace=True) if self.active else x


class Node(nn.Module):
    """Two convolutions with dropout between them: X(i, j) in the figure of U-Net++."""

    def __init__(self, channels_in: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.first = ConvNorm(channels_in, channels)
        self.dropout = nn.Dropout3d(dropout)
        self.second: nn.Module = ConvNorm(channels, channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, channels_in, D, H, W) to the outputs of both convolutions."""
        x = self.first(x)
        return x, self.second(self.dropout(x))


class Projection(nn.Module):
    """Upsampling to the next level: a convolution shared by all columns, batch norm, resizing."""

    def __init__(self, channels_in: int, channels: int, norms: int) -> None:
        super().__init__()
        self.conv = Conv(channels_in, channels)
        self.norms = nn.ModuleList(nn.BatchNorm3d(channels) for _ in range(norms))

    def forward(self, x: Tensor, column: int) -> Tensor:
        """(B, channels_in, D, H, W) to (B, channels, 2D, 2H, 2W), for a column from 1."""
        x = self.norms[min(column, len(self.norms)) - 1](self.conv(x))
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class SegmentationBlock(nn.Module):
    """U-Net++ of four levels and three decoders, shared by both time points."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.pool = MaxPool()
        self.nodes = nn.ModuleDict()
        for j in range(last + 1):
            for i in range(last + 1 - j):
                channels_in = (j + 1) * widths[i] if j else ((1, *widths)[i])
                node = Node(channels_in, widths[i], config.dropout)
                if i == 0 and j:  # the end of a decoder: its second convolution outputs the maps
                    node.second = (
                        Conv(widths[0], config.maps)
                        if config.preset == "a"
                        else ConvNorm(widths[0], config.maps, active=False)
                    )
                self.nodes[f"{i}{j}"] = node
        self.projections = nn.ModuleList(
            Projection(widths[i + 1], widths[i], last - i if config.preset == "a" else 1)
            for i in range(last)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, D, H, W) to the decoders' maps (B, 3 · maps, D, H, W), logits."""
        levels = len(self.projections) + 1
        rows: list[list[Tensor]] = []  # [i][j]: features of level i, column j for later columns
        for i in range(levels):
            x = self.nodes[f"{i}0"](self.pool(x) if i else x)[1]
            rows.append([x])  # (B, widths[i], D / 2^i, H / 2^i, W / 2^i)
        maps = []
        for j in range(1, levels):
            for i in reversed(range(levels - j)):
                up = self.projections[i](rows[i + 1][j - 1], j)
                first, second = self.nodes[f"{i}{j}"](torch.cat((*rows[i], up), 1))
                rows[i].append(second if i else first)
            maps.append(second)  # of level 0, the last node of its column
        return torch.cat(maps, 1)


class RefinementBlock(nn.Module):
    """Compares the maps of both time points to find new lesions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.refinement
        self.dropout = nn.Dropout3d(config.dropout)
        self.convs = nn.Sequential(
            ConvNorm(2 * 3 * config.maps, width), *(ConvNorm(width, width) for _ in range(3))
        )
        self.out = nn.Conv3d(width, 5, 1)
        self.norm = nn.BatchNorm3d(5) if config.preset == "b" else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of both time points (B, 2 · 3 · maps, D, H, W) to logits (B, 5, D, H, W)."""
        logits: Tensor = self.norm(self.out(self.convs(self.dropout(maps))))
        return logits


class NewLesions(nn.Module):
    """The Siamese network: a segmentation block on each time point, then refinement.

    Example:
        >>> model = NewLesions().eval()
        >>> sum(p.numel() for p in model.parameters())
        40465
        >>> flair = torch.zeros(2, 1, 16, 16, 24)
        >>> tuple(model(flair, flair)["logits"].shape)
        (2, 5, 16, 16, 24)
    """

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config = config or Config()
        self.segmentation = SegmentationBlock(config)
        self.refinement = RefinementBlock(config)
        # Where torch convolves instead of our kernels (half precision, no build), channels last is
        # nearly twice as fast on a CPU.
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, earlier: Tensor, later: Tensor) -> dict[str, Tensor]:
        """Segment new lesions in the later volume.

        Args:
            earlier: (B, 1, D, H, W), every axis a multiple of 8.
            later: same shape.

        Returns:
            ``logits`` (B, 5, D, H, W), the consensus and raters 1 to 4; with ``aux_weight`` also
            ``maps`` (B, T · 3 · maps, D, H, W), the logits of the later time point's decoders
            (T = 1), or, with ``aux_on="all"``, of the earlier one's and the later one's (T = 2).
        """
        volumes = {"earlier": earlier, "later": later}
        require_images("new_lesions", volumes, axes=3, multiple=8)
        maps = self.segmentation(torch.cat((earlier, later)))  # (2B, 3 · maps, D, H, W)
        count = earlier.shape[0]  # chunk() would fix the batch size of an export
        earlier_maps, later_maps = maps[:count], maps[count:]
        both = torch.cat((earlier_maps, later_maps), 1)
        outputs = {"logits": self.refinement(both.sigmoid())}
        if self.config.aux_weight:
            outputs["maps"] = both if self.config.aux_on == "all" else later_maps
        return outputs


def fold(model: nn.Module) -> nn.Module:
    """Fold batch norms into the convolutions before them, for inference.

    Args:
        model: trained network; it is not changed.

    Returns:
        A copy in evaluation mode, without gradients; its outputs differ by rounding only.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    for module in folded.modules():
        if isinstance(module, ConvNorm) and isinstance(module.norm, _BatchNorm):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = nn.Identity()
            if module.active:
                module.active, module.conv.slope = False, SLOPE
    return folded


def loss(
    outputs: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    config: Config | None = None,
    *,
    group: Any = None,
) -> dict[str, Tensor]:
    """Negative Dice, as one ratio over the whole batch (equation 1).

    Args:
        outputs: the model's outputs.
        batch: ``masks`` (B, 5, D, H, W), 0 or 1: the consensus and raters 1 to 4; with
            ``aux_on="all"`` also ``lesions`` (B, 2, D, H, W), all lesions of either visit.
        config: the model's config; default: as published.
        group: process group to sum over.

    Returns:
        ``loss``, ``final`` and, with ``aux_weight``, ``aux``: the loss of each decoder's maps for
        the same masks (for a single map: for the consensus), or for the lesions of their visit.
    """
    config = config or Config()
    require_batch("new_lesions", batch, "masks")
    logits, masks = outputs["logits"], batch["masks"]
    if masks.shape != logits.shape:
        raise ValueError(
            f"new_lesions: masks must be {tuple(logits.shape)}; got {tuple(masks.shape)}"
        )
    final = batch_dice_loss(logits, masks, group=group)
    if "maps" not in outputs:
        return {"loss": final, "final": final}
    if config.aux_on == "all":
        require_batch("new_lesions", batch, "lesions")
        targets = batch["lesions"].repeat_interleave(3 * config.maps, 1)
    else:
        targets = masks[:, : config.maps].repeat(1, 3, 1, 1, 1)
    aux = batch_dice_loss(outputs["maps"], targets, group=group)
    return {"loss": final + config.aux_weight * aux, "final": final, "aux": aux}
