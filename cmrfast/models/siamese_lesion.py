"""Lesion classification in T1 maps, trained with LGE images that prediction does not need.

Golub, Santiago, Baleia, Lopes, Ferreira, Nunes, Nascimento: Convolutional Siamese Networks for
Myocardial Lesion Classification in T1 Maps (2022); for the layers of a branch, Dey et al.: SigNet,
arXiv:1707.02131.

Input: patches of a T1 map and, in training, the same patches of the LGE image. Output: logits of
two classes from T1 alone, and the features that match a T1 patch with its LGE patch.

Where the paper is silent or contradicts itself:

- The patch size is not given; 64 pixels of 1 mm give the paper's fraction of positive patches.
- "Half" of the layers is shared in ``partial``: here the later half. The two images differ in
  contrast, which early layers see, while the features must lie in one space.
- The last layer of a branch is linear (SigNet's has a ReLU), so that cosines can be negative.
- The classifier's widths are ours. Its input, the feature, is not normalised to unit length.
- The factor y_i after the logarithms of equations 1 and 2 is read as the index of the target.
- T1 is clipped to four SD about the mean of the training patients' myocardium: air and lung have
  no T1, and a map is noise there.
- The rule of six SD also finds pixels that hold blood in part, where a contour was drawn on the
  border of the myocardium. With ``border_px=1`` bright pixels of the contour's border count only
  beside a bright pixel within; at 2 mm a pixel, few pixels of a thin wall lie within.
- Response normalisation divides alpha by the window size, as PyTorch's does.
- ``norm="batch"`` uses batch norm instead of response normalisation, as SigNet's code does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrfast.models import recipe
from cmrfast.models._check import (
    require_batch,
    require_images,
    require_labels,
    require_option,
    require_shares,
)
from cmrfast.models.blocks import SameConv2d, init_glorot
from cmrfast.ops import nt_xent
from cmrfast.ops._collectives import mean

Variant = Literal["decoupled", "siamese", "partial", "pure"]
Norm = Literal["lrn", "batch"]

_LAYERS = ("conv1", "conv2", "conv3", "conv4", "fc5", "fc6")


@dataclass(frozen=True)
class Config:
    """P: the paper, with its section; S: SigNet, table 1; D: our decision."""

    variant: Variant = "decoupled"  # P 3: the best of the four
    patch: int = 64  # D: side in pixels; at least 32
    shared_layers: tuple[int, ...] = (4, 5, 6)  # D: layers, 1 to 6, that variant partial shares
    norm: Norm = "lrn"  # S
    channels: tuple[int, int, int, int] = (96, 256, 384, 256)  # S
    hidden: int = 1024  # S
    features: int = 128  # P 2.2
    classifier: tuple[int, int] = (64, 32)  # D: hidden units
    classes: int = 2  # P 2.2
    dropout_conv: float = 0.3  # S: after convolutions
    dropout_full: float = 0.5  # S: after the fully connected layer
    temperature: float = 0.07  # P 2.2

    def __post_init__(self) -> None:
        require_option("siamese_lesion", "variant", self.variant, get_args(Variant))
        require_option("siamese_lesion", "norm", self.norm, get_args(Norm))
        require_shares(
            "siamese_lesion", dropout_conv=self.dropout_conv, dropout_full=self.dropout_full
        )
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"siamese_lesion: temperature must be positive; got {self.temperature}"
            )
        if self.patch < 32:
            raise ValueError(f"siamese_lesion: patch must be at least 32; got {self.patch}")
        if not set(self.shared_layers) <= set(range(1, 7)):
            raise ValueError(
                f"siamese_lesion: shared_layers must be some of 1 to 6; got {self.shared_layers}"
            )


@dataclass(frozen=True)
class Recipe(recipe.Recipe):
    """P: the paper; D: our decision."""

    lr: float = 1e-4  # P; D: Adam, constant
    batch: int = 32  # P
    epochs: int = 300  # P; D: the last epoch is used
    drop_last: bool = True  # D: so that all batches have the same number of negatives
    split: tuple[float, float, float] = (12, 1, 2)  # P: 13 and 2 subjects; D: one of 13 validates
    spacing_mm: float = 1.0  # D: pixel spacing, after alignment by their masks
    stride: int = 6  # D: pixels between the centres of neighbouring patches
    clip_sd: float = 4.0  # D: T1 is clipped to the training myocardium's mean ± this many SD
    deviations: float = 6.0  # P: lesion is brighter than mean + 6 SD of healthy myocardium
    border_px: int = 0  # P; D: with more, the wall's border counts only beside bright inner pixels
    lesion_share: float = 0.25  # P: fraction of a slice's lesion pixels that makes a patch positive
    flip: float = 0.5  # D: fraction of pairs with a flipped copy, made once for all epochs
    distinct_slices: bool = False  # D: if possible, no two patches of a slice in a batch

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride < 1 or not 0 < self.spacing_mm < float("inf"):
            raise ValueError(
                "siamese_lesion: stride must be at least 1, spacing_mm positive; "
                f"got {self.stride} and {self.spacing_mm}"
            )
        if not self.clip_sd > 0 or self.border_px < 0:
            raise ValueError(
                "siamese_lesion: clip_sd must be positive, border_px >= 0; "
                f"got {self.clip_sd} and {self.border_px}"
            )
        if not 0 <= self.flip <= 1 or not 0 < self.lesion_share <= 1:
            raise ValueError(
                "siamese_lesion: flip must lie in [0, 1], lesion_share in (0, 1]; "
                f"got {self.flip} and {self.lesion_share}"
            )


RECIPE = Recipe()


class ResponseNorm(nn.Module):
    """x / (2 + 1e-4 · mean of x² over five neighbouring channels) ** 0.75, padded with zeros.

    Equal to ``nn.LocalResponseNorm(5, 1e-4, 0.75, 2)`` and four times as fast on a CPU: powers from
    square roots, window sums from shifted additions, and the gradient in closed form.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        normed: Tensor = _ResponseNorm.apply(x)  # type: ignore[no-untyped-call]
        return normed


