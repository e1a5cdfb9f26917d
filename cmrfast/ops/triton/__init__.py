"""The Triton kernels: importing this package fills ``KERNELS``, and needs Triton."""

from cmrfast.ops.triton import (  # noqa: F401
    affine_sample,
    augment_intensity,
    contract_axis,
    dice_ce_loss,
    dice_ce_sums,
    extract_patches,
    merge_patches,
    nt_xent,
    resample_argmax,
    sample_patches,
    vox_from_vox,
    window_counts,
)
from cmrfast.ops.triton._launch import KERNELS

__all__ = ["KERNELS"]
