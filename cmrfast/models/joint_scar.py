"""Segmentation of the myocardium and its scar in LGE images: two networks trained jointly.

Xing, Wang, Bilchick, Patel, Zhang: Joint Deep Learning for Improved Myocardial Scar Detection from
Cardiac MRI (2022), arXiv:2211.06247.

Input: LGE slices scaled to [0, 1]. Output: logits of two classes, background and foreground, for
the myocardium and for the scar. The scar network sees the image multiplied by the myocardium
network's foreground probability, so its loss trains both networks.

Where the paper is silent or contradicts itself:

- The minus sign before the Dice term of the loss would reward poor overlap; it is read as a plus.
- The weight w of that term is not given; we use 1. Both tasks use a softmax over two classes.
- Cross entropy is the mean over pixels, not the sum; λ and the weight decays were tuned for a loss
  whose scale is not stated.
- L2 regularisation is the optimiser's weight decay.
- The tuned dropout is that of the transformer; attention itself has none.
- The ResNet, like the transformer, starts from ImageNet weights (``Recipe.pretrained``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from cmrfast.losses import dice_ce_loss
from cmrfast.models import recipe, transunet
from cmrfast.models._check import (
    require_batch,
    require_images,
    require_labels,
    require_option,
    require_shares,
)
from cmrfast.models.transunet import Decoder, Encoder, TransUNet
from cmrfast.models.transunet_weights import load_imagenet, load_official_encoder

Variant = Literal["jdl", "two_step", "direct", "mtl"]
DiceOver = Literal["image", "batch"]


@dataclass(frozen=True)
class Config(transunet.Config):
    """The backbone's fields, and P: the paper, with its section; D: our decision."""

    dropout: float = 0.39  # P 3.1
    variant: Variant = "jdl"  # P 3.1
    detach_mask: bool = False  # P 2.2: the scar loss also trains the myocardium network
    myocardium_weight: float = 1.02  # P 3.1: λ
    dice_weight: float = 1.0  # D: weight of the Dice term, w
    dice_over: DiceOver = "image"  # P 2.2: a score per image; batch: one of all images together

    def __post_init__(self) -> None:
        super().__post_init__()
        require_option("joint_scar", "variant", self.variant, get_args(Variant))
        require_option("joint_scar", "classes", self.classes, (2,))
        require_option("joint_scar", "dice_over", self.dice_over, get_args(DiceOver))


@dataclass(frozen=True)
class Recipe(recipe.Recipe):
    """P: the paper, with its section; D: our decision.

    Args:
        weight_decay: β_M of the paper, of the myocardium network and of the encoder of ``mtl``.
        weight_decay_scar: β_S, of the scar network; None takes β_M.
        pretrained: file of public weights that the encoders start from; see ``load_pretrained``.
            None starts from random weights.
    """

    lr: float = 4.73e-4  # P 3.1, tuned for jdl; constant
    batch: int = 40  # P 3.1
    epochs: int = 500  # P 3.1; D: the last epoch is used
    weight_decay: float = 5.58e-6  # P 3.1
    weight_decay_scar: float | None = None  # P 3.1: the same for both networks
    split: tuple[float, float, float] = (126, 14, 28)  # P: 140 and 28; D: a tenth validates
    # P: these four kinds of augmentation; D: their ranges, and every slice is always augmented.
    rotate_deg: float = 20.0  # D: in either direction
    scale: tuple[float, float] = (0.9, 1.1)  # D: one factor for both axes
    translate_share: float = 0.1  # D: fraction of a side, in either direction, per axis
    shear_deg: float = 10.0  # D: in either direction
    threshold: float = 0.5  # D: foreground where the probability is larger
    pretrained: str | None = None  # P 3.1: ImageNet-21k, which has to be downloaded

    def __post_init__(self) -> None:
        super().__post_init__()
        require_shares("joint_scar", threshold=self.threshold)
        if self.weight_decay_scar is not None and self.weight_decay_scar < 0:
            raise ValueError(
                f"joint_scar: weight_decay_scar must be >= 0; got {self.weight_decay_scar}"
            )

    def files(self) -> dict[str, Path]:
        """The file of weights, where there is one."""
        return {"pretrained": Path(self.pretrained)} if self.pretrained else {}

    def initialise(self, network: nn.Module) -> None:
        """Load the file of weights, where there is one."""
        if self.pretrained and isinstance(network, JointScar):
            network.load_pretrained(self.pretrained)

    def optimiser(self, name: str, network: nn.Module) -> torch.optim.Optimizer:
        """Adam; the scar network and all others each have a weight decay of their own."""
        scar = set(network.get_submodule("scar").parameters())
        others = [weight for weight in network.parameters() if weight not in scar]
        decay = self.weight_decay if self.weight_decay_scar is None else self.weight_decay_scar
        groups = [
            {"params": others, "weight_decay": self.weight_decay},
            {"params": list(network.get_submodule("scar").parameters()), "weight_decay": decay},
        ]
        return torch.optim.Adam([g for g in groups if g["params"]], self.lr, fused=True)


