"""Preparation of images that several methods share: functions of tensors.

Axes are those of NIfTI, volumes (C, *S) with (4, 4) ``world_from_vox``; no file is read here.
"""

from cmrfast.data.prepare.grid import crop_or_pad, resample_labels, spacing_grid
from cmrfast.data.prepare.intensity import min_max, percentiles, z_score

__all__ = [
    "crop_or_pad",
    "min_max",
    "percentiles",
    "resample_labels",
    "spacing_grid",
    "z_score",
]
