"""Copies of T1/LGE patients for controls, with an image replaced."""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from cmrfast.data import Volume
from cmrfast.data.datasets import Case
from cmrfast.data.nifti import write_nifti
from cmrfast.ops import resample
from cmrfast.train import Run

_T1_MS = (700.0, 1500.0)  # what the darkest and brightest LGE pixels become


def shuffle_lge(trained: Run, root: Path) -> None:
    """Give every training patient the LGE image of another, with the centres of the walls aligned.

    Masks, and so the labels of the patches, stay; so do all other patients.
    """
    train = trained.cases("train")
    for case, other in zip(train, [*train[1:], train[0]], strict=True):
        _copy(case, root)
        write_nifti(root / case.name / "lge.nii.gz", _moved_lge(other, case))
    for case in [*trained.cases("validate"), *trained.cases("test")]:
        _copy(case, root)


def replace_t1_by_lge(trained: Run, root: Path) -> None:
    """Write LGE, scaled to the range of T1, and its wall in place of the T1 map and its wall."""
    for part in ("train", "validate", "test"):
        for case in trained.cases(part):
            _copy(case, root)
            lge = case.image("lge")
            values = lge.data.float()
            low, high = values.min(), values.max().clamp(min=values.min() + 1)
            scaled = _T1_MS[0] + (values - low) / (high - low) * (_T1_MS[1] - _T1_MS[0])
            write_nifti(root / case.name / "t1.nii.gz", lge.with_data(scaled))
            wall = case.label("lge_myocardium")
            write_nifti(root / case.name / "t1_myocardium.nii.gz", wall)


def _copy(case: Case, root: Path) -> None:
    folder = root / case.name
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*case.images.values(), *case.labels.values()):
        shutil.copy(path, folder)


def _moved_lge(other: Case, case: Case) -> Volume:
    """LGE of one patient on the grid of another, slice on slice, with the centres aligned."""
    image, like = other.image("lge"), case.image("lge")
    scale = torch.tensor(image.spacing_mm[:2]) / torch.tensor(like.spacing_mm[:2])
    vox_from_other = torch.eye(4, dtype=torch.float64)
    vox_from_other[[0, 1], [0, 1]] = scale.double()
    center, target = (_wall_center(one) for one in (other, case))
    vox_from_other[:2, 3] = target - scale.double() * center
    moved = resample(
        image.data.float(),
        like.world_from_vox @ vox_from_other,
        like.world_from_vox,
        like.shape,
    )
    return like.with_data(moved)


def _wall_center(case: Case) -> Tensor:
    """Mean voxel (i, j) of the wall in LGE."""
    where: Tensor = case.label("lge_myocardium").data[0].nonzero()[:, :2]
    return where.double().mean(0)
