"""New lesions between two FLAIR volumes: the network's input, and its output as volumes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from cmrfast.data.prepare import crop_or_pad, spacing_grid, z_score
from cmrfast.data.volume import Volume, count_non_finite
from cmrfast.infer import sliding_window
from cmrfast.methods.new_lesions.brain import brain_union, correct_bias, foreground
from cmrfast.methods.new_lesions.histogram import standardise_histogram
from cmrfast.models.new_lesions import RECIPE, NewLesions, Recipe, fold
from cmrfast.ops import resample
from cmrfast.ops.affine_sample import Mode


@dataclass(frozen=True)
class AlignedVisits:
    """Two visits on one grid of cubic voxels, cut to the box around the brain.

    Args:
        images: (2, I, J, K) float32, earlier and later.
        brain: (I, J, K) bool.
        world_from_vox: (4, 4), of both.
    """

    images: Tensor
    brain: Tensor
    world_from_vox: Tensor


class NewLesionMap(NamedTuple):
    """A prediction on the later image's grid."""

    mask: Volume
    probability: Volume


def align(
    earlier: Volume, later: Volume, brains: Sequence[Volume] = (), *, recipe: Recipe = RECIPE
) -> AlignedVisits:
    """Resample both visits onto a grid of the recipe's spacing, along the later one's axes.

    Args:
        earlier: FLAIR, one channel, registered to the later one; its grid may differ.
        later: FLAIR, one channel.
        brains: masks of the brain at one visit or both, on grids of their own; their union is used.
            Default: the foreground of either image.
        recipe: its spacing and bias field are used.

    Returns:
        The visits, intensities unchanged; 0 outside the later image's box.
    """
    for name, volume in {"earlier": earlier, "later": later}.items():
        if volume.channels != 1:
            raise ValueError(f"new_lesions: {name} must have one channel; got {volume.channels}")
        if wrong := count_non_finite(volume.data):
            raise ValueError(f"new_lesions: {name} must be finite; got {wrong} NaN or infinite")
    masks, brain, world_from_vox = find_brain(earlier, later, brains, recipe=recipe)
    low, size = _box(brain)
    center = [first + n // 2 for first, n in zip(low, size, strict=True)]
    boxed, world_from_vox = crop_or_pad(brain[None], world_from_vox, size, center_vox=center)
    images = [
        _onto(_even(v, masks) if recipe.bias_field else _floating(v), size, world_from_vox)
        for v in (earlier, later)
    ]
    return AlignedVisits(torch.cat(images), boxed[0], world_from_vox)


def find_brain(
    earlier: Volume, later: Volume, brains: Sequence[Volume] = (), *, recipe: Recipe = RECIPE
) -> tuple[list[Volume], Tensor, Tensor]:
    """Masks of the brain, and their union on a grid of the recipe's spacing over the later image.

    Args:
        earlier, later, brains, recipe: as in ``align``.

    Returns:
        The masks, bool, each on its own grid; (I, J, K) bool, their union; (4, 4) world_from_vox of
        the union.
    """
    masks = [m.with_data(m.data != 0) for m in brains]
    masks = masks or [v.with_data(foreground(v.data[0])[None]) for v in (earlier, later)]
    shape, world_from_vox = spacing_grid(later.shape, later.world_from_vox, [recipe.spacing_mm] * 3)
    brain = brain_union(*(_onto(m, shape, world_from_vox)[0] for m in masks))
    if not brain.any():
        raise ValueError("new_lesions: there must be brain in the later image's box; got none")
    return masks, brain, world_from_vox


def normalise(images: Tensor, brain: Tensor, landmarks: Tensor | None = None) -> Tensor:
    """Histogram standardisation, then z-score, of the intensities in the brain; 0 outside.

    Args:
        images: (2, I, J, K), from ``align``.
        brain: (I, J, K), nonzero inside.
        landmarks: of ``histogram_landmarks`` from the training set; None leaves that step out.

    Returns:
        (2, I, J, K) float32.
    """
    inside, normal = brain != 0, torch.zeros_like(images)
    for image, result in zip(images, normal, strict=True):
        values = image[inside]
        if landmarks is not None:
            values = standardise_histogram(values, landmarks)
        result[inside] = z_score(values[None, None])[0, 0]
    return normal


def segment(
    model: NewLesions,
    earlier: Volume,
    later: Volume,
    brains: Sequence[Volume] = (),
    *,
    landmarks: Tensor | None = None,
    recipe: Recipe = RECIPE,
    batch: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> NewLesionMap:
    """Segment lesions of the later image that the earlier one does not have.

    Overlapping windows of the consensus map are averaged; outside the brain it is 0. Memory holds
    both inputs, about ten float32 copies of the brain's box, and one batch of windows in the
    network, 50 MB each for the published patch.

    Args:
        model: a ``NewLesions``, trained; it is left as it is.
        earlier, later, brains: as in ``align``.
        landmarks: as in ``normalise``.
        recipe: the one that the model was trained with.
        batch: windows in one forward pass; by default as many as hold the voxels of 2 published
            ones on a CPU (torch's fast convolution needs more than one), of 16 elsewhere.
        dtype: of the convolutions; bfloat16 is faster where the device computes in it.
    """
    visits = align(earlier, later, brains, recipe=recipe)
    images = normalise(visits.images, visits.brain, landmarks)
    visits = replace(visits, images=images)
    return segment_visits(model, visits, later, recipe=recipe, batch=batch, dtype=dtype)


def segment_visits(
    model: NewLesions,
    visits: AlignedVisits,
    later: Volume,
    *,
    recipe: Recipe = RECIPE,
    batch: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> NewLesionMap:
    """``segment`` of visits that ``align`` and ``normalise`` prepared; arguments as there."""
    images = visits.images[None]
    device = next((p.device for p in model.parameters()), images.device)
    network = fold(model)

    def consensus(windows: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits: Tensor = network(windows[:, :1], windows[:, 1:])["logits"][:, :1]
        return logits.float().sigmoid()

    merged = sliding_window(
        consensus,
        images.to(device),
        (recipe.patch,) * 3,
        recipe.overlap,
        batch=batch or window_batch(recipe, device),
    )
    merged = merged[0].to(visits.brain.device) * visits.brain
    probability = later.with_data(
        resample(merged, visits.world_from_vox, later.world_from_vox, later.shape)
    )
    return NewLesionMap(later.with_data(probability.data > recipe.threshold), probability)


def window_batch(recipe: Recipe, device: torch.device) -> int:
    """Windows in one forward pass, unless another number is given."""
    published = 2 if device.type == "cpu" else 16
    return max(1, published * RECIPE.patch**3 // recipe.patch**3)


def _floating(volume: Volume) -> Volume:
    return volume.with_data(volume.data.float())


def _onto(volume: Volume, shape: Sequence[int], world_from_vox: Tensor) -> Tensor:
    """Images linear, masks nearest: (1, *shape)."""
    mode: Mode = "linear" if volume.data.is_floating_point() else "nearest"
    return resample(volume.data, volume.world_from_vox, world_from_vox, shape, mode=mode)


def _even(volume: Volume, masks: Sequence[Volume]) -> Volume:
    brain = brain_union(*(_onto(m, volume.shape, volume.world_from_vox)[0] for m in masks))
    return volume.with_data(correct_bias(volume.data[0], brain, volume.spacing_mm)[None])


def _box(mask: Tensor) -> tuple[list[int], list[int]]:
    """First voxel and shape of the smallest box around a mask that is not empty."""
    where = [mask.any(dim=a).any(dim=b).nonzero().flatten() for a, b in ((2, 1), (2, 0), (1, 0))]
    return [int(w[0]) for w in where], [int(w[-1] - w[0]) + 1 for w in where]