RECIPE = Recipe()


class JointScar(nn.Module):
    """The paper's network (``jdl``) and the three baselines it is compared with.

    ``two_step``: the same two networks, trained separately; the scar network is trained on the
    image inside the annotated myocardium. ``direct``: the scar network alone, on the whole image.
    ``mtl``: one encoder with a decoder for each task.

    Example:
        >>> import torch
        >>> config = Config(image=32, root=32, units=(1, 1, 1), width=8, depth=1, heads=2)
        >>> outputs = JointScar(config).eval()(torch.zeros(2, 1, 32, 32))
        >>> {name: tuple(x.shape) for name, x in outputs.items()}
        {'myocardium': (2, 2, 32, 32), 'scar': (2, 2, 32, 32)}
    """

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config = config or Config()
        if config.variant == "mtl":
            self.encoder = Encoder(config)
            self.myocardium: nn.Module = Decoder(config)
            self.scar: nn.Module = Decoder(config)
        else:
            if config.variant != "direct":
                self.myocardium = TransUNet(config)
            self.scar = TransUNet(config)

    def forward(self, images: Tensor, myocardium: Tensor | None = None) -> dict[str, Tensor]:
        """Segment LGE slices.

        Args:
            images: (B, 1, H, W).
            myocardium: (B, H, W), 0 or 1: the mask that ``two_step`` applies to the images of the
                scar network; default: its own prediction. The other variants ignore it.

        Returns:
            Logits ``myocardium`` and ``scar``, (B, 2, H, W) each; for ``direct`` only ``scar``.
        """
        config = self.config
        require_images("joint_scar", {"images": images}, size=config.image)
        if config.variant == "direct":
            return {"scar": self.scar(images)}
        if config.variant == "mtl":
            encoded = self.encoder(images)
            return {"myocardium": self.myocardium(*encoded), "scar": self.scar(*encoded)}

        logits = self.myocardium(images)
        if config.variant == "jdl":
            mask = logits.softmax(1)[:, 1:]
            if config.detach_mask:
                mask = mask.detach()
        elif myocardium is None:
            mask = logits[:, 1:] > logits[:, :1]
        else:
            shape = (images.shape[0], *images.shape[2:])
            require_labels("joint_scar", "myocardium", myocardium, shape, 2)
            mask = myocardium[:, None]
        return {"myocardium": logits, "scar": self.scar(images * mask)}

    def load_pretrained(self, path: str | Path) -> None:
        """Load public weights into every encoder; decoders are not changed.

        Args:
            path: ``R50+ViT-B_16.npz`` of ImageNet-21k, or a state dict of the TransUNet authors'
                code (``.pth``), whose decoder is left out.
        """
        encoders = [m.state_dict() for m in self.modules() if isinstance(m, Encoder)]
        if Path(path).suffix == ".npz":
            load_imagenet(self.config, encoders, path)
        else:
            load_official_encoder(self.config, encoders, path)


def loss(
    outputs: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    config: Config | None = None,
    *,
    group: Any = None,
) -> dict[str, Tensor]:
    """λ · myocardium loss + scar loss (equation 1 without its weight decays).

    Each loss is cross entropy + w · (1 - Dice of the foreground), of each image as in
    ``joint_scar_loss``, or of the batch.

    Args:
        outputs: the model's outputs.
        batch: ``myocardium`` and ``scar``, (B, H, W) each, 0 or 1; ``direct`` needs only ``scar``.
        config: the model's config; default: as published.
        group: process group to sum over.

    Returns:
        ``loss`` and its parts ``scar`` and, except for ``direct``, ``myocardium``.
    """
    config = config or Config()
    require_batch("joint_scar", batch, *outputs)
    parts = {}
    for name, logits in outputs.items():
        shape = (logits.shape[0], *logits.shape[2:])
        require_labels("joint_scar", name, batch[name], shape, 2)
        parts[name] = dice_ce_loss(
            logits,
            batch[name],
            dice_weight=config.dice_weight,
            over=config.dice_over,
            group=group,
        )
    total = parts["scar"]
    if "myocardium" in parts:
        total = total + config.myocardium_weight * parts["myocardium"]
    return {"loss": total, **parts}
