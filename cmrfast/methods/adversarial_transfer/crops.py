"""Training crops of annotated slices, with augmentation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cmrfast.data.cache import Tensors
from cmrfast.data.random import uniforms
from cmrfast.methods.adversarial_transfer.images import Slices
from cmrfast.models.adversarial_transfer import Recipe
from cmrfast.ops import VolumeStore, sample_patches

_DIAGONALS = ((0, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))


class Crops:
    """Five windows of every slice, each once unchanged and ``recipe.copies`` times augmented.

    Args:
        stacks: ``images`` (S, 1, I, J) and ``labels`` (S, 1, I, J) of one volume each.
        size: of the windows.
        recipe: of the windows and the augmentation.
        seed: of the augmentation.
        device: where slices are kept and batches are made.
        first: number of the first sample, for the random draws.
    """

    def __init__(
        self,
        stacks: Sequence[Tensors],
        size: int,
        recipe: Recipe,
        seed: int,
        device: torch.device | str,
        *,
        first: int = 0,
    ) -> None:
        self.size, self.recipe, self.seed, self.first = size, recipe, seed, first
        images = [image for stack in stacks for image in stack["images"]]
        if len({image.dtype for image in images}) > 1:  # some files hold scaled values
            images = [image.float() for image in images]
        self.slices = Slices(images, device)
        self.labels = VolumeStore([mask for stack in stacks for mask in stack["labels"]], device)
        self.starts = torch.cat(
            [
                five_windows(stack["labels"].amax((0, 1)), size, recipe.crop_shift_px).expand(
                    len(stack["labels"]), -1, -1
                )
                for stack in stacks
            ]
        ).to(device)

    def __len__(self) -> int:
        return len(self.starts) * len(_DIAGONALS) * (1 + self.recipe.copies)

    def batch(self, epoch: int, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 1, size, size) and labels (B, size, size) uint8."""
        rest, copy = samples // (1 + self.recipe.copies), samples % (1 + self.recipe.copies)
        which, crop = rest // len(_DIAGONALS), rest % len(_DIAGONALS)
        device, size = self.starts.device, (self.size, self.size)
        matrix = torch.eye(2).repeat(len(samples), 1, 1)
        changed = samples[copy > 0] + self.first
        matrix[copy > 0] = random_warps(self.recipe, self.seed, epoch, changed)
        matrix, which = matrix.to(device), which.to(device)
        center = self.starts[which, crop.to(device)] + (self.size - 1) / 2
        images = self.slices.sampled(which, center, matrix, size)
        labels = sample_patches(
            *(self.labels, center, matrix, size),
            volume_index=which,
            mode="nearest",
            dtype=torch.uint8,
        )
        return images, labels[:, 0]


def five_windows(mask: Tensor, size: int, shift_px: int) -> Tensor:
    """Positions of a volume's crops: centred on the annotation, and shifted diagonally.

    Args:
        mask: (I, J), nonzero where any slice is annotated; not empty.
        size: of the windows.
        shift_px: largest shift of the other four; smaller where they would cut the annotation.

    Returns:
        (5, 2) int64 first pixels. Windows stay inside the slice; larger ones are centred on it.
    """
    inside = mask.nonzero()
    low, high = inside.amin(0), inside.amax(0) + 1
    shift = int(((size - (high - low)) // 2).amin().clamp(0, shift_px))
    starts = (low + high - size) // 2 + shift * torch.tensor(_DIAGONALS)
    room = torch.tensor(mask.shape) - size
    return torch.where(room < 0, room // 2, starts.clamp(min=0).minimum(room.clamp(min=0)))


def random_warps(recipe: Recipe, seed: int, epoch: int, samples: Tensor) -> Tensor:
    """Random rotation, shear and zoom: (B, 2, 2), from output to input, on (row, column).

    Composed as in the authors' tool, rotation · shear · zoom; a zoom above 1 shows more of the
    image.
    """
    turn, slant, *zoom = uniforms(seed, epoch, samples, 4, "warps").unbind(1)
    turn = (2 * turn - 1) * torch.pi / 180 * recipe.rotate_deg
    slant = (2 * slant - 1) * recipe.shear_rad
    low, high = recipe.zoom
    rotation = torch.stack((turn.cos(), -turn.sin(), turn.sin(), turn.cos()), 1).view(-1, 2, 2)
    one, none = torch.ones_like(slant), torch.zeros_like(slant)
    shear = torch.stack((one, -slant.sin(), none, slant.cos()), 1).view(-1, 2, 2)
    scale = torch.diag_embed(torch.stack([low + (high - low) * z for z in zoom], 1))
    return (rotation @ shear @ scale).float()
