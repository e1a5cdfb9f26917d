"""The workloads: what is computed, by which libraries, and the minimum of data to move.

Each builder takes a size factor and returns a Workload whose variants all compute the same. Their
results are compared with ours before anything is timed. Peers that are not installed are left out.
Data loading and whole jobs are in modules of their own, since they need more than torch.
"""

from collections.abc import Callable

import torch

from benchmarks.workloads.intensities import intensities_3d
from benchmarks.workloads.patches import extract_2d, extract_3d, merge_3d
from benchmarks.workloads.sampling import affine_2d, labels_3d, resample_3d, sample_3d
from benchmarks.workloads.training import dice_2d, dice_3d, pairing
from benchmarks.workloads.workload import Workload

#: Code in the tables -> (title, builder).
WORKLOADS: dict[str, tuple[str, Callable[[], Workload]]] = {
    "E3": ("`extract_patches`: 40 of 56³ from a FLAIR pair and 5 masks", extract_3d),
    "E3r": ("`extract_patches`: the same into reused memory", lambda: extract_3d(reuse=True)),
    "E2": ("`extract_patches` + `window_counts`: 2560 pairs of 64²", extract_2d),
    "N32": ("`nt_xent`: 32 x 128, forward + backward", lambda: pairing(32)),
    "N4k": ("`nt_xent`: 4096 x 128, forward + backward", lambda: pairing(4096)),
    "D3": ("`batch_dice_loss`: (40, 5, 56³), forward + backward", dice_3d),
    "D2": ("`dice_ce_loss`: (40, 4, 224²), forward + backward", dice_2d),
    "A2": ("`affine_sample`: (16, 4, 224²), forward", affine_2d),
    "A2b": ("`affine_sample`: the same, forward + backward", lambda: affine_2d(backward=True)),
    "S3": ("`sample_patches`: 8 of 128³ and their labels, turned and scaled", sample_3d),
    "A3": ("`resample`: to 225x270x225, rotated", lambda: resample_3d(rotated=True)),
    "R3": ("`resample`: to 225x270x225, spacing only", resample_3d),
    "RA": ("`resample_argmax`: 14 classes of 96x128x128 to 128x256x256", labels_3d),
    "AI": ("`augment_intensity`: all steps, 8 volumes of 128³", intensities_3d),
    "M3": ("`merge_patches`: 252 of 56³ into 225x270x225", merge_3d),
}

#: The builder that times each public op: a new op needs one.
MEASURES = {
    "affine_sample": "affine_2d",
    "augment_intensity": "intensities_3d",
    "dice_ce_sums": "dice_2d",
    "extract_patches": "extract_3d",
    "merge_patches": "merge_3d",
    "nt_xent": "pairing",
    "resample": "resample_3d",
    "resample_argmax": "labels_3d",
    "sample_patches": "sample_3d",
    "warp_pair": "slices_2d",
    "window_counts": "extract_2d",
}

#: The same, scaled up until they fill a large GPU.
ON_GPU: dict[str, tuple[str, Callable[[], Workload]]] = {
    "E3 x16": ("`extract_patches`: 640 of 56³", lambda: extract_3d(16)),
    "E2 x16": ("`extract_patches` + `window_counts`: 40,960 pairs of 64²", lambda: extract_2d(16)),
    "N16k": ("`nt_xent`: 16,384 x 128, float32", lambda: pairing(16384)),
    "N32k": ("`nt_xent`: 32,768 x 128, bfloat16", lambda: pairing(32768, torch.bfloat16)),
    "D3 x16": ("`batch_dice_loss`: (640, 5, 56³), forward + backward", lambda: dice_3d(16)),
    "D2 x16": ("`dice_ce_loss`: (640, 4, 224²), forward + backward", lambda: dice_2d(16)),
    "A2 x16": ("`affine_sample`: (256, 4, 224²), forward", lambda: affine_2d(16)),
    "A2b x16": (
        "`affine_sample`: the same, forward + backward",
        lambda: affine_2d(16, backward=True),
    ),
    "S3 x16": ("`sample_patches`: 128 of 128³ and their labels", lambda: sample_3d(16)),
    "A3 x16": ("`resample`: 16 times the voxels, rotated", lambda: resample_3d(16, rotated=True)),
    "R3 x16": ("`resample`: 16 times the voxels, spacing only", lambda: resample_3d(16)),
    "RA x16": ("`resample_argmax`: 16 times the voxels", lambda: labels_3d(16)),
    "AI x16": ("`augment_intensity`: 16 times the voxels", lambda: intensities_3d(16)),
    "M3 x16": ("`merge_patches`: 56³ into 3600x270x225", lambda: merge_3d(16)),
}

#: Size sweeps: op -> (builder, sizes).
GROWTH: dict[str, tuple[Callable[[float], Workload], tuple[float, ...]]] = {
    "extract_patches": (extract_3d, (0.1, 0.25, 0.5, 1, 2)),
    "merge_patches": (merge_3d, (0.25, 0.5, 1, 2)),
    "affine_sample": (affine_2d, (0.0625, 0.25, 1, 4, 8)),
    "resample": (resample_3d, (0.05, 0.25, 0.5, 1, 2)),
    "resample_argmax": (labels_3d, (0.05, 0.25, 0.5, 1)),
    "augment_intensity": (intensities_3d, (0.05, 0.25, 0.5, 1)),
    "dice_ce_sums": (dice_2d, (0.025, 0.25, 0.5, 1, 2)),
    "nt_xent": (lambda n: pairing(int(n)), (128, 256, 512, 1024, 2048, 4096)),
}
