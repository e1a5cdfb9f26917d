"""MONAI's classes on the ops of this package: the same arguments, and the same results.

Each class extends the one of its name in the installed MONAI, so that arguments, random numbers,
metadata and inverses are MONAI's. Results are equal up to rounding, including the rounding of
positions: where a sample falls between two voxels of a label, to 1e-4 voxels, either may be taken.
What cannot be kept raises a ``ValueError`` that names the argument.
"""

try:
    import monai  # noqa: F401
except ImportError as error:
    raise ImportError(
        "compat.monai: MONAI is needed; install it with pip install 'cmrfast[monai]'"
    ) from error

from cmrfast.compat.monai.crop import RandCropByPosNegLabeld
from cmrfast.compat.monai.inferer import SlidingWindowInferer
from cmrfast.compat.monai.losses import DiceCELoss, DiceLoss
from cmrfast.compat.monai.rand_affine import RandAffined
from cmrfast.compat.monai.spacing import Spacingd

__all__ = [
    "DiceCELoss",
    "DiceLoss",
    "RandAffined",
    "RandCropByPosNegLabeld",
    "SlidingWindowInferer",
    "Spacingd",
]
