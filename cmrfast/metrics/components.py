"""Connected components of masks, and the scores of lesions counted by them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cmrfast.metrics.masks import require_masks, require_spacing


def connected_components(mask: Tensor) -> tuple[Tensor, int]:
    """Number the components of a mask; corners and edges connect (8 or 26 neighbours).

    Args:
        mask: (*S) with 2 or 3 axes, bool or integer, nonzero inside.

    Returns:
        (*S) int32, 0 outside, 1, 2, … in the order of first voxels; and how many there are.

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
    """Lesion-wise scores: how many lesions are found, and how many findings are none.

    A component (8 or 26 neighbours) of the reference is found, and one of the prediction is true,
    where the other mask covers at least ``overlap`` of its volume. Sensitivity is found over
    reference lesions, precision true over predicted ones, F1 their harmonic mean. With both masks
    empty the three are 1, with one empty 0.

    Args:
        prediction: (*S) with 2 or 3 axes, bool or integer, nonzero inside.
        reference: same shape.
        spacing_mm: edges of a voxel; of a slice, volumes are areas in mm².
        overlap: least share of a component's volume, in (0, 1].
        min_volume_mm3: smaller components of either mask are taken out first.
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
    kept = [_without_small(m, min_volume_mm3 / voxel) for m in masks]
    volumes, hits = [], []
    for own, other in ((0, 1), (1, 0)):
        label, count = _label_voxels(kept[own])
        volume = torch.bincount(label, minlength=count + 1)[1:]
        shared = torch.bincount(label[kept[other][kept[own]]], minlength=count + 1)[1:]
        volumes.append(volume)
        # Whole voxels: a share that binary rounds up by an ulp must not miss 1 of 10.
        hits.append(shared >= (overlap * volume.double() - 1e-9).ceil())
    predicted, real = (len(v) for v in volumes)
    true, found = (int(h.sum()) for h in hits)
    sensitivity = found / real if real else float(not predicted)
    precision = true / predicted if predicted else float(not real)
    total = sensitivity + precision
    return LesionScores(
        f1=2 * sensitivity * precision / total if total else 0.0,
        sensitivity=sensitivity,
        precision=precision,
        reference_count=real,
        found_count=found,
        predicted_count=predicted,
        false_count=predicted - true,
        reference_volume_mm3=voxel * int(volumes[1].sum()),
        predicted_volume_mm3=voxel * int(volumes[0].sum()),
        false_volume_mm3=voxel * int(volumes[0][~hits[0]].sum()),
    )


def _without_small(mask: Tensor, least: float) -> Tensor:
    """The mask without components of fewer voxels."""
    if least <= 1:
        return mask
    label, count = _label_voxels(mask)
    large = torch.bincount(label, minlength=count + 1) >= least - 1e-9
    kept = mask.clone()
    kept[mask] = large[label]
    return kept


def _label_voxels(mask: Tensor) -> tuple[Tensor, int]:
    """The component, from 1, of each true voxel in order; and how many there are.

    Runs along the last axis are nodes; runs of neighbouring rows that touch are edges.
    """
    solid = mask[None] if mask.dim() == 2 else mask
    _, width, n = solid.shape
    # One false voxel after each row and one false row around: neighbours never wrap.
    padded = torch.nn.functional.pad(solid, (0, 1, 1, 1, 1, 1)).flatten().to(torch.int8)
    turns = padded.diff(prepend=padded.new_zeros(1))
    first, end = (turns == 1).nonzero()[:, 0], (turns == -1).nonzero()[:, 0]
    row = n + 1
    edges = [
        _touching(first, end, (di * (width + 2) + dj) * row)
        for di, dj in ((0, 1), (1, -1), (1, 0), (1, 1))  # the other four are the same edges
    ]
    root = _roots(len(first), torch.cat(edges, 1))
    number = (root == torch.arange(len(root), device=root.device)).cumsum(0)
    count = int(number[-1]) if len(number) else 0
    return number[root].repeat_interleave(end - first), count


def _touching(first: Tensor, end: Tensor, shift: int) -> Tensor:
    """(2, E) pairs of a run and one a shift later that it touches, corners included."""
    low = torch.searchsorted(end, first + shift)  # their end is at or after our first
    high = torch.searchsorted(first, end + shift, right=True)  # their first is at most our end
    count = (high - low).clamp_(min=0)
    own = torch.repeat_interleave(torch.arange(len(first), device=first.device), count)
    within = torch.arange(len(own), device=own.device) - (count.cumsum(0) - count)[own]
    return torch.stack((own, low[own] + within))


def _roots(nodes: int, edges: Tensor) -> Tensor:
    """The smallest node of each node's component: roots hook to smaller ones, paths are halved."""
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
