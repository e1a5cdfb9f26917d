"""Adversarial segmentation of LGE images, with pseudo masks from other sequences.

Chen, Li, Zhang, Menze: Adversarial Convolutional Networks with Weak Domain-Transfer for
Multi-sequence Cardiac MR Images Segmentation (2020), doi:10.1007/978-3-030-39074-7_34.

Input: a slice of any sequence. Output: four-class logits (background, LV, myocardium, RV).
Training also uses LGE slices without annotation, each with a pseudo mask: the mask of a bSSFP or T2
slice at the same position.

Where the paper is silent or differs from its authors' code:

- Both architectures are those of the code. It lacks the residual blocks that the paper describes in
  the discriminator; ``disc="residual"`` has two convolutions and a skip per level.
- Weak transfer is the paper's: pseudo masks have a loss term of their own, of weight 0.1. The code
  only adds them to the training data.
- The generator's adversarial loss is the code's, which does not saturate; ``gan="minmax"`` is the
  paper's equation 6.
- One generator step follows each discriminator step, as in algorithm 1; the code makes two
  (``g_steps=2``). As in the code, a discriminator step is two updates: one on true masks, then one
  on predictions.
- During generator steps the discriminator's batch norms use batch statistics and do not update
  their running statistics.
- Variant ``u`` keeps the cross entropy: its "Dice loss" is the paper's mixture (equation 2).
- Without pseudo masks the generator's loss is the individual-domain loss, at full weight.
- Slices are normalised one by one (the code: per volume), brought to pixels of 1.25 mm, so that a
  heart has one size in all sequences (the code: resized to 480 pixels), and cropped around the
  annotated region.
- Augmented copies of the crops are drawn again in every epoch. Where they reach beyond the slice
  they are 0, its mean, not the value at its edge.
- By default no training patient is tested on. The paper also trains on LGE images, with pseudo
  masks, of the patients on whose LGE masks it is then tested; ``protocol_split`` does, too.
- As in the code, only the centre of a slice is segmented: farther out, which no training crop of an
  LGE slice covers, the network mistakes other bright or dark structures for the heart.
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
from cmrfast.models._check import (
    require_batch,
    require_images,
    require_labels,
    require_option,
    require_shares,
)
from cmrfast.models.blocks import MaxPool, SameConv2d, init_glorot
from cmrfast.models.kernels import same_conv2d
from cmrfast.ops._collectives import mean

Variant = Literal["u_a_t", "u_a", "u"]
Gan = Literal["nonsaturating", "minmax"]
Disc = Literal["plain", "residual"]
SliceMap = Literal["paper", "code"]
OptimizerG = Literal["adam", "rmsprop"]


@dataclass(frozen=True)
class Config:
    """P: the paper, with its section; C: the authors' code; D: our decision."""

    variant: Variant = "u_a_t"  # P 3.1, where they are called U+A+D+T, U+A+D and U+D
    gan: Gan = "nonsaturating"  # C
    disc: Disc = "plain"  # C
    size: int = 224  # P 2: side of the discriminator's images; any side for the generator
    width: int = 32  # C: channels of the generator
    dilations: tuple[int, int, int] = (2, 4, 8)  # C: at 1/2, 1/4, 1/8 of the image size; even
    disc_widths: tuple[int, ...] = (16, 32, 64, 128)  # C: channels of the discriminator
    disc_l2: float = 0.01  # C: weight of the L2 penalty on the discriminator's kernels
    classes: int = 4  # P 2: background, LV, myocardium, RV
    individual_weight: float = 0.9  # P 2: lambda of equation 4; 1 - lambda for transfer
    adversarial_weight: float = 1.0  # P 2: equation 6
    g_steps: int = 1  # P, algorithm 1: generator steps per discriminator step

    def __post_init__(self) -> None:
        require_option("adversarial_transfer", "variant", self.variant, get_args(Variant))
        require_option("adversarial_transfer", "gan", self.gan, get_args(Gan))
        require_option("adversarial_transfer", "disc", self.disc, get_args(Disc))
        if any(d < 2 or d % 2 for d in self.dilations):
            raise ValueError(f"adversarial_transfer: dilations must be even; got {self.dilations}")
        require_shares("adversarial_transfer", individual_weight=self.individual_weight)
        if self.g_steps < 1:
            raise ValueError(
                f"adversarial_transfer: g_steps must be at least 1; got {self.g_steps}"
            )
        multiple = 2 ** len(self.disc_widths)
        if self.size < multiple or self.size % multiple:
            raise ValueError(
                f"adversarial_transfer: size must be a multiple of {multiple}; got {self.size}"
            )


