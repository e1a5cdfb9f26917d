"""The ops: pure functions of tensors, each on the fastest kernel there is for its device."""

from cmrfast.ops import dice_ce_loss  # noqa: F401  (declares the op of cmrfast.losses)
from cmrfast.ops._backend import backends, load
from cmrfast.ops.affine_sample import affine_sample
from cmrfast.ops.augment_intensity import augment_intensity
from cmrfast.ops.cover_starts import cover_starts
from cmrfast.ops.dice_ce_sums import dice_ce_sums
from cmrfast.ops.extract_patches import extract_patches
from cmrfast.ops.merge_patches import PatchMerger, merge_patches
from cmrfast.ops.nt_xent import nt_xent
from cmrfast.ops.resample import resample
from cmrfast.ops.resample_argmax import resample_argmax
from cmrfast.ops.sample_patches import sample_patches
from cmrfast.ops.volume_store import VolumeStore
from cmrfast.ops.warp_pair import warp_pair
from cmrfast.ops.window_counts import window_counts

load()

__all__ = [
    "PatchMerger",
    "VolumeStore",
    "affine_sample",
    "augment_intensity",
    "backends",
    "cover_starts",
    "dice_ce_sums",
    "extract_patches",
    "merge_patches",
    "nt_xent",
    "resample",
    "resample_argmax",
    "sample_patches",
    "warp_pair",
    "window_counts",
]