class _ResponseNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = _sum_neighbours(x * x).mul_(1e-4 / 5).add_(2)
        ctx.save_for_backward(x, scale)
        return _power_minus_075(scale).mul_(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, scale = ctx.saved_tensors
        direct = _power_minus_075(scale).mul_(grad)
        through_scale = _sum_neighbours((direct * x).div_(scale)).mul_(x)
        return direct.sub_(through_scale, alpha=2 * 0.75 * 1e-4 / 5)


def _sum_neighbours(x: Tensor) -> Tensor:
    """Sum over each channel and the two channels on either side of it."""
    out = x.clone()
    for d in (1, 2):
        out[:, d:] += x[:, :-d]
        out[:, :-d] += x[:, d:]
    return out


def _power_minus_075(scale: Tensor) -> Tensor:
    """scale ** -0.75, from square roots."""
    root = scale.rsqrt()
    return root.sqrt().mul_(root)


def _make_layer(number: int, config: Config) -> nn.Sequential:
    """One of the six learnable layers of a branch, with its activation, norm, pooling, dropout."""
    c1, c2, c3, c4 = config.channels

    def norm(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels) if config.norm == "batch" else ResponseNorm()

    def relu() -> nn.Module:
        return nn.ReLU(inplace=True)

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2)

    if number == 1:
        return nn.Sequential(nn.Conv2d(1, c1, 11), relu(), norm(c1), pool())
    if number == 2:
        conv = SameConv2d(c1, c2, 5)
        return nn.Sequential(conv, relu(), norm(c2), pool(), nn.Dropout(config.dropout_conv))
    if number == 3:
        return nn.Sequential(SameConv2d(c2, c3, 3), relu())
    if number == 4:
        conv = SameConv2d(c3, c4, 3)
        return nn.Sequential(conv, relu(), pool(), nn.Dropout(config.dropout_conv))
    if number == 5:
        side = config.patch - 10
        for _ in range(3):
            side = (side - 3) // 2 + 1
        full = nn.Linear(c4 * side * side, config.hidden)
        return nn.Sequential(nn.Flatten(), full, relu(), nn.Dropout(config.dropout_full))
    return nn.Sequential(nn.Linear(config.hidden, config.features))


