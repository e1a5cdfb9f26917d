"""The Triton kernels: importing this package fills ``KERNELS``, and needs Triton."""

from cmrfast.ops.triton import affine_sample, dice_ce_sums, extract_patches, nt_xent  # noqa: F401
from cmrfast.ops.triton._launch import KERNELS

__all__ = ["KERNELS"]
