"""Segmentation of LGE images against an adversary, with masks borrowed from other sequences.

Chen, Li, Zhang, Menze: Adversarial Convolutional Networks with Weak Domain-Transfer for
Multi-sequence Cardiac MR Images Segmentation (2020), doi:10.1007/978-3-030-39074-7_34.

In: a slice of any sequence. Out: four-class logits (background, LV, myocardium, RV). In training
also LGE slices without annotation, each with the mask of a bSSFP or T2 slice of its place.

Where the paper is silent or differs from its authors' code:

- The shapes of both networks are the code's; the residual blocks that the paper gives the
  discriminator are not in the code (``disc="residual"``: two convolutions and a skip a level).
- Weak transfer is the paper's: pseudo masks enter by a loss of their own of weight 0.1. The code
  only adds them to the data.
- The generator's adversarial term is the code's, which does not saturate; ``gan="minmax"`` is the
  paper's equation 6.
- One step of the generator follows each of the discriminator, as in algorithm 1; the code makes
  two (``g_steps=2``). As in the code, the latter is two updates: true masks, then predictions.
- While the generator learns, the discriminator's batch norms use the batch and remember nothing.
- Variant ``u`` keeps the cross entropy: its "Dice loss" is the paper's mixture (equation 2).
- Without pseudo masks the generator's loss is the individual-domain loss, at full weight.
- Slices are normalised one by one (the code: a volume at once), keep their own spacing (the code:
  480 pixels), and are cropped about what is annotated.
- Changed copies of the crops are drawn anew in every epoch.
- No patient who trains is tested on. The paper also learns from borrowed masks on LGE images of
  the patients whose LGE masks it is then tested on.
- As in the code, only the middle of a slice is segmented: further out, where no crop of an LGE
  slice ever reached, the network takes other bright or dark parts for the heart.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from cmrfast.losses import adversarial_segmentation_loss
from cmrfast.models import recipe
from cmrfast.models._check import require_batch, require_images, require_labels, require_option
from cmrfast.models.blocks import SameConv2d, init_glorot
from cmrfast.models.kernels import same_conv2d

Variant = Literal["u_a_t", "u_a", "u"]
Gan = Literal["nonsaturating", "minmax"]
Disc = Literal["plain", "residual"]
SliceMap = Literal["paper", "code"]
OptimizerG = Literal["adam", "rmsprop"]


@dataclass(frozen=True)
class Config:
    """P: the paper, with its section; C: the authors' code; D: our decision."""

    variant: Variant = "u_a_t"  # P 3.1: U+A+D+T, U+A+D, U+D
    gan: Gan = "nonsaturating"  # C
    disc: Disc = "plain"  # C
    size: int = 224  # P 2: side of the discriminator's images; the generator takes any
    width: int = 32  # C: channels of the generator
    dilations: tuple[int, int, int] = (2, 4, 8)  # C: at 1/2, 1/4, 1/8 of the size; even
    disc_widths: tuple[int, ...] = (16, 32, 64, 128)  # C
    disc_l2: float = 0.01  # C: weight of the sum of squares of the discriminator's kernels
    classes: int = 4  # P 2: background, LV, myocardium, RV
    individual_weight: float = 0.9  # P 2: lambda of equation 4; the rest is transfer
    adversarial_weight: float = 1.0  # P 2: equation 6
    g_steps: int = 1  # P, algorithm 1

    def __post_init__(self) -> None:
        require_option("adversarial_transfer", "variant", self.variant, get_args(Variant))
        require_option("adversarial_transfer", "gan", self.gan, get_args(Gan))
        require_option("adversarial_transfer", "disc", self.disc, get_args(Disc))
        if any(d < 2 or d % 2 for d in self.dilations):
            raise ValueError(f"adversarial_transfer: dilations must be even; got {self.dilations}")
        if self.g_steps < 1:
            raise ValueError(
                f"adversarial_transfer: g_steps must be at least 1; got {self.g_steps}"
            )
        halved = 2 ** len(self.disc_widths)
        if self.size < halved or self.size % halved:
            raise ValueError(
                f"adversarial_transfer: size must be a multiple of {halved}; got {self.size}"
            )