class SiameseLesion(nn.Module):
    """The two branches and the classifier on top of the T1 branch.

    Example:
        >>> model = SiameseLesion(Config(patch=32)).eval()
        >>> outputs = model(torch.zeros(4, 1, 32, 32), torch.zeros(4, 1, 32, 32))
        >>> {name: tuple(x.shape) for name, x in outputs.items()}
        {'logits': (4, 2), 't1': (4, 128), 'lge': (4, 128)}
    """

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config = config or Config()
        shared = {
            "decoupled": set(),
            "partial": set(config.shared_layers),
            "siamese": set(range(1, 7)),
            "pure": set(range(1, 7)),
        }[config.variant]
        numbers = range(1, 7)
        self.t1 = nn.ModuleDict({_LAYERS[n - 1]: _make_layer(n, config) for n in numbers})
        #: The layers of the LGE branch that are not shared with T1.
        self.lge = nn.ModuleDict(
            {_LAYERS[n - 1]: _make_layer(n, config) for n in numbers if n not in shared}
        )
        wide, narrow = config.classifier
        self.classifier = nn.Sequential(
            nn.Linear(config.features, wide),
            nn.ReLU(inplace=True),
            nn.Linear(wide, narrow),
            nn.ReLU(inplace=True),
            nn.Linear(narrow, config.classes),
        )
        init_glorot(self)

    def forward(self, t1: Tensor, lge: Tensor | None = None) -> dict[str, Tensor]:
        """Classify T1 patches; with LGE patches, return their features as well.

        Args:
            t1: (B, 1, patch, patch).
            lge: same shape; does not change the T1 outputs. Variant ``pure`` ignores it.

        Returns:
            ``logits`` (B, 2), ``t1`` (B, 128) and, with LGE, ``lge`` (B, 128), except for ``pure``.
        """
        patches = {"t1": t1} if lge is None else {"t1": t1, "lge": lge}
        require_images("siamese_lesion", patches, size=self.config.patch)
        features = self._encode(t1, {})  # before LGE, so that dropout is the same without it
        outputs = {"logits": self.classifier(features), "t1": features}
        if lge is not None and self.config.variant != "pure":
            outputs["lge"] = self._encode(lge, self.lge)
        return outputs

    def _encode(self, x: Tensor, own: Mapping[str, nn.Module] | nn.ModuleDict) -> Tensor:
        for name in _LAYERS:
            x = (own if name in own else self.t1)[name](x)
        return x  # (B, features)


def loss(
    outputs: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    config: Config | None = None,
    *,
    group: Any = None,
) -> dict[str, Tensor]:
    """Loss of pairing each T1 patch with its LGE patch, plus classification (equations 1 to 3).

    Args:
        outputs: the model's outputs; without ``lge`` there is no pairing loss.
        batch: ``labels`` (B,), 1 for a lesion.
        config: the model's config; default: as published.
        group: process group whose batches are treated as one; its LGE patches are additional
            candidates.

    Returns:
        ``loss``, ``classification`` and, with LGE, ``pairing``; with a group, shares whose means
        over ranks are those of the whole batch.
    """
    config = config or Config()
    require_batch("siamese_lesion", batch, "labels")
    logits, labels = outputs["logits"], batch["labels"]
    require_labels("siamese_lesion", "labels", labels, logits.shape[:1], config.classes)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    entropies = F.cross_entropy(logits, labels.long(), reduction="none")
    parts = {"classification": mean(entropies, group)}
    if "lge" in outputs:
        parts["pairing"] = nt_xent(
            outputs["t1"], outputs["lge"], temperature=config.temperature, group=group
        )
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}
