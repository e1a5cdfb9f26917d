"""Image preparation that several methods share, as functions of tensors.

Axes are in NIfTI's order; volumes are (C, *S) with a (4, 4) ``world_from_vox``.
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
