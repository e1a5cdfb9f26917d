"""The five methods as a user would write them: layers of PyTorch, losses of PyTorch and MONAI."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrfast.models import adversarial_transfer, blocks, new_lesions, siamese_lesion, transunet

Batch = Mapping[str, Tensor]
Step = Callable[[Batch], dict[str, Tensor]]


def network(model: nn.Module) -> nn.Module:
    """Copy a model with the same weights, its layers replaced by those of PyTorch."""
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, siamese_lesion.ResponseNorm):
                setattr(parent, name, nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0))
        if type(parent) in _LAYERS:  # keeps the parameters, replaces forward
            parent.__class__ = _LAYERS[type(parent)]
    return plain


class _DoubleConv(adversarial_transfer.DoubleConv):
    def forward(self, x: Tensor, coarse: Tensor | None = None) -> Tensor:
        return F.relu(self.second(F.relu(self.first(_upsample_and_concat(x, coarse)))))


class _Residual(adversarial_transfer.Residual):
    def forward(self, x: Tensor, coarse: Tensor | None = None) -> Tensor:
        x = _upsample_and_concat(x, coarse)
        return F.relu(self.second(F.relu(self.first(x)))) + F.relu(self.skip(x))


def _upsample_and_concat(x: Tensor, coarse: Tensor | None) -> Tensor:
    return x if coarse is None else torch.cat((F.interpolate(coarse, scale_factor=2), x), 1)


class _MaxPool(blocks.MaxPool):
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2) if x.dim() == 4 else F.max_pool3d(x, 2)


class _StdConv(transunet.StdConv):
    def standardised_weight(self) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        return (self.weight - mean) / torch.sqrt(variance + 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.standardised_weight(), None, self.stride, self.padding)


class _ResNet(transunet.ResNet):
    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        return super().forward(images.repeat(1, 3, 1, 1))


_LAYERS: dict[type, type] = {
    adversarial_transfer.DoubleConv: _DoubleConv,
    adversarial_transfer.Residual: _Residual,
    blocks.MaxPool: _MaxPool,
    blocks.SameConv2d: nn.Conv2d,
    new_lesions.Conv: nn.Conv3d,
    transunet.StdConv: _StdConv,
    transunet.ResNet: _ResNet,
}


def siamese_lesion_loss(outputs: Batch, batch: Batch, config: Any) -> Tensor:
    """Cross entropy of the classes, plus that of the pairs by cosine similarity."""
    a, c = F.normalize(outputs["t1"]), F.normalize(outputs["lge"])
    pairing = F.cross_entropy(a @ c.T / config.temperature, torch.arange(len(a)))
    return F.cross_entropy(outputs["logits"], batch["labels"]) + pairing


def joint_scar_loss(outputs: Batch, batch: Batch, config: Any) -> Tensor:
    """MONAI's Dice + cross entropy of both tasks."""
    from monai.losses import DiceCELoss

    loss = DiceCELoss(
        softmax=True, to_onehot_y=True, include_background=False, smooth_nr=1e-6, smooth_dr=1e-6
    )
    scar, myocardium = (
        loss(outputs[name], batch[name][:, None].long()) for name in ("scar", "myocardium")
    )
    return scar + config.myocardium_weight * myocardium


def joint_registration_loss(outputs: Batch, batch: Batch, config: Any) -> Tensor:
    """MONAI's Dice + cross entropy of both segmentations and of masks warped by grid_sample."""
    from monai.losses import DiceCELoss, DiceLoss

    options = {"include_background": False, "batch": True, "smooth_nr": 1e-5, "smooth_dr": 1e-5}
    loss = DiceCELoss(softmax=True, to_onehot_y=True, lambda_dice=0.5, lambda_ce=0.5, **options)
    cine, lge = (batch[name].long() for name in ("cine_labels", "lge_labels"))
    total = loss(outputs["cine"], cine[:, None]) + loss(outputs["lge"], lge[:, None])
    masks = F.one_hot(lge, config.classes).movedim(-1, 1).float()
    grid = F.affine_grid(outputs["theta"], list(masks.shape), align_corners=False)
    warped = F.grid_sample(masks[:, 1:], grid, align_corners=False)
    warped = torch.cat((1 - warped.sum(1, keepdim=True), warped), 1)
    entropy = F.nll_loss(((warped + 1e-4) / (1 + 1e-4 * config.classes)).log(), cine)
    dice = DiceLoss(to_onehot_y=True, **options)(warped, cine[:, None])
    return total + 0.5 * entropy + 0.5 * dice


