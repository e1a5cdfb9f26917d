"""Lesion masks from the brightness of healthy muscle, and labels of patches from them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrfast.ops import window_counts

_LEAST = 10  # fewest reference pixels for a standard deviation


def lesion_mask(
    image: Tensor,
    myocardium: Tensor,
    reference: Tensor | None = None,
    *,
    deviations: float = 6.0,
    border_px: int = 0,
    spacing_mm: Sequence[float] = (1.0, 1.0),
) -> Tensor:
    """Myocardium brighter than healthy muscle's mean plus six (sample) standard deviations.

    Pixels of the border may hold blood or fat in part and be bright without a lesion. With
    ``border_px`` they count only near a bright pixel within.

    Args:
        image: (I, J), an LGE slice, real.
        myocardium: (I, J), nonzero inside; the result lies within.
        reference: (I, J), nonzero in healthy muscle, at least 10 pixels; default
            ``reference_sector``.
        deviations: how many standard deviations; brighter is strict.
        border_px: width of the border; 0 is the rule as published.
        spacing_mm: in plane; used for the sector only.

    Returns:
        (I, J) bool.
    """
    if reference is None:
        reference = reference_sector(image, myocardium, spacing_mm=spacing_mm)
    _require_slices("lesion_mask", image, myocardium=myocardium, reference=reference)
    healthy = image[reference != 0].double()
    if len(healthy) < _LEAST:
        raise ValueError(
            f"lesion_mask: the reference region must have at least {_LEAST} pixels; "
            f"got {len(healthy)}"
        )
    limit = healthy.mean() + deviations * healthy.std()
    inside = myocardium != 0
    bright = (image.double() > limit) & inside
    return bright & _grow(bright & ~_grow(~inside, border_px), border_px)


def _grow(mask: Tensor, pixels: int) -> Tensor:
    """The pixels within a square of ``pixels`` about those of a mask."""
    near = F.max_pool2d(mask[None].float(), 2 * pixels + 1, stride=1, padding=pixels)
    return near[0] > 0


def reference_sector(
    image: Tensor,
    myocardium: Tensor,
    *,
    degrees: int = 60,
    spacing_mm: Sequence[float] = (1.0, 1.0),
) -> Tensor:
    """The sector of the myocardium with the lowest mean, a substitute for marked healthy muscle.

    Sectors rotate about the myocardium's centroid in steps of one degree; those of fewer than 10
    pixels do not count.

    Args:
        image: (I, J), real.
        myocardium: (I, J), nonzero inside.
        degrees: width of the sector.
        spacing_mm: in plane.

    Returns:
        (I, J) bool.
    """
    _require_slices("reference_sector", image, myocardium=myocardium)
    if len(spacing_mm) != 2 or not 1 <= degrees <= 360:
        raise ValueError(
            "reference_sector: needs 2 spacings and 1 to 360 degrees; "
            f"got {len(spacing_mm)} and {degrees}"
        )
    where = (myocardium != 0).nonzero()
    away = (where - where.double().mean(0)) * where.new_tensor(spacing_mm, dtype=torch.float64)
    turn = torch.rad2deg(torch.atan2(away[:, 1], away[:, 0])).floor().long() % 360
    values = image[where[:, 0], where[:, 1]].double()
    counts, sums = (
        torch.bincount(turn, weights=w, minlength=360).double()
        for w in (torch.ones_like(values), values)
    )
    window = (torch.arange(360)[:, None] + torch.arange(degrees)).to(turn.device) % 360
    counts, sums = counts[window].sum(1), sums[window].sum(1)
    if not (counts >= _LEAST).any():
        raise ValueError(
            f"reference_sector: no sector of {degrees} degrees has {_LEAST} pixels; "
            f"the myocardium has {len(where)}"
        )
    first = torch.where(counts >= _LEAST, sums / counts, torch.inf).argmin()
    chosen = (turn - first) % 360 < degrees
    sector = torch.zeros(image.shape, dtype=torch.bool, device=image.device)
    sector[where[chosen, 0], where[chosen, 1]] = True
    return sector


def patch_labels(
    lesions: Tensor | Sequence[Tensor],
    start_vox: Tensor,
    size: Sequence[int],
    *,
    volume_index: Tensor | None = None,
    share: float = 0.25,
) -> Tensor:
    """Which patches hold at least a fraction of all lesion pixels of their slice.

    Args:
        lesions: (*S), (V, *S) or a list of (*S_v), nonzero in lesions.
        start_vox: (P, d) first voxel of each patch.
        size: of the patches.
        volume_index: (P,) slice of each patch; default the first.
        share: fraction of the slice's lesion; a patch with exactly this fraction is positive.

    Returns:
        (P,) bool; False on slices without a lesion.

    Example:
        >>> lesions = torch.zeros(8, 8)
        >>> lesions[0, :4] = 1
        >>> patch_labels(lesions, torch.tensor([[0, 3], [0, 4], [0, 0]]), (2, 2)).tolist()
        [True, False, True]
    """
    if not 0 < share <= 1:
        raise ValueError(f"patch_labels: share must lie in (0, 1]; got {share}")
    held = window_counts(lesions, start_vox, size, volume_index=volume_index)
    axes = len(tuple(size))
    masks = lesions.reshape(-1, *lesions.shape[-axes:]) if isinstance(lesions, Tensor) else lesions
    totals = torch.stack([torch.count_nonzero(m) for m in masks]).to(held.device)
    whole = totals[0] if volume_index is None else totals[volume_index.long()]
    # In whole pixels, with a tolerance: 0.07 · 100 must not round up to 8 of 100 pixels.
    least = (share * whole.double() - 1e-9).ceil()
    return (held > 0) & (held >= least)  # without a lesion, least is 0


def _require_slices(who: str, image: Tensor, **masks: Tensor) -> None:
    if image.dim() != 2:
        raise ValueError(f"{who}: image must be one slice (I, J); got {tuple(image.shape)}")
    for name, mask in masks.items():
        if mask.shape != image.shape:
            raise ValueError(
                f"{who}: {name} must have the image's shape {tuple(image.shape)}; "
                f"got {tuple(mask.shape)}"
            )
