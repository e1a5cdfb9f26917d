"""Lesion in T1 maps, learnt with the help of LGE that the test no longer needs.

Golub, Santiago, Baleia, Lopes, Ferreira, Nunes, Nascimento: Convolutional Siamese Networks for
Myocardial Lesion Classification in T1 Maps (2022), and for the layers of a branch Dey and others:
SigNet, arXiv:1707.02131.

In: patches of a T1 map and, in training, the same patches of the LGE image. Out: two class logits
from T1 alone, and the features by which a T1 patch finds its LGE patch.

Where the paper is silent or contradicts itself:

- Its patch size is not given; 64 pixels of 1 mm make its share of positive patches.
- "Half" of the layers is shared in ``partial``: the later half. Contrast, in which the two images
  differ, is what early layers see, while the features must lie in one space.
- The last layer of a branch is linear (SigNet's has a ReLU), so that cosines can be negative.
- The classifier's widths are ours. It reads the feature as it is, not scaled to length one.
- The factor y_i behind the logarithms of equations 1 and 2 is read as the index of the target.
- Response normalisation divides alpha by the window, as PyTorch's does.
- ``norm="batch"`` puts batch norm in the place of response normalisation, as SigNet's code does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrfast.models import recipe
from cmrfast.models._check import require_batch, require_images, require_labels, require_option
from cmrfast.models.blocks import SameConv2d, init_glorot
from cmrfast.ops import nt_xent
from cmrfast.ops._collectives import share_of_mean

Variant = Literal["decoupled", "siamese", "partial", "pure"]
Norm = Literal["lrn", "batch"]

_LAYERS = ("conv1", "conv2", "conv3", "conv4", "fc5", "fc6")


@dataclass(frozen=True)
class Config:
    """P: the paper, with its section; S: SigNet, table 1; D: our decision."""

    variant: Variant = "decoupled"  # P 3: the best of the four
    patch: int = 64  # D: side in pixels; at least 32
    shared_layers: tuple[int, ...] = (4, 5, 6)  # D: of 1 to 6, shared in variant partial
    norm: Norm = "lrn"  # S
    channels: tuple[int, int, int, int] = (96, 256, 384, 256)  # S
    hidden: int = 1024  # S
    features: int = 128  # P 2.2
    classifier: tuple[int, int] = (64, 32)  # D
    classes: int = 2  # P 2.2
    dropout_conv: float = 0.3  # S
    dropout_full: float = 0.5  # S
    temperature: float = 0.07  # P 2.2

    def __post_init__(self) -> None:
        require_option("siamese_lesion", "variant", self.variant, get_args(Variant))
        require_option("siamese_lesion", "norm", self.norm, get_args(Norm))
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
    epochs: int = 300  # P; D: the last one is used
    drop_last: bool = True  # D: so that a batch has always as many negatives
    split: tuple[float, float, float] = (12, 1, 2)  # P: 13 and 2 subjects; D: one validates
    spacing_mm: float = 1.0  # D: of both images' pixels, after alignment on the masks
    stride: int = 6  # D: pixels between the centres of neighbouring patches
    deviations: float = 6.0  # P: lesion is brighter than healthy muscle's mean + 6 SD
    lesion_share: float = 0.25  # P: of a slice's lesion pixels make a patch positive
    flip: float = 0.5  # D: share of pairs that have a mirrored copy, made once for all epochs
    distinct_slices: bool = False  # D: True: no two patches of a slice in a batch, if possible

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride < 1 or not 0 < self.spacing_mm < float("inf"):
            raise ValueError(
                "siamese_lesion: stride must be at least 1, spacing_mm positive; "
                f"got {self.stride} and {self.spacing_mm}"
            )
        if not 0 <= self.flip <= 1 or not 0 < self.lesion_share <= 1:
            raise ValueError(
                "siamese_lesion: flip must lie in [0, 1], lesion_share in (0, 1]; "
                f"got {self.flip} and {self.lesion_share}"
            )


RECIPE = Recipe()


class ResponseNorm(nn.Module):
    """x / (2 + 1e-4 · mean of x² over five neighbouring channels) ** 0.75; outside counts as 0.

    The numbers of ``nn.LocalResponseNorm(5, 1e-4, 0.75, 2)``, four times as fast on a CPU: powers
    from roots, the window by shifted additions, and the gradient in closed form.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        normed: Tensor = _ResponseNorm.apply(x)  # type: ignore[no-untyped-call]
        return normed


class _ResponseNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = _over_neighbours(x * x).mul_(1e-4 / 5).add_(2)
        ctx.save_for_backward(x, scale)
        return _three_quarters(scale).mul_(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, scale = ctx.saved_tensors
        direct = _three_quarters(scale).mul_(grad)
        through_scale = _over_neighbours((direct * x).div_(scale)).mul_(x)
        return direct.sub_(through_scale, alpha=2 * 0.75 * 1e-4 / 5)


def _over_neighbours(x: Tensor) -> Tensor:
    """Sum over each channel and the two on both sides of it."""
    out = x.clone()
    for d in (1, 2):
        out[:, d:] += x[:, :-d]
        out[:, :-d] += x[:, d:]
    return out


def _three_quarters(scale: Tensor) -> Tensor:
    """scale ** -0.75."""
    root = scale.rsqrt()
    return root.sqrt().mul_(root)


def _layer(number: int, config: Config) -> nn.Sequential:
    """One of the six learnable layers of a branch, with what follows it."""
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
    """The two branches and the classifier behind the T1 branch.

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
        self.t1 = nn.ModuleDict({_LAYERS[n - 1]: _layer(n, config) for n in numbers})
        #: The LGE branch's own layers; the others are T1's.
        self.lge = nn.ModuleDict(
            {_LAYERS[n - 1]: _layer(n, config) for n in numbers if n not in shared}
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
        """Classify T1 patches; with LGE patches give their features as well.

        Args:
            t1: (B, 1, patch, patch).
            lge: the same; changes no T1 result. Variant ``pure`` does not look at it.

        Returns:
            ``logits`` (B, 2), ``t1`` (B, 128) and, of variants but ``pure``, ``lge`` (B, 128).
        """
        given = {"t1": t1} if lge is None else {"t1": t1, "lge": lge}
        require_images("siamese_lesion", given, size=self.config.patch)
        feature = self._encode(t1, {})  # first, so that dropout draws the same with and without LGE
        outputs = {"logits": self.classifier(feature), "t1": feature}
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
    """Pairing of each T1 patch with its own LGE patch, plus classification (equations 1 to 3).

    Args:
        outputs: of the model; without ``lge`` the pairing is left out.
        batch: ``labels`` (B,), 1 for a lesion.
        config: of the model; default as published.
        group: process group whose LGE patches are further candidates.

    Returns:
        ``loss``, ``classification`` and, with LGE, ``pairing``.
    """
    config = config or Config()
    require_batch("siamese_lesion", batch, "labels")
    logits, labels = outputs["logits"], batch["labels"]
    require_labels("siamese_lesion", "labels", labels, logits.shape[:1], config.classes)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    share = 1.0 if group is None else share_of_mean(logits, group)
    parts = {"classification": share * F.cross_entropy(logits, labels.long())}
    if "lge" in outputs:
        parts["pairing"] = nt_xent(
            outputs["t1"], outputs["lge"], temperature=config.temperature, group=group
        )
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}
