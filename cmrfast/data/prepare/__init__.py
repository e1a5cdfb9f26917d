"""What the five methods do to images before the network sees them: functions of tensors.

Axes are those of NIfTI, volumes (C, *S) with (4, 4) ``world_from_vox``; no file is read here.
"""

from cmrfast.data.prepare.alignment import Alignment, align_masks
from cmrfast.data.prepare.brain import brain_union, correct_bias, foreground
from cmrfast.data.prepare.grid import (
    crop_or_pad,
    resample_labels,
    resample_to_spacing,
    spacing_grid,
)
from cmrfast.data.prepare.histogram import histogram_landmarks, standardise_histogram
from cmrfast.data.prepare.intensity import clip_percentiles, min_max, z_score
from cmrfast.data.prepare.labels import remap_labels, transfer_slices
from cmrfast.data.prepare.lesions import lesion_mask, patch_labels, reference_sector

__all__ = [
    "Alignment",
    "align_masks",
    "brain_union",
    "clip_percentiles",
    "correct_bias",
    "crop_or_pad",
    "foreground",
    "histogram_landmarks",
    "lesion_mask",
    "min_max",
    "patch_labels",
    "reference_sector",
    "remap_labels",
    "resample_labels",
    "resample_to_spacing",
    "spacing_grid",
    "standardise_histogram",
    "transfer_slices",
    "z_score",
]
