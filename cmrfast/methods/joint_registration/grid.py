"""The grid on which the network sees a cine and an LGE stack, and both stacks on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cmrfast.data.prepare import min_max, percentiles, resample_labels, spacing_grid
from cmrfast.data.slices import SlicePair, slice_pairs, slice_pairs_by_index
from cmrfast.data.volume import Volume, count_non_finite
from cmrfast.models.joint_registration import RECIPE, Recipe
from cmrfast.ops import resample


class StackPair(NamedTuple):
    """What the network sees of both stacks, or their labels: (P, 1, side, side) each."""

    cine: Tensor
    lge: Tensor


@dataclass(frozen=True)
class SharedGrid:
    """Pairs of slices at the same position, and the grid on which the network sees both stacks.

    Args:
        pairs: cine slice (``source``) and LGE slice (``target``); the latter without a gap.
        unpaired: LGE slices without a cine slice at their position.
        shape: (side, side, P), a slice a pair.
        world_from_vox: (4, 4), along the LGE slices, mm.
        cine_slices: slices of the cine stack, ordered as they are paired with LGE slices.
        cine_world_from_vox: (4, 4), of these.
        cine_count: slices of the cine stack.
    """

    pairs: tuple[SlicePair, ...]
    unpaired: tuple[int, ...]
    shape: tuple[int, int, int]
    world_from_vox: Tensor
    cine_slices: tuple[int, ...]
    cine_world_from_vox: Tensor
    cine_count: int

    def placed(self, cine: Volume) -> Volume:
        """An image or mask of the cine stack in the position that pairs it with the LGE stack."""
        return Volume(cine.data[..., list(self.cine_slices)], self.cine_world_from_vox)

    def onto_cine(self, stack: Tensor, world_from_vox: Tensor, size: Sequence[int]) -> Tensor:
        """Images given in the LGE stack's space, resampled onto the cine grid; 0 outside.

        Args:
            stack: (C, I', J', P) floating.
            world_from_vox: (4, 4), of the stack.
            size: (I, J) of cine slices.
        """
        placed = (*size, len(self.cine_slices))
        resampled = resample(stack, world_from_vox, self.cine_world_from_vox, placed)
        # Paired by index, a cine slice may occur several times; the first one counts.
        first = {source: k for k, source in reversed(list(enumerate(self.cine_slices)))}
        whole = resampled.new_zeros(*resampled.shape[:3], self.cine_count)
        whole[..., list(first)] = resampled[..., list(first.values())]
        return whole


def shared_grid(cine: Volume, lge: Volume, recipe: Recipe = RECIPE) -> SharedGrid:
    """Pair the slices of two stacks, and define the network's grid along the LGE slices.

    The squares are centred on the LGE slices. Arguments are those of ``register``.
    """
    for name, volume in (("cine", cine), ("lge", lge)):
        if volume.channels != 1:
            raise ValueError(
                f"joint_registration: {name} must be one image; "
                f"got {volume.channels} channels or time points"
            )
        if wrong := count_non_finite(volume.data):
            raise ValueError(
                f"joint_registration: {name} must be finite; got {wrong} NaN or infinite values"
            )
    slices, cine_world = tuple(range(cine.shape[2])), cine.world_from_vox
    if recipe.pairing == "position":
        pairs = tuple(slice_pairs(cine, lge))
    else:
        by_index = slice_pairs_by_index(lge.shape[2], cine.shape[2])
        pairs = tuple(SlicePair(p.target, p.source, p.apart_mm) for p in by_index)
        slices, cine_world = tuple(pair.source for pair in pairs), _centred(cine, lge)
    targets = [pair.target for pair in pairs]
    spacing = (recipe.spacing_mm, recipe.spacing_mm, lge.spacing_mm[2])
    full, world_from_vox = spacing_grid(lge.shape, lge.world_from_vox, spacing)
    # Cropped or padded, not rescaled: the metrics rely on the recipe's spacing.
    corner = [n // 2 - recipe.side // 2 for n in full[:2]]
    first = torch.tensor([*corner, targets[0] if targets else 0, 1], dtype=torch.float64)
    world_from_vox[:, 3] = world_from_vox @ first
    return SharedGrid(
        pairs,
        tuple(k for k in range(lge.shape[2]) if k not in targets),
        (recipe.side, recipe.side, len(pairs)),
        world_from_vox,
        slices,
        cine_world,
        cine.shape[2],
    )


def network_view(grid: SharedGrid, cine: Volume, lge: Volume, recipe: Recipe = RECIPE) -> StackPair:
    """Both stacks as the network sees them: float32 in [0, 1], 0 outside.

    Percentiles are taken over the part of a slice within the square.
    """
    views = []
    for volume in (grid.placed(cine), lge):
        image = resample(
            volume.data.float(),
            volume.world_from_vox,
            grid.world_from_vox,
            grid.shape,
            # NaN marks pixels outside the stack, which must not count for the percentiles.
            fill=torch.nan,
        )
        inside = image[0].isfinite()
        low, high = recipe.clip_percent
        image = clip_percentiles(image, low, high, inside)
        image = torch.where(inside, min_max(image, mask=inside, over="slice"), 0.0)
        views.append(image.movedim(-1, 0).contiguous())
    return StackPair(*views)


def label_view(grid: SharedGrid, cine: Volume, lge: Volume) -> StackPair:
    """Masks of both stacks on the grid of ``network_view``, in their own dtypes."""
    resampled = [
        resample_labels(v.data[0], v.world_from_vox, grid.world_from_vox, grid.shape)
        for v in (grid.placed(cine), lge)
    ]
    return StackPair(*(labels.movedim(-1, 0)[:, None].contiguous() for labels in resampled))


def clip_percentiles(slices: Tensor, low: float, high: float, mask: Tensor) -> Tensor:
    """Clamp each slice to two percentiles of its values inside a mask.

    Args:
        slices: (C, I, J, K), slices along the last axis.
        low, high: percentiles.
        mask: (I, J, K), nonzero where percentiles are taken; a slice without any stays as it is.

    Returns:
        (C, I, J, K) float32 (float64 for float64).
    """
    if not 0 <= low <= high <= 100:
        raise ValueError(
            f"clip_percentiles: needs 0 <= low <= high <= 100; got low {low}, high {high}"
        )
    clipped = slices.to(torch.float64, copy=True)
    for image in clipped:
        for k in mask.flatten(0, 1).any(0).nonzero().flatten().tolist():
            bounds = percentiles(image[..., k][mask[..., k] != 0], (low, high))
            image[..., k].clamp_(bounds[0], bounds[1])
    return clipped.to(torch.float64 if slices.dtype == torch.float64 else torch.float32)


def _centred(cine: Volume, lge: Volume) -> Tensor:
    """(4, 4): cine slices in their own spacing, centred on the LGE slices."""
    world = lge.world_from_vox.clone()
    middle = torch.tensor([(n - 1) / 2 for n in lge.shape[:2]], dtype=torch.float64)
    world[:, 3] += world[:, :2] @ middle
    for axis in range(2):
        world[:, axis] *= cine.spacing_mm[axis] / lge.spacing_mm[axis]
        world[:, 3] -= (cine.shape[axis] - 1) / 2 * world[:, axis]
    return world
