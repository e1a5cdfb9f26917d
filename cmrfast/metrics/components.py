"""Connected components of masks, and lesion-wise scores based on them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cmrfast.metrics.masks import require_masks, require_spacing


def connected_components(mask: Tensor) -> tuple[Tensor, int]:
    """Label the connected components of a mask, with 8 (2-D) or 26 (3-D) neighbours.

    Args:
        mask: (*S) with 2 or 3 axes, bool or integer, nonzero inside.

    Returns:
        (*S) int32, 0 outside, components numbered 1, 2, … by their first voxel; and their count.

    Example:
        >>> connected_components(torch.tensor([[1, 0, 0, 1], [0, 1, 0, 1]]))
        (tensor([[1, 0, 0, 2],
                 [0, 1, 0, 2]], dtype=torch.int32), 2)
    """
    inside, _ = require_masks("connected_components", mask, mask)
    if mask.dim() not in (2, 3):
        raise ValueError(
            f"connected_components: mask must have 2 or 3 axes; got {tuple(mask.shape)}"
        )
    label, count = _label_voxels(inside)
    labels = torch.zeros(mask.shape, dtype=torch.int32, device=mask.device)
    labels[inside] = label.to(torch.int32)
    return labels, count


class LesionScores(NamedTuple):
    """Scores of a lesion segmentation by its connected components."""

    f1: float
    sensitivity: float
    precision: float
    reference_count: int
    found_count: int
    predicted_count: int
    false_count: int
    reference_volume_mm3: float
    predicted_volume_mm3: float
    false_volume_mm3: float


def lesion_scores(
    prediction: Tensor,
    reference: Tensor,
    spacing_mm: Sequence[float],
    *,
    overlap: float = 0.1,
    min_volume_mm3: float = 0.0,
) -> LesionScores:
    """Lesion-wise scores: how many lesions are detected, and how many detections are false.

    A lesion is a connected component (8 or 26 neighbours). A reference lesion is found, and a
    predicted lesion is true, if the other mask covers at least ``overlap`` of its volume.
    Sensitivity is the fraction of reference lesions that are found, precision the fraction of
    predicted lesions that are true, F1 their harmonic mean. All three are 1 if both masks are
    empty, and 0 if one is.

    Args:
        prediction: (*S) with 2 or 3 axes, bool or integer, nonzero inside.
        reference: same shape.
        spacing_mm: voxel edges, one entry per axis; in 2-D, volumes are areas in mm².
        overlap: smallest fraction of a component's volume, in (0, 1].
        min_volume_mm3: smaller components of either mask are removed first.
    """
    masks = require_masks("lesion_scores", prediction, reference)
    if prediction.dim() not in (2, 3):
        raise ValueError(
            f"lesion_scores: masks must have 2 or 3 axes; got {tuple(prediction.shape)}"
        )
    spacing = require_spacing("lesion_scores", spacing_mm, prediction.dim())
    if not 0 < overlap <= 1:
        raise ValueError(f"lesion_scores: overlap must lie in (0, 1]; got {overlap}")
    voxel = float(torch.tensor(spacing, dtype=torch.float64).prod())
    kept = [_remove_small(m, min_volume_mm3 / voxel) for m in masks]
    volumes, hits = [], []
    for own, other in ((0, 1), (1, 0)):
        label, count = _label_voxels(kept[own])
        volume = torch.bincount(label, minlength=count + 1)[1:]
        shared = torch.bincount(label[kept[other][kept[own]]], minlength=count + 1)[1:]
        volumes.append(volume)
        # In whole voxels, with a tolerance: 0.1 · 10 must not round up to 2 of 10 voxels.
        hits.append(shared >= (overlap * volume.double() - 1e-9).ceil())
    predicted, actual = (len(v) for v in volumes)
    true, found = (int(h.sum()) for h in hits)
    sensitivity = found / actual if actual else float(not predicted)
    precision = true / predicted if predicted else float(not actual)
    total = sensitivity + precision
    return LesionScores(
        f1=2 * sensitivity * precision / total if total else 0.0,
        sensitivity=sensitivity,
        precision=precision,
        reference_count=actual,
        found_count=found,
        predicted_count=predicted,
        false_count=predicted - true,
        reference_volume_mm3=voxel * int(volumes[1].sum()),
        predicted_volume_mm3=voxel * int(volumes[0].sum()),
        false_volume_mm3=voxel * int(volumes[0][~hits[0]].sum()),
    )


def _remove_small(mask: Tensor, min_voxels: float) -> Tensor:
    """Remove the components with fewer than ``min_voxels`` voxels."""
    if min_voxels <= 1:
        return mask
    label, count = _label_voxels(mask)
    large = torch.bincount(label, minlength=count + 1) >= min_voxels - 1e-9
    kept = mask.clone()
    kept[mask] = large[label]
    return kept


def _label_voxels(mask: Tensor) -> tuple[Tensor, int]:
    """The component number, from 1, of each true voxel in order; and the number of components.

    Runs of true voxels along the last axis are the nodes of a graph; runs of neighbouring rows
    that touch are its edges.
    """
    solid = mask[None] if mask.dim() == 2 else mask
    _, width, n = solid.shape
    # Pad one false voxel after each row and one row all around, so that neighbours never wrap.
    padded = torch.nn.functional.pad(solid, (0, 1, 1, 1, 1, 1)).flatten().to(torch.int8)
    steps = padded.diff(prepend=padded.new_zeros(1))
    first, end = (steps == 1).nonzero()[:, 0], (steps == -1).nonzero()[:, 0]
    row = n + 1
    edges = [
        _touching(first, end, (di * (width + 2) + dj) * row)
        for di, dj in (
            (0, 1),
            (1, -1),
            (1, 0),
            (1, 1),
        )  # symmetric: the other four rows add no edges
    ]
    root = _roots(len(first), torch.cat(edges, 1))
    number = (root == torch.arange(len(root), device=root.device)).cumsum(0)
    count = int(number[-1]) if len(number) else 0
    return number[root].repeat_interleave(end - first), count


def _touching(first: Tensor, end: Tensor, shift: int) -> Tensor:
    """(2, E) pairs of a run and a run ``shift`` voxels later that touch, corners included."""
    low = torch.searchsorted(end, first + shift)  # their end is at or after our first
    high = torch.searchsorted(first, end + shift, right=True)  # their first is at most our end
    count = (high - low).clamp_(min=0)
    own = torch.repeat_interleave(torch.arange(len(first), device=first.device), count)
    within = torch.arange(len(own), device=own.device) - (count.cumsum(0) - count)[own]
    return torch.stack((own, low[own] + within))


def _roots(nodes: int, edges: Tensor) -> Tensor:
    """The smallest node of each node's component, by hooking roots and compressing paths."""
    root = torch.arange(nodes, device=edges.device)
    while edges.shape[1]:
        a, b = root[edges]
        small, large = torch.minimum(a, b), torch.maximum(a, b)
        root.scatter_reduce_(0, large, small, "amin")
        while not torch.equal(shorter := root[root], root):
            root = shorter
        a, b = root[edges]
        edges = edges[:, a != b]
    return root
