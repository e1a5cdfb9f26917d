"""Ventricles and myocardium in short-axis stacks, slice by slice."""

from typing import NamedTuple

import torch
from torch import Tensor

from cmrfast.data.prepare import resample_labels, spacing_grid
from cmrfast.data.slices import pack_slices, world_from_slice
from cmrfast.data.volume import Volume
from cmrfast.infer import predict_batches
from cmrfast.models.adversarial_transfer import RECIPE, AdversarialTransfer, Recipe
from cmrfast.ops import VolumeStore, extract_patches, resample, sample_patches

#: Label value of each structure, in the order of the paper's tables.
STRUCTURES = {"lv": 1, "myocardium": 2, "rv": 3}
_MIN_SD = 1e-8
_MULTIPLE = 8  # sides of the generator's images are multiples of this


class Segmentation(NamedTuple):
    """Labels and class probabilities.

    ``labels`` are uint8: 0 background, 1 left ventricle, 2 myocardium, 3 right ventricle.
    ``probabilities`` are float32 (4 · C, I, J, K), the four classes of each channel together.
    """

    labels: Volume
    probabilities: Volume | None


class Slices:
    """Slices of any shapes in their stored dtype, each with the shift and scale to mean 0 and SD 1.

    Args:
        images: (1, I, J) each, real, of one dtype.
        device: where they are kept.
    """

    def __init__(self, images: list[Tensor], device: torch.device | str = "cpu") -> None:
        self.store = VolumeStore(images, device)
        moments = [_moments(image) for image in images]
        mean, scale = torch.tensor(moments, dtype=torch.float64).view(-1, 2).unbind(1)
        self.shift, self.scale = mean[:, None].to(device), scale[:, None].to(device)

    def windows(self, which: Tensor, start_vox: Tensor, size: tuple[int, int]) -> Tensor:
        """What the network sees of some slices: (B, 1, *size) float32, 0 outside.

        Args:
            which: (B,) numbers of the slices.
            start_vox: (B, 2) first pixel of each window; it may lie outside.
            size: of the windows.
        """
        return extract_patches(
            self.store,
            start_vox,
            size,
            volume_index=which,
            shift=self.shift,
            scale=self.scale,
        )

    def sampled(
        self, which: Tensor, center_vox: Tensor, matrix: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """The same of turned, sheared or scaled windows.

        Args:
            which: (B,) numbers of the slices.
            center_vox: (B, 2) middle of each window.
            matrix: (B, 2, 2) from steps in the window to steps in the slice.
            size: of the windows.
        """
        return sample_patches(
            *(self.store, center_vox, matrix, size),
            volume_index=which,
            shift=self.shift,
            scale=self.scale,
        )


def segment(
    model: AdversarialTransfer,
    volume: Volume,
    recipe: Recipe = RECIPE,
    *,
    probabilities: bool = False,
    batch: int = 8,
) -> Segmentation:
    """Label each slice of a stack of any sequence.

    The network sees the middle of each slice, ``recipe.view_px`` wide, with pixels of
    ``recipe.pixel_mm``; the rest is background. Memory holds the input, the results, the slices as
    the network sees them (4 bytes a pixel), and one batch in the network.

    Args:
        model: an ``AdversarialTransfer`` in evaluation mode.
        volume: channels are images of their own.
        recipe: that the model was trained with.
        probabilities: return these too, 16 bytes a voxel.
        batch: slices in one forward pass.

    Example:
        >>> from cmrfast.models import build
        >>> model = build("adversarial_transfer", size=32, width=4).eval()
        >>> result = segment(model, Volume(torch.rand(1, 40, 300, 3), torch.eye(4)))
        >>> result.labels.data.shape, result.labels.data.dtype
        (torch.Size([1, 40, 300, 3]), torch.uint8)
    """
    image = even_pixels(volume, recipe.pixel_mm)
    stack = pack_slices(image.data)[:, None]  # (C · K, 1, I, J)
    start, size = middle_window(image.shape[:2], recipe.view_px)
    starts, which = start.expand(len(stack), 2).to(stack.device), torch.arange(len(stack))
    seen = Slices(list(stack), stack.device).windows(which.to(stack.device), starts, size)
    labels: list[Tensor] = []
    classes: list[Tensor] = []
    for outputs in predict_batches("adversarial_transfer", model, {"images": seen}, batch):
        probability = _restore(outputs["logits"].float().softmax(1), start, image)
        probability[:, 0] += probability.sum(1) == 0  # beyond the window
        if recipe.pixel_mm:
            probability = _on_pixels_of(volume, probability, image)
        labels.append(probability.argmax(1, keepdim=True).byte())
        if probabilities:
            classes.append(probability)
    return Segmentation(_stacked(labels, volume), _stacked(classes, volume) if classes else None)


def even_pixels(volume: Volume, pixel_mm: float) -> Volume:
    """The volume with square pixels of one size, float32; slices stay where they are.

    Sequences differ in their pixels, so a heart would have another size in each.

    Args:
        volume: an image.
        pixel_mm: side of the pixels; 0 leaves the volume as it is.
    """
    if not pixel_mm:
        return volume
    shape, grid = _even_grid(volume, pixel_mm)
    data = resample(volume.data.float(), volume.world_from_vox, grid, shape, antialias=True)
    return Volume(data, grid)


def even_label_pixels(labels: Volume, pixel_mm: float) -> Volume:
    """``even_pixels`` of labels, (1, I, J, K) in their dtype."""
    if not pixel_mm:
        return labels
    shape, grid = _even_grid(labels, pixel_mm)
    return Volume(resample_labels(labels.data[0], labels.world_from_vox, grid, shape)[None], grid)


def _even_grid(volume: Volume, pixel_mm: float) -> tuple[tuple[int, ...], Tensor]:
    spacing_mm = (pixel_mm, pixel_mm, volume.spacing_mm[2])
    return spacing_grid(volume.shape, volume.world_from_vox, spacing_mm)


def _on_pixels_of(volume: Volume, slices: Tensor, image: Volume) -> Tensor:
    """Slices (B, K, *) of an image of even pixels as (B, K, I, J) on the volume's pixels."""
    moved: Tensor = resample(
        slices.flatten(0, 1),
        world_from_slice(image, 0),
        world_from_slice(volume, 0),
        volume.shape[:2],
    ).unflatten(0, slices.shape[:2])
    return moved


def middle_window(shape: tuple[int, ...], view_px: int) -> tuple[Tensor, tuple[int, int]]:
    """The square about the middle of a slice that the network sees, or the whole slice.

    Args:
        shape: (I, J) of the slice.
        view_px: side of the square; 0 for the whole.

    Returns:
        Its first pixel (2,), and its size, each side a multiple of 8 that may reach outside.

    Example:
        >>> middle_window((300, 100), 256)
        (tensor([22, -2]), (256, 104))
    """
    sides = [min(n, view_px) if view_px else n for n in shape]
    i, j = (-(-side // _MULTIPLE) * _MULTIPLE for side in sides)
    return torch.tensor([shape[0] // 2 - i // 2, shape[1] // 2 - j // 2]), (i, j)


def _restore(windows: Tensor, start: Tensor, volume: Volume) -> Tensor:
    """(B, K, *size) windows to (B, K, I, J) on the volume's device; 0 beyond them."""
    windows = windows.to(volume.data.device)
    which = torch.arange(len(windows), device=windows.device)
    starts = -start.expand(len(windows), 2).to(windows.device)
    return extract_patches(
        windows, starts, volume.shape[:2], volume_index=which, dtype=windows.dtype
    )


def _stacked(parts: list[Tensor], volume: Volume) -> Volume:
    """Slices (B, K, I, J) in order as (C · K, I, J, slices)."""
    stack = torch.cat(parts).unflatten(0, (volume.channels, -1))  # (C, slices, K, I, J)
    return volume.with_data(stack.movedim(1, -1).flatten(0, 1).contiguous())


def _moments(image: Tensor) -> tuple[float, float]:
    """Mean, and 1 / SD; the latter is 0 for a constant image."""
    values = image.double()
    mean = values.mean()
    sd = (values - mean).square().mean().sqrt().item()
    return mean.item(), 0.0 if sd < _MIN_SD else 1 / sd