def new_lesions_loss(outputs: Batch, batch: Batch, config: Any) -> Tensor:
    """MONAI's Dice, negative; classes are flattened into space for a single ratio."""
    from monai.losses import DiceLoss

    loss = DiceLoss(sigmoid=True, batch=True, smooth_nr=2e-5, smooth_dr=1e-5)
    logits, masks = (x.flatten(1)[:, None] for x in (outputs["logits"], batch["masks"].float()))
    return loss(logits, masks) - 1


def adversarial_transfer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """0.9 · cross entropy + 0.1 · Dice loss over batch and classes together."""
    labels = labels.long()
    masks = F.one_hot(labels, logits.shape[1]).movedim(-1, 1)
    p = logits.softmax(1)
    dice = (2 * (p * masks).sum() + 1) / (p.sum() + masks.sum() + 1)
    return 0.9 * F.cross_entropy(logits, labels) + 0.1 * (1 - dice)


_LOSSES = {
    "siamese_lesion": siamese_lesion_loss,
    "joint_scar": joint_scar_loss,
    "joint_registration": joint_registration_loss,
    "new_lesions": new_lesions_loss,
}


def training_step(name: str, model: nn.Module, recipe: Any, inputs: tuple[str, ...]) -> Step:
    """Return a training step as in a hand-written loop: forward, loss, backward, Adam.

    Args:
        name: name of the method.
        model: from ``network``, in training mode.
        recipe: provides the learning rate and the weight decay.
        inputs: keys of a batch that the network takes as arguments.
    """
    if name == "adversarial_transfer":
        return _adversarial_step(model, recipe)
    adam = torch.optim.Adam(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)

    def step(batch: Batch) -> dict[str, Tensor]:
        adam.zero_grad()
        loss = _LOSSES[name](model(**{key: batch[key] for key in inputs}), batch, model.config)
        loss.backward()
        adam.step()
        return {"loss": loss.detach()}

    return step


def _adversarial_step(model: Any, recipe: Any) -> Step:
    """The paper's Algorithm 1; one generator pass serves both networks, as is usual."""
    config, generator, discriminator = model.config, model.generator, model.discriminator
    adam = [
        torch.optim.Adam(part.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
        for part in (generator, discriminator)
    ]
    kernels = [m.weight for m in discriminator.modules() if isinstance(m, nn.Conv2d)]

    def bce(masks: Tensor, images: Tensor, true: bool) -> Tensor:
        scores = discriminator(masks, images)
        return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, float(true)))

    def step(batch: Batch) -> dict[str, Tensor]:
        images = torch.cat((batch["images"], batch["pseudo_images"]))
        labels = torch.cat((batch["labels"], batch["pseudo_labels"])).long()
        logits = generator(images)
        disc_loss = 0
        true = F.one_hot(labels, config.classes).movedim(-1, 1).float()
        for masks, target in ((true, True), (logits.detach().softmax(1), False)):
            adam[1].zero_grad()
            part = bce(masks, images, target)
            decay = sum(kernel.square().sum() for kernel in kernels)
            (part + config.disc_l2 * decay).backward()
            adam[1].step()
            disc_loss = disc_loss + part.detach()
        adam[0].zero_grad()
        adversarial_loss = bce(logits.softmax(1), images, True)
        count, w = len(batch["images"]), config.individual_weight
        own_loss = adversarial_transfer_loss(logits[:count], labels[:count])
        pseudo_loss = adversarial_transfer_loss(logits[count:], labels[count:])
        loss = w * own_loss + (1 - w) * pseudo_loss + config.adversarial_weight * adversarial_loss
        loss.backward()
        adam[0].step()
        return {"loss": loss.detach(), "discriminator": disc_loss}

    return step
