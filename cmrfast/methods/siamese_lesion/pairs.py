"""T1 and LGE slices of one subject on one grid, with the lesion that LGE shows."""

import torch
from torch import Tensor

from cmrfast.data.cache import Tensors
from cmrfast.data.datasets.case import Case
from cmrfast.data.prepare import resample_labels, spacing_grid, z_score
from cmrfast.data.slices import Plane, slice_pairs, slice_plane
from cmrfast.data.t1_units import t1_in_ms
from cmrfast.data.volume import Volume
from cmrfast.errors import FileError
from cmrfast.methods.siamese_lesion.alignment import align_masks
from cmrfast.methods.siamese_lesion.lesions import lesion_mask
from cmrfast.models.recipe import NonFinite
from cmrfast.ops import resample


def read_t1(case: Case, non_finite: NonFinite = "refuse") -> tuple[Volume, Volume]:
    """T1 in ms and the myocardium drawn on it; ``non_finite`` as in ``Case.image``."""
    t1 = case.image("t1", channels=1, non_finite=non_finite)
    myocardium = case.mask_on(t1, "t1_myocardium")
    try:
        return t1_in_ms(t1, name=f"t1 of {case.name}"), myocardium
    except ValueError as error:
        raise FileError(f"siamese_lesion: {error}") from None


def lge_lesion(
    case: Case, *, deviations: float, border_px: int = 0, non_finite: NonFinite = "refuse"
) -> tuple[Volume, Volume, Volume]:
    """LGE, its myocardium and its lesion; if none is drawn, from its brightness, slice by slice.

    On slices without a drawn reference the darkest sector of the myocardium is the reference.

    Args:
        case: of layout t1_lge.
        deviations: a lesion is brighter than healthy muscle's mean plus this many SD.
        border_px: as in ``lesion_mask``.
        non_finite: as in ``Case.image``.
    """
    lge = case.image("lge", channels=1, non_finite=non_finite)
    myocardium = case.mask_on(lge, "lge_myocardium")
    if "lge_lesion" in case.labels:
        return lge, myocardium, case.mask_on(lge, "lge_lesion")
    reference = None
    if "lge_reference" in case.labels:
        reference = case.mask_on(lge, "lge_reference").data[0]
    lesion = torch.zeros_like(myocardium.data)
    i_mm, j_mm, _ = lge.spacing_mm
    for k in myocardium.data[0].any(0).any(0).nonzero().flatten().tolist():
        drawn = reference is not None and bool(reference[..., k].any())
        try:
            lesion[0, ..., k] = lesion_mask(
                lge.data[0, ..., k],
                myocardium.data[0, ..., k],
                reference[..., k] if reference is not None and drawn else None,
                deviations=deviations,
                border_px=border_px,
                spacing_mm=(i_mm, j_mm),
            )
        except ValueError as error:
            raise FileError(f"siamese_lesion: LGE slice {k} of {case.name}: {error}") from None
    return lge, myocardium, myocardium.with_data(lesion)


def aligned_pairs(
    case: Case,
    *,
    spacing_mm: float,
    deviations: float,
    border_px: int = 0,
    non_finite: NonFinite = "refuse",
) -> Tensors:
    """Every T1 slice that lies in an LGE slice, resampled onto its grid after aligning the masks.

    The grid is that of LGE with square pixels of ``spacing_mm``. Pairs where either myocardium is
    empty are left out.

    Args:
        case: of layout t1_lge, with both images and both myocardia.
        spacing_mm: of the pixels.
        deviations, border_px, non_finite: as in ``lge_lesion``.

    Returns:
        ``t1`` (N, 1, I, J) in ms, NaN outside the map; ``lge`` (N, 1, I, J), z-scores of each
        slice; ``myocardium`` and ``lesion`` (N, I, J) uint8, both drawn on LGE; ``t1_slice`` (N,)
        and ``lge_slice`` (N,) int64; ``t1_from_lge`` (N, 4, 4) float64, world to world.

    Raises:
        FileError: a file is missing or odd, or no pair is left.
    """
    t1, t1_wall = read_t1(case, non_finite)
    lge, lge_wall, lesion = lge_lesion(
        case, deviations=deviations, border_px=border_px, non_finite=non_finite
    )
    pairs = []
    for pair in slice_pairs(lge, t1):
        moving, fixed = slice_plane(t1_wall, pair.target), slice_plane(lge_wall, pair.source)
        if not moving.data.any() or not fixed.data.any():
            continue
        aligned = align_masks(
            moving.data[0], fixed.data[0], moving.world_from_vox, fixed.world_from_vox
        )
        shape, grid = spacing_grid(
            fixed.data.shape[1:], fixed.world_from_vox, (spacing_mm, spacing_mm)
        )
        t1_grid = aligned.moving_from_fixed @ grid
        lge_slice = _on_grid(slice_plane(lge, pair.source), grid, shape)
        pairs.append(
            {
                "t1": _on_grid(slice_plane(t1, pair.target), t1_grid, shape, fill=torch.nan),
                "lge": z_score(lge_slice),
                "myocardium": _labels(fixed, grid, shape),
                "lesion": _labels(slice_plane(lesion, pair.source), grid, shape),
                "t1_slice": torch.tensor(pair.target),
                "lge_slice": torch.tensor(pair.source),
                "t1_from_lge": aligned.moving_from_fixed,
            }
        )
    if not pairs:
        raise FileError(
            f"siamese_lesion: no T1 slice with myocardium of {case.name} lies in an LGE slice "
            "with myocardium"
        )
    return {name: torch.stack([pair[name] for pair in pairs]) for name in pairs[0]}


def lesion_on_t1(pairs: Tensors, lesion: Volume, t1: Volume) -> Volume:
    """The lesion on LGE, resampled to the T1 slices: uint8, 0 on slices without a partner."""
    marked = torch.zeros(t1.data.shape, dtype=torch.uint8)
    matches = (pairs[name] for name in ("t1_slice", "lge_slice", "t1_from_lge"))
    for k, source, t1_from_lge in zip(*matches, strict=True):
        grid = torch.linalg.inv(t1_from_lge) @ slice_plane(t1, int(k)).world_from_vox
        marked[0, ..., int(k)] = _labels(slice_plane(lesion, int(source)), grid, t1.shape[:2])
    return t1.with_data(marked)


def _on_grid(image: Plane, grid: Tensor, shape: tuple[int, ...], fill: float = 0.0) -> Tensor:
    """(1, *shape) float32."""
    values = image.data.float()
    return resample(values, image.world_from_vox, grid, shape, fill=fill, antialias=True)


def _labels(mask: Plane, grid: Tensor, shape: tuple[int, ...]) -> Tensor:
    return resample_labels(mask.data[0], mask.world_from_vox, grid, shape)