@dataclass(frozen=True)
class Recipe(recipe.Recipe):
    """P: the paper, with its section; C: the authors' code; D: our decision.

    Args:
        optimizer_g: the generator's optimiser: adam; or adam in the initial epochs and then, from
            an empty state, rmsprop with gradients clipped at 1.
        lr_decay: the learning rate at optimiser step t is lr / (1 + lr_decay · t).
        pretrain_epochs: initial epochs, in which only the generator is trained.
        lge_masks: training patients whose LGE masks are used; with fewer training patients than in
            ``split`` in proportion, at least one. A split per sequence lists the masks to use
            itself, and this field is not used.
        slice_map: how the LGE slice of a transferred mask is chosen, see ``transfer_slices``.
        crop_shift_px: largest shift of four of the five crops of a slice from the fifth.
        copies: augmented samples in addition to each unchanged crop.
        rotate_deg: largest rotation of a copy in either direction.
        shear_rad: largest shear angle in either direction.
        zoom: smallest and largest factor of a copy's field of view, drawn for each axis.
        pixel_mm: side of the pixels to which all sequences are brought; 0 keeps their own.
        view_px: side of the central square of a slice that is segmented; 0 for the whole slice.
    """

    lr: float = 2e-4  # P 3
    batch: int = 16  # P 3: annotated slices, and as many with pseudo masks
    epochs: int = 50  # C: 30 + 20
    optimizer_g: OptimizerG = "adam"  # P 3; the code: rmsprop in the adversarial phase
    lr_decay: float = 1e-8  # P 3
    pretrain_epochs: int = 30  # C
    split: tuple[float, float, float] = (33, 2, 10)  # P 3: patients 1-35 except 4, 5; 4, 5; 36-45
    lge_masks: int = 5  # P 3
    slice_map: SliceMap = "paper"  # P 2; the code rounds and is one slice later
    crop_shift_px: int = 16  # D; P 3: five crops at different positions
    copies: int = 1  # D
    rotate_deg: float = 15.0  # C
    shear_rad: float = 0.1  # C
    zoom: tuple[float, float] = (0.8, 1.2)  # C
    pixel_mm: float = 1.25  # D; C: every slice is resized to 480 x 480
    view_px: int = 256  # C: 224 or 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require_option("adversarial_transfer", "slice_map", self.slice_map, get_args(SliceMap))
        options = get_args(OptimizerG)
        require_option("adversarial_transfer", "optimizer_g", self.optimizer_g, options)
        for name in ("pretrain_epochs", "lge_masks", "crop_shift_px", "copies", "view_px"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"adversarial_transfer: {name} must be >= 0; got {getattr(self, name)}"
                )
        if not 0 <= self.pixel_mm < float("inf"):
            raise ValueError(f"adversarial_transfer: pixel_mm must be >= 0; got {self.pixel_mm}")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError(f"adversarial_transfer: zoom must be 0 < low <= high; got {self.zoom}")

    def optimisers(self, networks: Mapping[str, nn.Module]) -> dict[str, torch.optim.Optimizer]:
        """Adam for each network; with rmsprop, ``combined`` updates the adversarial generator."""
        made = super().optimisers(networks)
        if self.optimizer_g == "rmsprop" and "discriminator" in networks:
            weights = list(networks["generator"].parameters())
            rmsprop = torch.optim.RMSprop(weights, self.lr, alpha=0.9)
            rmsprop.register_step_pre_hook(lambda *_: nn.utils.clip_grad_value_(weights, 1.0))
            made["combined"] = rmsprop
        return made

    def step_options(self, epoch: int) -> dict[str, Any]:
        """Train the generator alone in the first ``pretrain_epochs``."""
        return {"adversarial": epoch >= self.pretrain_epochs}

    def not_reached(self, config: Config, epoch: int) -> str:
        """Everything but the generator, before the adversarial epochs."""
        if config.variant == "u" or epoch >= self.pretrain_epochs:
            return ""
        masks = " and borrowed masks" if config.variant == "u_a_t" else ""
        return f"the adversary{masks}, from epoch {self.pretrain_epochs + 1} on (pretrain_epochs)"

    def lr_at(self, epoch: int, step: int) -> float:
        """Learning rate of a step; epochs and steps count from 0, steps across all epochs."""
        return super().lr_at(epoch, step) / (1 + self.lr_decay * step)


