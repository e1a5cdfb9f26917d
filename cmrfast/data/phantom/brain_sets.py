"""Phantom FLAIR pairs in the layouts of MSSEG-2 and open_ms_data."""

from pathlib import Path

import numpy as np

from cmrfast.data.phantom.heart_sets import write_image
from cmrfast.data.phantom.lesions import (
    draw_changes,
    draw_histories,
    draw_visits,
    rate_lesions,
)
from cmrfast.data.phantom.scanner import Grid, Random
from cmrfast.data.phantom.visits import Head, acquire, brain_mask, random_signals, render

_FIELD_MM = np.array([178.0, 218, 172])
_MISPLACED_MM = 0.35
#: Voxel sizes of the scanners in each data set, mm.
_ISOTROPIC = ((1.0, 1.0, 1.0), (0.9, 0.9, 1.2), (1.0, 1.0, 1.5))
_THICK = ((0.72, 0.72, 3.0), (0.57, 0.57, 3.3))


def write_msseg2(root: Path, number: int, cases: int, rng: Random, shrink: float) -> None:
    """Two FLAIR in a halfway space, consensus and four raters; no new lesions in every fourth.

    Most of the others have one to three new lesions.

    The public data set lacks ``lesions.nii.gz``, which labels every lesion by its history, see
    ``lesions.HISTORIES``, and the masks of all lesions of a visit.
    """
    head = Head.random(rng, _new_lesions(rng, number))
    common = _common(rng, np.full(3, rng.uniform(0.9, 1.1)) * shrink)
    folder = root / f"{11 + 2 * number + number // 3:03d}"  # the public numbers have gaps
    for visit, images in enumerate(_visits(rng, head, common, ("FLAIR",), _ISOTROPIC, shrink)):
        path = folder / f"flair_time0{visit + 1}_on_middle_space.nii.gz"
        write_image(path, images[0], common.frame_from_vox)
    lesions = head.lesions, head.brain.fine, _in_brain(head, common)
    write_image(folder / "lesions.nii.gz", draw_histories(*lesions), common.frame_from_vox)
    for visit, mask in enumerate(draw_visits(*lesions), 1):
        write_image(folder / f"all_lesions_time0{visit}.nii.gz", mask, common.frame_from_vox)
    masks = rate_lesions(rng, *lesions)
    names = ["ground_truth", *(f"ground_truth_expert{rater}" for rater in range(1, 5))]
    for name, mask in zip(names, masks, strict=True):
        write_image(folder / f"{name}.nii.gz", mask, common.frame_from_vox)


def write_open_ms(root: Path, number: int, cases: int, rng: Random, shrink: float) -> None:
    """FLAIR, T1W and T2W at two visits with thick slices, brain mask, mask of all changes."""
    head = Head.random(rng, _new_lesions(rng, number))
    common = _common(rng, np.array([0.72 * shrink, 0.72 * shrink, 3.0]))
    folder = root / "longitudinal" / "coregistered" / f"patient{number:02d}"
    contrasts = ("FLAIR", "T1W", "T2W")
    for visit, images in enumerate(_visits(rng, head, common, contrasts, _THICK, shrink)):
        for contrast, image in zip(contrasts, images, strict=True):
            path = folder / f"study{visit + 1}_{contrast}.nii.gz"
            write_image(path, image, common.frame_from_vox)
    mask = draw_changes(head.lesions, head.brain.fine, _in_brain(head, common))
    write_image(folder / "gt.nii.gz", mask, common.frame_from_vox)
    brain = brain_mask(head, common).astype(np.int16)
    write_image(folder / "brainmask.nii.gz", brain, common.frame_from_vox)
    table = root / "longitudinal" / "patient_info.csv"
    if not table.exists():
        table.write_text("patient_id,sex,days_between_studies,age,ms_type\n")
    sex, days, age = rng.choice(["M", "F"]), rng.integers(90, 900), rng.integers(22, 60)
    with table.open("a") as file:
        file.write(f"{number},{sex},{days},{age},RR\n")


def _new_lesions(rng: Random, number: int) -> int:
    count = int(rng.integers(4, 10) if rng.random() < 0.3 else rng.integers(1, 4))
    return 0 if number % 4 == 3 else count


def _common(rng: Random, spacing_mm: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Grid:
    """The halfway space, with x to the left and y to the back, as in DICOM."""
    i, j, k = np.ceil((_FIELD_MM + rng.uniform(-4, 8, 3)) / spacing_mm).astype(int).tolist()
    world_from_vox = np.diag([*(spacing_mm * [-1, -1, 1]), 1.0])
    world_from_vox[:3, 3] = [0, -2, 8] - world_from_vox[:3, :3] @ [(i - 1) / 2, (j - 1) / 2, k / 2]
    return Grid((i, j, k), world_from_vox)


def _in_brain(head: Head, common: Grid) -> Grid:
    return Grid(common.shape, head.brain_from_world @ common.frame_from_vox)


def _visits(
    rng: Random,
    head: Head,
    common: Grid,
    contrasts: tuple[str, ...],
    scanners: tuple[tuple[float, float, float], ...],
    shrink: float,
) -> list[np.ndarray[tuple[int, ...], np.dtype[np.int16]]]:
    """Images of both visits, (C, I, J, K) each; half of the patients changed scanner."""
    voxels = [scanners[n] for n in rng.integers(0, len(scanners), 2)]
    signals = [random_signals(rng, contrasts) for _ in voxels]
    if rng.random() < 0.5:
        voxels[1], signals[1] = voxels[0], signals[0]
    count = len(contrasts)
    images = render(head, [*signals[0], *signals[1]], [0] * count + [1] * count, shrink)
    return [
        acquire(
            rng,
            head,
            images[visit * count : (visit + 1) * count],
            shrink,
            [voxel[0] * shrink, voxel[1] * shrink, max(voxel[2], shrink)],
            common,
            _MISPLACED_MM,
        )
        for visit, voxel in enumerate(voxels)
    ]
