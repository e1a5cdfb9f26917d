"""Lesions in T1 maps: patches all over the myocardium, classified and merged into a map."""

from typing import NamedTuple

import torch
from torch import Tensor

from cmrfast.data.prepare import resample_labels, spacing_grid
from cmrfast.data.slices import slice_plane
from cmrfast.data.t1_units import t1_in_ms
from cmrfast.data.volume import Volume
from cmrfast.infer import predict_batches
from cmrfast.models.siamese_lesion import SiameseLesion
from cmrfast.ops import PatchMerger, extract_patches, resample


class LesionMap(NamedTuple):
    """Lesion probability of the myocardium of a T1 map.

    Attributes:
        map: (1, I, J, K) float32 probability of lesion near a voxel; 0 outside the myocardium.
        slices: (P,) int64, the slice of each patch.
        center_mm: (P, 3) float64, its centre in the scanner.
        probability: (P,) float32, that it holds a lesion; its class is ``probability > 0.5``.
    """

    map: Volume
    slices: Tensor
    center_mm: Tensor
    probability: Tensor


def classify(
    model: SiameseLesion,
    t1: Volume,
    myocardium: Volume,
    *,
    mean_ms: float,
    sd_ms: float,
    clip_sd: float = 4.0,
    spacing_mm: float = 1.0,
    stride: int = 6,
    batch: int = 64,
) -> LesionMap:
    """Find lesions from T1 alone.

    The map is, at each voxel, the mean of all patches that cover it, weighted by a Gaussian of
    ``stride`` about their centres. Holds one slice and its patches.

    Args:
        model: a ``SiameseLesion`` in evaluation mode.
        t1: one channel, ms (seconds and tenths of ms are converted, with a warning).
        myocardium: on the grid of ``t1``, nonzero inside.
        mean_ms, sd_ms: of the myocardium of the training patients.
        clip_sd: T1 is clipped to the mean ± this many SD.
        spacing_mm: of the patches' pixels.
        stride: between the centres of neighbouring patches, in such pixels.
        batch: patches in one forward pass.

    Example:
        >>> from cmrfast.models import build
        >>> t1 = Volume(torch.full((1, 40, 40, 2), 1000.0), torch.eye(4))
        >>> wall = t1.with_data(torch.zeros(1, 40, 40, 2, dtype=torch.bool))
        >>> wall.data[:, 10:30, 10:16] = True
        >>> model = build("siamese_lesion", patch=32, channels=(4, 4, 4, 4), hidden=8).eval()
        >>> result = classify(model, t1, wall, mean_ms=1000, sd_ms=80)
        >>> result.map.shape, len(result.probability)
        ((40, 40, 2), 6)
    """
    if t1.channels != 1 or myocardium.channels != 1 or not myocardium.shares_grid(t1):
        raise ValueError(
            "classify: t1 and myocardium must have one channel each, on one grid; "
            f"got {tuple(t1.data.shape)} and {tuple(myocardium.data.shape)}"
        )
    side = model.config.patch
    device = next(model.parameters()).device
    t1 = t1_in_ms(t1)
    size = (side, side)
    weight = _bell(side, stride).to(device)
    near = torch.zeros(t1.data.shape)
    slices, centers, probabilities = [], [], []
    for k in range(t1.shape[2]):
        native, wall = slice_plane(t1, k), slice_plane(myocardium, k)
        shape, grid = spacing_grid(native.data.shape[1:], native.world_from_vox, [spacing_mm] * 2)
        values = native.data.to(device).float()
        image = standardise(
            resample(values, native.world_from_vox, grid, shape, fill=float("nan"), antialias=True),
            mean_ms,
            sd_ms,
            clip_sd,
        )
        region = resample_labels(wall.data[0] != 0, native.world_from_vox, grid, shape)
        center = patch_centers(region, stride)
        if not len(center):
            continue
        merger = PatchMerger(shape, 1, size, weight=weight, device=device)
        starts = (center - side // 2).to(device)
        patches = extract_patches(image, starts, size)
        for outputs, start in zip(
            predict_batches("siamese_lesion", model, {"t1": patches}, batch),
            starts.split(batch),
            strict=True,
        ):
            probability = outputs["logits"].float().softmax(1)[:, 1]
            merger.add(probability[:, None, None, None].expand(-1, 1, *size), start)
            probabilities.append(probability.cpu())
        merged = merger.merged().cpu()
        on_grid = resample(merged, grid, native.world_from_vox, native.data.shape[1:])
        near[..., k] = torch.where(wall.data.cpu() != 0, on_grid, 0.0)
        slices.append(torch.full((len(center),), k))
        centers.append(center.double() @ grid[:3, :2].T + grid[:3, 3])
    empty = torch.zeros(0)
    return LesionMap(
        map=t1.with_data(near),
        slices=torch.cat((empty.long(), *slices)),
        center_mm=torch.cat((empty.double().view(0, 3), *centers)),
        probability=torch.cat((empty, *probabilities)),
    )


def standardise(t1_ms: Tensor, mean_ms: float, sd_ms: float, clip_sd: float = 4.0) -> Tensor:
    """T1 in standard deviations about the mean, float32, clipped; 0 where it is not finite.

    Air and lung have no T1: there a map is noise of many SD, which would drown the myocardium.
    Slices are NaN outside the map.
    """
    scaled = (t1_ms.float() - mean_ms) / sd_ms
    return torch.where(scaled.isfinite(), scaled.clamp(-clip_sd, clip_sd), 0.0)


def patch_centers(myocardium: Tensor, stride: int) -> Tensor:
    """Centres of the patches: myocardium on a grid of ``stride`` about its own centroid.

    The grid moves with the heart, so patches do not depend on the image's border.

    Args:
        myocardium: (I, J), nonzero inside.
        stride: in pixels.

    Returns:
        (P, 2) int64.

    Example:
        >>> patch_centers(torch.ones(5, 3), 2).tolist()
        [[0, 1], [2, 1], [4, 1]]
    """
    where = myocardium.nonzero()
    middle = (where.double().mean(0) + 0.5).floor()
    return where[((where - middle) % stride == 0).all(1)]


def _bell(side: int, sigma: float) -> Tensor:
    """(side, side) Gaussian about the pixel side // 2."""
    at = torch.arange(side, dtype=torch.float64) - side // 2
    line = torch.exp(-(at / sigma).square() / 2)
    return torch.outer(line, line).float()