@dataclass(frozen=True)
class Recipe(recipe.Recipe):
    """P: the paper, with its section; C: the authors' code; D: our decision.

    Args:
        optimizer_g: of the generator: adam, or rmsprop with gradients clipped at 1.
        lr_decay: the rate at optimiser step t is lr / (1 + lr_decay · t).
        pretrain_epochs: of the epochs, the first ones, in which the generator learns alone.
        lge_masks: training patients whose LGE masks are learned from, where all of the split's
            train; of fewer patients in proportion, one at least.
        slice_map: onto which LGE slice a mask is carried, see ``transfer_slices``.
        crop_shift_px: how far four of the five crops of a slice lie off the fifth, at most.
        copies: changed samples besides each crop as it is.
        rotate_deg: largest angle of a copy, either way.
        shear_rad: largest shear angle, either way.
        zoom: smallest and largest factor of a copy's field of view, each axis its own.
        view_px: side of the square about the middle of a slice that is segmented; 0 for all.
    """

    lr: float = 2e-4  # P 3
    batch: int = 16  # P 3: of annotated slices, and as many with borrowed masks
    epochs: int = 50  # C: 30 + 20
    optimizer_g: OptimizerG = "adam"  # P 3; the code has rmsprop in the adversarial phase
    lr_decay: float = 1e-8  # P 3
    pretrain_epochs: int = 30  # C
    split: tuple[float, float, float] = (33, 2, 10)  # P 3: patients 1-35 but 4 and 5, these, 36-45
    lge_masks: int = 5  # P 3
    slice_map: SliceMap = "paper"  # P 2; the code rounds, and is one slice further
    crop_shift_px: int = 16  # D; P 3: five crops at different positions
    copies: int = 1  # D
    rotate_deg: float = 15.0  # C
    shear_rad: float = 0.1  # C
    zoom: tuple[float, float] = (0.8, 1.2)  # C
    view_px: int = 256  # C: 224 or 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require_option("adversarial_transfer", "slice_map", self.slice_map, get_args(SliceMap))
        known = get_args(OptimizerG)
        require_option("adversarial_transfer", "optimizer_g", self.optimizer_g, known)
        for name in ("pretrain_epochs", "lge_masks", "crop_shift_px", "copies", "view_px"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"adversarial_transfer: {name} must be >= 0; got {getattr(self, name)}"
                )
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError(f"adversarial_transfer: zoom must be 0 < low <= high; got {self.zoom}")

    def optimiser(self, network: str, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """As in every recipe, except for the generator."""
        if self.optimizer_g == "adam" or network != "generator":
            return super().optimiser(network, weights)
        weights = list(weights)
        rmsprop = torch.optim.RMSprop(weights, self.lr, alpha=0.9)
        rmsprop.register_step_pre_hook(lambda *_: nn.utils.clip_grad_value_(weights, 1.0))
        return rmsprop

    def step_options(self, epoch: int) -> dict[str, Any]:
        """The generator learns alone in the first epochs."""
        return {"adversarial": epoch >= self.pretrain_epochs}

    def lr_at(self, epoch: int, step: int) -> float:
        """The learning rate of an optimiser step: both count from 0, the step over all epochs."""
        return super().lr_at(epoch, step) / (1 + self.lr_decay * step)


RECIPE = Recipe()


class Pair(nn.Module):
    """Two convolutions, each with its ReLU."""

    def __init__(self, channels_in: int, channels_out: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = SameConv2d(channels_in, channels_out, 3, dilation=dilation)
        self.second = SameConv2d(channels_out, channels_out, 3, dilation=dilation)

    def forward(self, x: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Features of x, or of coarse features and x.

        Args:
            x: (B, C, H, W).
            coarse: (B, channels_in - C, H / 2, W / 2), read as if repeated to H x W before x.

        Returns:
            (B, channels_out, H, W).
        """
        x = F.relu(_conv_joined(self.first, x, coarse), inplace=True)
        return F.relu(self.second(x), inplace=True)


class Residual(Pair):
    """Two dilated convolutions beside one of a single pixel, each with its ReLU; their sum."""

    def __init__(self, channels_in: int, channels_out: int, dilation: int) -> None:
        super().__init__(channels_in, channels_out, dilation)
        self.skip = SameConv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, coarse: Tensor | None = None) -> Tensor:
        """As of ``Pair``."""
        skip = F.relu(_conv_joined(self.skip, x, coarse), inplace=True)
        return super().forward(x, coarse) + skip


def _conv_joined(conv: SameConv2d, x: Tensor, coarse: Tensor | None) -> Tensor:
    """The convolution of [coarse, each pixel repeated to 2 x 2, and x], not joined.

    Convolution is linear, so each part has its own; where taps fall on whole coarse pixels, that of
    the repeated ones needs only the coarse, which is a quarter of the work.
    """
    if coarse is None:
        found: Tensor = conv(x)
        return found
    channels, d = coarse.shape[1], conv.dilation[0]
    of_coarse, of_x = conv.weight[:, :channels], conv.weight[:, channels:]
    if d % 2 == 0 or conv.kernel_size == (1, 1):
        part = _doubled(same_conv2d(coarse, of_coarse, dilation=max(d // 2, 1)))
    else:
        part = same_conv2d(_doubled(coarse), of_coarse)
    return same_conv2d(x, of_x, conv.bias, dilation=d).add_(part)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class Generator(nn.Module):
    """The dilated residual U-Net that segments."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        w, (d2, d3, d4) = config.width, config.dilations
        self.first = Pair(1, w)
        self.down2 = Residual(w, w, d2)
        self.down3 = Residual(w, w, d3)
        self.bottom = Residual(w, w, d4)
        self.up3 = Residual(2 * w, w, d3)
        self.up2 = Residual(2 * w, w, d2)
        self.last = Pair(2 * w, w)
        self.head = nn.Conv2d(w, config.classes, 1)
        init_glorot(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W), H and W multiples of 8, to logits (B, classes, H, W)."""
        require_images("adversarial_transfer", {"images": images}, multiple=8)
        x1 = self.first(images)
        x2 = self.down2(F.max_pool2d(x1, 2))  # H / 2
        x3 = self.down3(F.max_pool2d(x2, 2))  # H / 4
        x = self.bottom(F.max_pool2d(x3, 2))  # H / 8
        x = self.up3(x3, x)  # H / 4
        x = self.up2(x2, x)  # H / 2
        x = self.last(x1, x)  # H
        logits: Tensor = self.head(x)
        return logits


class Discriminator(nn.Module):
    """Whether a mask is an expert's for its image; it sees both."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.size, self.classes = config.size, config.classes
        levels: list[nn.Module] = []
        for a, b in pairwise((config.classes + 1, *config.disc_widths)):
            norm = nn.BatchNorm2d(b, eps=1e-3, momentum=0.01) if levels else nn.Identity()
            conv = _Skipped(a, b) if config.disc == "residual" else SameConv2d(a, b, 5)
            levels.append(
                nn.Sequential(conv, nn.MaxPool2d(2), norm, nn.LeakyReLU(0.3, inplace=True))
            )
        self.levels = nn.Sequential(*levels)
        side = config.size // 2 ** len(levels)
        self.head = nn.Linear(config.disc_widths[-1] * side**2, 1)
        init_glorot(self)

    def forward(self, masks: Tensor, images: Tensor) -> Tensor:
        """Masks or probabilities (B, classes, H, W) and images (B, 1, H, W) to logits (B,)."""
        require_images("adversarial_transfer", {"images": images}, size=self.size)
        wanted = (images.shape[0], self.classes, *images.shape[2:])
        if tuple(masks.shape) != wanted:
            raise ValueError(
                f"adversarial_transfer: masks must be {wanted}; got {tuple(masks.shape)}"
            )
        x = self.levels(torch.cat((masks, images), 1))  # (B, width, H / 16, W / 16)
        logits: Tensor = self.head(x.flatten(1)).squeeze(1)
        return logits

    def kernels_squared(self) -> Tensor:
        """The sum of squares of all convolution kernels."""
        kernels = [m.weight for m in self.modules() if isinstance(m, nn.Conv2d)]
        return torch.stack([k.square().sum() for k in kernels]).sum()


class _Skipped(nn.Module):
    """A level's convolution of the residual discriminator."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            SameConv2d(channels_in, channels_out, 5),
            nn.LeakyReLU(0.3, inplace=True),
            SameConv2d(channels_out, channels_out, 5),
        )
        self.skip = SameConv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.main(x) + self.skip(x)
        return total


class AdversarialTransfer(nn.Module):
    """The generator and, but for variant ``u``, the discriminator.

    Example:
        >>> model = AdversarialTransfer(Config(size=32)).eval()
        >>> model(torch.zeros(2, 1, 32, 32))["logits"].shape
        torch.Size([2, 4, 32, 32])
    """

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config = config or Config()
        self.generator = Generator(config)
        if config.variant != "u":
            self.discriminator = Discriminator(config)

    def forward(self, images: Tensor, pseudo_images: Tensor | None = None) -> dict[str, Tensor]:
        """Segment slices.

        Args:
            images: (B, 1, H, W), H and W multiples of 8.
            pseudo_images: (N, 1, H, W), LGE slices whose masks are borrowed.

        Returns:
            ``logits`` (B, 4, H, W) and, of pseudo images, ``pseudo_logits`` (N, 4, H, W).
        """
        outputs = {"logits": self.generator(images)}
        if pseudo_images is not None:
            outputs["pseudo_logits"] = self.generator(pseudo_images)
        return outputs


def loss(
    outputs: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    config: Config | None = None,
    *,
    group: Any = None,
) -> dict[str, Tensor]:
    """The generator's segmentation loss (equations 2 to 4), without an adversary.

    Args:
        outputs: of the model.
        batch: ``labels`` (B, H, W) and, with ``pseudo_logits``, ``pseudo_labels`` (N, H, W).
        config: of the model; default as published.
        group: process group whose batches count as one.

    Returns:
        ``loss``, ``individual`` and, with pseudo images, ``transfer``.
    """
    config = config or Config()
    require_batch("adversarial_transfer", batch, "labels")
    individual = adversarial_segmentation_loss(outputs["logits"], batch["labels"], group=group)
    if "pseudo_logits" not in outputs:
        return {"loss": individual, "individual": individual}
    require_batch("adversarial_transfer", batch, "pseudo_labels")
    transfer = adversarial_segmentation_loss(
        outputs["pseudo_logits"], batch["pseudo_labels"], group=group
    )
    total = config.individual_weight * individual + (1 - config.individual_weight) * transfer
    return {"loss": total, "individual": individual, "transfer": transfer}


def step(
    model: AdversarialTransfer,
    batch: Mapping[str, Tensor],
    optimisers: Mapping[str, torch.optim.Optimizer],
    *,
    adversarial: bool = True,
    group: Any = None,
    average: Callable[[Iterable[Tensor]], None] | None = None,
) -> dict[str, Tensor]:
    """One iteration of algorithm 1: the generator alone, or the discriminator, then the generator.

    Args:
        model: in training mode.
        batch: ``images`` (B, 1, H, W) and ``labels`` (B, H, W); in adversarial steps of variant
            ``u_a_t`` also ``pseudo_images`` (N, 1, H, W) and ``pseudo_labels`` (N, H, W).
        optimisers: ``generator`` and, for adversarial steps, ``discriminator``.
        adversarial: False in the first phase of the algorithm. Variant ``u`` has no other.
        group: process group whose batches count as one in the segmentation loss.
        average: replaces gradients by their means over the processes of that group.

    Returns:
        The losses before their updates, detached: those of ``loss``, ``loss`` being the
        generator's total, and of adversarial steps ``adversarial`` and ``discriminator``.
    """
    config, generator = model.config, model.generator
    require_batch("adversarial_transfer", batch, "images", "labels")
    if not adversarial or config.variant == "u":
        parts = loss({"logits": generator(batch["images"])}, batch, config, group=group)
        _update(optimisers["generator"], parts["loss"], average)
        return {name: part.detach() for name, part in parts.items()}

    images, labels = batch["images"], batch["labels"]
    if config.variant == "u_a_t":
        require_batch("adversarial_transfer", batch, "pseudo_images", "pseudo_labels")
        images = torch.cat((images, batch["pseudo_images"]))
        labels = torch.cat((labels, batch["pseudo_labels"]))
    shape = (images.shape[0], *images.shape[2:])
    require_labels("adversarial_transfer", "labels", labels, shape, config.classes)

    # The discriminator's update needs the generator's predictions and leaves the generator as it
    # is: the same forward pass serves the generator's first update.
    logits = generator(images)
    discriminator = _learn_to_tell(
        model, optimisers["discriminator"], images, labels, logits, average
    )
    for repeat in range(config.g_steps):
        if repeat:
            logits = generator(images)
        with _frozen(model.discriminator):
            scores = model.discriminator(logits.softmax(1), images)
        count = batch["images"].shape[0]
        outputs = {"logits": logits[:count]}
        if config.variant == "u_a_t":
            outputs["pseudo_logits"] = logits[count:]
        parts = loss(outputs, batch, config, group=group)
        parts["adversarial"] = deceive(scores, config.gan)
        parts["loss"] = parts["loss"] + config.adversarial_weight * parts["adversarial"]
        _update(optimisers["generator"], parts["loss"], average)
    parts["discriminator"] = discriminator
    return {name: part.detach() for name, part in parts.items()}


def tell_apart(true: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """The discriminator's two losses, of its logits for true and for generated masks (equation 5).

    The equation is the negative of their sum; it is to be maximised.
    """
    return F.softplus(-true).mean(), F.softplus(generated).mean()


def deceive(generated: Tensor, gan: Gan = "nonsaturating") -> Tensor:
    """The generator's adversarial loss, of the discriminator's logits for generated masks."""
    if gan == "minmax":
        return -F.softplus(generated).mean()
    return F.softplus(-generated).mean()


def _learn_to_tell(
    model: AdversarialTransfer,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    average: Callable[[Iterable[Tensor]], None] | None,
) -> Tensor:
    """Two updates of the discriminator: on true masks, then on predictions. Their losses' sum."""
    config, discriminator = model.config, model.discriminator
    true = F.one_hot(labels.long(), config.classes).movedim(-1, 1).to(logits.dtype)
    total = []
    for masks, target in ((true, True), (logits.detach().softmax(1), False)):
        scores = discriminator(masks, images)
        part = tell_apart(scores, scores)[0 if target else 1]
        _update(optimiser, part + config.disc_l2 * discriminator.kernels_squared(), average)
        total.append(part.detach())
    return total[0] + total[1]


def _update(
    optimiser: torch.optim.Optimizer,
    objective: Tensor,
    average: Callable[[Iterable[Tensor]], None] | None,
) -> None:
    optimiser.zero_grad(set_to_none=True)
    objective.backward()
    if average is not None:
        parameters = (p for group in optimiser.param_groups for p in group["params"])
        average(p.grad for p in parameters if p.grad is not None)
    optimiser.step()


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Let gradients pass through a network, but none into it, and no statistics either."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training]
    try:
        for p in parameters:
            p.requires_grad_(False)
        for norm in norms:
            norm.track_running_stats = False  # then it normalises by the batch and stores nothing
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
        for norm in norms:
            norm.track_running_stats = True