RECIPE = Recipe()


class DoubleConv(nn.Module):
    """Two convolutions, each followed by ReLU."""

    def __init__(self, channels_in: int, channels_out: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = SameConv2d(channels_in, channels_out, 3, dilation=dilation)
        self.second = SameConv2d(channels_out, channels_out, 3, dilation=dilation)

    def forward(self, x: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Convolve x, or the concatenation of coarse features and x.

        Args:
            x: (B, C, H, W).
            coarse: (B, channels_in - C, H / 2, W / 2), upsampled by repetition and put before x.

        Returns:
            (B, channels_out, H, W).
        """
        x = F.relu(_conv_concatenated(self.first, x, coarse), inplace=True)
        return F.relu(self.second(x), inplace=True)


class Residual(DoubleConv):
    """Two dilated convolutions plus a 1x1 skip convolution, each followed by ReLU."""

    def __init__(self, channels_in: int, channels_out: int, dilation: int) -> None:
        super().__init__(channels_in, channels_out, dilation)
        self.skip = SameConv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Same arguments and result shape as ``DoubleConv``."""
        skip = F.relu(_conv_concatenated(self.skip, x, coarse), inplace=True)
        return super().forward(x, coarse) + skip


def _conv_concatenated(conv: SameConv2d, x: Tensor, coarse: Tensor | None) -> Tensor:
    """Convolve the concatenation of upsampled coarse features and x, without storing it.

    Convolution is linear, so each input is convolved with its part of the kernel. An even dilation,
    or a kernel of one pixel, keeps all taps on whole coarse pixels: coarse features are then
    convolved before they are upsampled, which is a quarter of the work.
    """
    if coarse is None:
        out: Tensor = conv(x)
        return out
    channels, d = coarse.shape[1], conv.dilation[0]
    weight_coarse, weight_x = conv.weight[:, :channels], conv.weight[:, channels:]
    if d % 2 == 0 or conv.kernel_size == (1, 1):
        out_coarse = _upsample(same_conv2d(coarse, weight_coarse, dilation=max(d // 2, 1)))
    else:
        out_coarse = same_conv2d(_upsample(coarse), weight_coarse)
    return same_conv2d(x, weight_x, conv.bias, dilation=d).add_(out_coarse)


def _upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class Generator(nn.Module):
    """Dilated residual U-Net that segments slices."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        w, (d2, d3, d4) = config.width, config.dilations
        self.pool = MaxPool()
        self.first = DoubleConv(1, w)
        self.down2 = Residual(w, w, d2)
        self.down3 = Residual(w, w, d3)
        self.bottom = Residual(w, w, d4)
        self.up3 = Residual(2 * w, w, d3)
        self.up2 = Residual(2 * w, w, d2)
        self.last = DoubleConv(2 * w, w)
        self.head = nn.Conv2d(w, config.classes, 1)
        init_glorot(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W), H and W multiples of 8, to logits (B, classes, H, W)."""
        require_images("adversarial_transfer", {"images": images}, multiple=8)
        x1 = self.first(images)
        x2 = self.down2(self.pool(x1))  # H / 2
        x3 = self.down3(self.pool(x2))  # H / 4
        x = self.bottom(self.pool(x3))  # H / 8
        x = self.up3(x3, x)  # H / 4
        x = self.up2(x2, x)  # H / 2
        x = self.last(x1, x)  # H
        logits: Tensor = self.head(x)
        return logits


class Discriminator(nn.Module):
    """Classifies a mask as true or generated, given the mask and its image."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.size, self.classes = config.size, config.classes
        levels: list[nn.Module] = []
        for a, b in pairwise((config.classes + 1, *config.disc_widths)):
            norm = nn.BatchNorm2d(b, eps=1e-3, momentum=0.01) if levels else nn.Identity()
            conv = _ResidualConv(a, b) if config.disc == "residual" else SameConv2d(a, b, 5)
            levels.append(nn.Sequential(conv, MaxPool(), norm, nn.LeakyReLU(0.3, inplace=True)))
        self.levels = nn.Sequential(*levels)
        side = config.size // 2 ** len(levels)
        self.head = nn.Linear(config.disc_widths[-1] * side**2, 1)
        init_glorot(self)

    def forward(self, masks: Tensor, images: Tensor) -> Tensor:
        """Masks or probabilities (B, classes, H, W) and images (B, 1, H, W) to logits (B,)."""
        require_images("adversarial_transfer", {"images": images}, size=self.size)
        expected = (images.shape[0], self.classes, *images.shape[2:])
        if tuple(masks.shape) != expected:
            raise ValueError(
                f"adversarial_transfer: masks must be {expected}; got {tuple(masks.shape)}"
            )
        x = self.levels(torch.cat((masks, images), 1))  # (B, width, H / 16, W / 16)
        logits: Tensor = self.head(x.flatten(1)).squeeze(1)
        return logits

    def l2_penalty(self) -> Tensor:
        """Sum of squares of all convolution kernels."""
        kernels = [m.weight for m in self.modules() if isinstance(m, nn.Conv2d)]
        return torch.stack([k.square().sum() for k in kernels]).sum()


class _ResidualConv(nn.Module):
    """One level of the residual discriminator: two convolutions plus a 1x1 skip convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            SameConv2d(channels_in, channels_out, 5),
            nn.LeakyReLU(0.3, inplace=True),
            SameConv2d(channels_out, channels_out, 5),
        )
        self.skip = SameConv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.main(x) + self.skip(x)
        return out


class AdversarialTransfer(nn.Module):
    """The generator and, except for variant ``u``, the discriminator.

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
            pseudo_images: (N, 1, H, W), LGE slices with pseudo masks.

        Returns:
            ``logits`` (B, 4, H, W) and, with pseudo images, ``pseudo_logits`` (N, 4, H, W).
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
    """The generator's segmentation loss (equations 2 to 4), without the adversarial term.

    Args:
        outputs: the model's outputs.
        batch: ``labels`` (B, H, W) and, with ``pseudo_logits``, ``pseudo_labels`` (N, H, W).
        config: the model's config; default: as published.
        group: process group whose batches are treated as one.

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
    """One iteration of algorithm 1: update the discriminator, if adversarial, then the generator.

    Args:
        model: in training mode.
        batch: ``images`` (B, 1, H, W) and ``labels`` (B, H, W); adversarial steps of variant
            ``u_a_t`` also need ``pseudo_images`` (N, 1, H, W) and ``pseudo_labels`` (N, H, W).
        optimisers: ``generator`` and, for adversarial steps, ``discriminator``; ``combined``, if
            there is one, updates the generator in those.
        adversarial: False in the first phase of the algorithm, the only one of variant ``u``.
        group: process group whose batches are treated as one.
        average: replaces gradients, in place, by their means over the ranks of that group.

    Returns:
        The losses before the updates, detached: those of ``loss``, where ``loss`` is the
        generator's total, and in adversarial steps ``adversarial`` and ``discriminator``. With a
        group, their means over ranks are those of the whole batch.
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

    # The discriminator's update needs the generator's predictions but does not change the
    # generator, so the same forward pass serves the generator's first update.
    logits = generator(images)
    discriminator = _update_discriminator(
        model, optimisers["discriminator"], images, labels, logits, group, average
    )
    optimiser = optimisers.get("combined", optimisers["generator"])
    for repeat in range(config.g_steps):
        if repeat:
            logits = generator(images)
        with _freeze(model.discriminator):
            scores = model.discriminator(logits.softmax(1), images)
        count = batch["images"].shape[0]
        outputs = {"logits": logits[:count]}
        if config.variant == "u_a_t":
            outputs["pseudo_logits"] = logits[count:]
        parts = loss(outputs, batch, config, group=group)
        parts["adversarial"] = adversarial_loss(scores, config.gan, group=group)
        parts["loss"] = parts["loss"] + config.adversarial_weight * parts["adversarial"]
        _update(optimiser, parts["loss"], average)
    parts["discriminator"] = discriminator
    return {name: part.detach() for name, part in parts.items()}


def discriminator_losses(
    true: Tensor, generated: Tensor, *, group: Any = None
) -> tuple[Tensor, Tensor]:
    """The discriminator's losses for its logits of true and of generated masks (equation 5).

    The equation, which is maximised, is the negative of their sum. With a process group, they are
    shares whose means over ranks are the losses of all masks.
    """
    return mean(F.softplus(-true), group), mean(F.softplus(generated), group)


def adversarial_loss(generated: Tensor, gan: Gan = "nonsaturating", *, group: Any = None) -> Tensor:
    """The generator's adversarial loss for the discriminator's logits of generated masks.

    With a process group, a share whose mean over ranks is the loss of all masks.
    """
    if gan == "minmax":
        return -mean(F.softplus(generated), group)
    return mean(F.softplus(-generated), group)


def _update_discriminator(
    model: AdversarialTransfer,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    logits: Tensor,
    group: Any,
    average: Callable[[Iterable[Tensor]], None] | None,
) -> Tensor:
    """Update the discriminator on true masks, then on predictions; return the sum of the losses."""
    config, discriminator = model.config, model.discriminator
    true = F.one_hot(labels.long(), config.classes).movedim(-1, 1).to(logits.dtype)
    losses = []
    for index, masks in enumerate((true, logits.detach().softmax(1))):
        scores = discriminator(masks, images)
        part = discriminator_losses(scores, scores, group=group)[index]
        _update(optimiser, part + config.disc_l2 * discriminator.l2_penalty(), average)
        losses.append(part.detach())
    return losses[0] + losses[1]


def _update(
    optimiser: torch.optim.Optimizer,
    total: Tensor,
    average: Callable[[Iterable[Tensor]], None] | None,
) -> None:
    optimiser.zero_grad(set_to_none=True)
    total.backward()
    if average is not None:
        parameters = (p for group in optimiser.param_groups for p in group["params"])
        average(p.grad for p in parameters if p.grad is not None)
    optimiser.step()


@contextmanager
def _freeze(network: nn.Module) -> Iterator[None]:
    """Keep a network's parameters and running statistics fixed; gradients pass through it."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training]
    try:
        for p in parameters:
            p.requires_grad_(False)
        for norm in norms:
            norm.track_running_stats = False  # normalise by the batch, store nothing
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
        for norm in norms:
            norm.track_running_stats = True
