"""Myocardium and its scar in LGE images: two networks trained as one.

Xing, Wang, Bilchick, Patel, Zhang: Joint Deep Learning for Improved Myocardial Scar Detection from
Cardiac MRI (2022), arXiv:2211.06247.

In: LGE slices scaled to [0, 1]. Out: logits of two classes, background and foreground, for
the myocardium and for the scar. The scar network sees the image times the probability that the
myocardium network gives each pixel, so its loss trains both.

Where the paper is silent or contradicts itself:

- The minus before the Dice term in its loss would reward bad overlap; it is read as a plus.
- The weight w of that term is not given: 1. Both tasks have a softmax over two classes.
- Cross entropy is the mean over pixels, not a sum; λ and the weight decays were tuned for a loss
  whose scale is not stated.
- L2 regularisation is left to the optimiser, as weight decay.
- The dropout that was tuned is the transformer's; attention itself has none.
- The ResNet as well as the transformer starts from ImageNet (``load_imagenet``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from cmrfast.losses import dice_ce_loss
from cmrfast.models import recipe, transunet
from cmrfast.models._check import require_batch, require_images, require_labels, require_option
from cmrfast.models.transunet import Decoder, Encoder, TransUNet
from cmrfast.models.transunet_weights import load_imagenet

Variant = Literal["jdl", "two_step", "direct", "mtl"]


@dataclass(frozen=True)
class Config(transunet.Config):
    """The backbone's fields, and P: the paper, with its section; D: our decision."""

    dropout: float = 0.39  # P 3.1
    variant: Variant = "jdl"  # P 3.1
    detach_mask: bool = False  # P 2.2: the scar's loss trains the myocardium network too
    myocardium_weight: float = 1.02  # P 3.1: λ
    dice_weight: float = 1.0  # D: w

    def __post_init__(self) -> None:
        super().__post_init__()
        require_option("joint_scar", "variant", self.variant, get_args(Variant))
        require_option("joint_scar", "classes", self.classes, (2,))


@dataclass(frozen=True)
class Recipe(recipe.Recipe):
    """P: the paper, with its section; D: our decision."""

    lr: float = 4.73e-4  # P 3.1, tuned for jdl; constant
    batch: int = 40  # P 3.1
    epochs: int = 500  # P 3.1; D: the last one is used
    weight_decay: float = 5.58e-6  # P 3.1: β of both networks
    split: tuple[float, float, float] = (126, 14, 28)  # P: 140 and 28; D: a tenth validates
    # P: these four kinds of change; D: their ranges, and every slice is changed each time.
    rotate_deg: float = 20.0  # D: either way
    scale: tuple[float, float] = (0.9, 1.1)  # D: one factor for both axes
    translate_share: float = 0.1  # D: of a side, either way, each axis for itself
    shear_deg: float = 10.0  # D: either way
    threshold: float = 0.5  # D: a mask is where its probability is larger


RECIPE = Recipe()


class JointScar(nn.Module):
    """The paper's network (``jdl``) and the three it is compared with.

    ``two_step``: the same two networks apart; the scar's is trained on the image inside the drawn
    myocardium. ``direct``: the scar network alone, on the whole image. ``mtl``: one encoder with
    a decoder for each task.

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
            myocardium: (B, H, W), 0 or 1: what ``two_step`` masks its scar images with; without
                it, its own prediction. The other variants do not look at it.

        Returns:
            Logits ``myocardium`` and ``scar``, (B, 2, H, W) each; ``direct`` gives the scar alone.
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

    def load_imagenet(self, path: str | Path) -> list[str]:
        """Read ``R50+ViT-B_16.npz`` into every encoder; decoders stay as they are.

        Args:
            path: of the file; it is only read, never unpickled.

        Returns:
            Names of the file's arrays that have no place in this network.
        """
        encoders = [m.state_dict() for m in self.modules() if isinstance(m, Encoder)]
        return load_imagenet(self.config, encoders, path)


def loss(
    outputs: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    config: Config | None = None,
    *,
    group: Any = None,
) -> dict[str, Tensor]:
    """λ · the myocardium's loss + the scar's (equation 1 without its weight decays).

    Each is ``joint_scar_loss``: cross entropy + w · (1 - Dice of each image's foreground).

    Args:
        outputs: of the model.
        batch: ``myocardium`` and ``scar``, (B, H, W) each, 0 or 1; ``direct`` needs the scar alone.
        config: of the model; default as published.
        group: process group to sum over.

    Returns:
        ``loss`` and its parts ``scar`` and, of variants but ``direct``, ``myocardium``.
    """
    config = config or Config()
    require_batch("joint_scar", batch, *outputs)
    parts = {}
    for name, logits in outputs.items():
        shape = (logits.shape[0], *logits.shape[2:])
        require_labels("joint_scar", name, batch[name], shape, 2)
        parts[name] = dice_ce_loss(logits, batch[name], dice_weight=config.dice_weight, group=group)
    total = parts["scar"]
    if "myocardium" in parts:
        total = total + config.myocardium_weight * parts["myocardium"]
    return {"loss": total, **parts}
