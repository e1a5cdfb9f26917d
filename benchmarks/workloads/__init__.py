"""The workloads: what is computed, by which libraries, and the minimum of data to move.

Each builder takes a size factor and returns a Workload whose variants all compute the same. Their
results are compared with ours before anything is timed. Peers that are not installed are left out.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.workloads.jobs import Job, flair_inference, slice_inference, step_of
from benchmarks.workloads.loading import patches_3d, reading, slices_2d
from benchmarks.workloads.patches import extract_2d, extract_3d, merge_3d
from benchmarks.workloads.sampling import affine_2d, resample_3d
from benchmarks.workloads.training import dice_2d, dice_3d, pairing
from benchmarks.workloads.workload import Workload

#: Code in the tables -> (title, builder).
WORKLOADS: dict[str, tuple[str, Callable[[], Workload]]] = {
    "E3": ("`extract_patches`: 40 of 56³ from a FLAIR pair and 5 masks", extract_3d),
    "E2": ("`extract_patches` + `window_counts`: 2560 pairs of 64²", extract_2d),
    "N32": ("`nt_xent`: 32 x 128, forward + backward", lambda: pairing(32)),
    "N4k": ("`nt_xent`: 4096 x 128, forward + backward", lambda: pairing(4096)),
    "D3": ("`batch_dice_loss`: (40, 5, 56³), forward + backward", dice_3d),
    "D2": ("`dice_ce_loss`: (40, 4, 224²), forward + backward", dice_2d),
    "A2": ("`affine_sample`: (16, 4, 224²), forward", affine_2d),
    "A2b": ("`affine_sample`: the same, forward + backward", lambda: affine_2d(backward=True)),
    "A3": ("`resample`: to 225x270x225, rotated", lambda: resample_3d(rotated=True)),
    "R3": ("`resample`: to 225x270x225, spacing only", resample_3d),
    "M3": ("`merge_patches`: 252 of 56³ into 225x270x225", merge_3d),
}

#: The workload that times each public op: a new op needs one.
MEASURES: dict[str, Callable[..., Workload]] = {
    "affine_sample": affine_2d,
    "dice_ce_sums": dice_2d,
    "extract_patches": extract_3d,
    "merge_patches": merge_3d,
    "nt_xent": pairing,
    "resample": resample_3d,
    "warp_pair": slices_2d,
    "window_counts": extract_2d,
}

#: The same for data loading.
LOADING: dict[str, tuple[str, Callable[[], Workload]]] = {
    "P3": ("epoch of 80 patches of 56³: FLAIR pair, 5 masks", patches_3d),
    "S2": ("epoch of 80 slices of 224², warped with 2 masks", slices_2d),
    "RI": ("reading .nii.gz: FLAIR, int16", lambda: reading("int16")),
    "RF": ("reading .nii.gz: FLAIR, float32", lambda: reading("float32")),
    "RM": ("reading .nii.gz: lesion mask, uint8", lambda: reading("mask")),
}

_JOBS = {
    "siamese_lesion": Job("siamese_lesion", 32),
    "joint_scar": Job("joint_scar", 2),
    "joint_registration": Job("joint_registration", 4),
    "new_lesions": Job("new_lesions", 4, shrink=2, recipe={"spacing_mm": 1.6, "bias_field": False}),
    "adversarial_transfer": Job("adversarial_transfer", 4, recipe={"lge_masks": 1}),
}
#: Whole jobs: a training step of each method, and inference on one case.
JOBS: dict[str, tuple[str, Callable[[], Workload]]] = {
    **{
        f"{name}, step": (f"batch {job.batch}, with data", lambda job=job: step_of(job))
        for name, job in _JOBS.items()
    },
    **{
        f"{name}, inference": ("8 slices or patches", lambda job=job: slice_inference(job))
        for name, job in ((name, replace(job, batch=8)) for name, job in _JOBS.items())
        if name != "new_lesions"
    },
    "new_lesions, inference": ("FLAIR pair of 225x270x225, 252 windows", flair_inference),
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
    "A3 x16": ("`resample`: 16 times the voxels, rotated", lambda: resample_3d(16, rotated=True)),
    "R3 x16": ("`resample`: 16 times the voxels, spacing only", lambda: resample_3d(16)),
    "M3 x16": ("`merge_patches`: 56³ into 3600x270x225", lambda: merge_3d(16)),
}

#: Size sweeps: op -> (builder, sizes).
GROWTH: dict[str, tuple[Callable[[float], Workload], tuple[float, ...]]] = {
    "extract_patches": (extract_3d, (0.1, 0.25, 0.5, 1, 2)),
    "merge_patches": (merge_3d, (0.25, 0.5, 1, 2)),
    "affine_sample": (affine_2d, (0.0625, 0.25, 1, 4, 8)),
    "resample": (resample_3d, (0.05, 0.25, 0.5, 1, 2)),
    "dice_ce_sums": (dice_2d, (0.025, 0.25, 0.5, 1, 2)),
    "nt_xent": (lambda n: pairing(int(n)), (128, 256, 512, 1024, 2048, 4096)),
}
