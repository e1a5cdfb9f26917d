"""Phantom FLAIR pairs in the layouts of MSSEG-2 and open_ms_data."""

from pathlib import Path

import numpy as np

from cmrfast.data.phantom.heart_sets import write
from cmrfast.data.phantom.lesions import changes, histories, rate
from cmrfast.data.phantom.scanner import Grid, Random
from cmrfast.data.phantom.visits import Head, acquire, brain_mask, picture, scanner

_FIELD_MM = np.array([178.0, 218, 172])
_MISPLACED_MM = 0.35
#: Voxels of the scanners of each set, mm.
_ISOTROPIC = ((1.0, 1.0, 1.0), (0.9, 0.9, 1.2), (1.0, 1.0, 1.5))
_THICK = ((0.72, 0.72, 3.0), (0.57, 0.57, 3.3))


def write_msseg2(root: Path, number: int, cases: int, rng: Random, shrink: float) -> None:
    """Two FLAIR in a halfway space, consensus and four raters; every fourth has nothing new.

    The set has no ``lesions.nii.gz``: what became of every lesion, by ``lesions.HISTORIES``.
    """
    head = Head.random(rng, _new_lesions(rng, number))
    common = _common(rng, np.full(3, rng.uniform(0.9, 1.1)) * shrink)
    folder = root / f"{11 + 2 * number + number // 3:03d}"  # the set's numbers have gaps
    for visit, images in enumerate(_visits(rng, head, common, ("FLAIR",), _ISOTROPIC, shrink)):
        path = folder / f"flair_time0{visit + 1}_on_middle_space.nii.gz"
        write(path, images[0], common.frame_from_vox)
    lesions = head.lesions, head.brain.fine, _in_brain(head, common)
    write(folder / "lesions.nii.gz", histories(*lesions), common.frame_from_vox)
    masks = rate(rng, *lesions)
    names = ["ground_truth", *(f"ground_truth_expert{rater}" for rater in range(1, 5))]
    for name, mask in zip(names, masks, strict=True):
        write(folder / f"{name}.nii.gz", mask, common.frame_from_vox)


def write_open_ms(root: Path, number: int, cases: int, rng: Random, shrink: float) -> None:
    """FLAIR, T1W and T2W at two visits with thick slices, brain mask, and a mask of any change."""
    head = Head.random(rng, _new_lesions(rng, number))
    common = _common(rng, np.array([0.72 * shrink, 0.72 * shrink, 3.0]))
    folder = root / "longitudinal" / "coregistered" / f"patient{number:02d}"
    contrasts = ("FLAIR", "T1W", "T2W")
    for visit, images in enumerate(_visits(rng, head, common, contrasts, _THICK, shrink)):
        for contrast, image in zip(contrasts, images, strict=True):
            path = folder / f"study{visit + 1}_{contrast}.nii.gz"
            write(path, image, common.frame_from_vox)
    mask = changes(head.lesions, head.brain.fine, _in_brain(head, common))
    write(folder / "gt.nii.gz", mask, common.frame_from_vox)
    brain = brain_mask(head, common).astype(np.int16)
    write(folder / "brainmask.nii.gz", brain, common.frame_from_vox)
    table = root / "longitudinal" / "patient_info.csv"
    if not table.exists():
        table.write_text("patient_id,sex,days_between_studies,age,ms_type\n")
    sex, days, age = rng.choice(["M", "F"]), rng.integers(90, 900), rng.integers(22, 60)
    with table.open("a") as file:
        file.write(f"{number},{sex},{days},{age},RR\n")


def _new_lesions(rng: Random, number: int) -> int:
    count = int(rng.integers(2, 9))
    return 0 if number % 4 == 3 else count


def _common(rng: Random, spacing_mm: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Grid:
    """The halfway space, x to the left and y to the back as DICOM has it."""
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
    """Images of both visits, (C, I, J, K) each; half of the patients changed scanners."""
    voxels = [scanners[n] for n in rng.integers(0, len(scanners), 2)]
    signals = [scanner(rng, contrasts) for _ in voxels]
    if rng.random() < 0.5:
        voxels[1], signals[1] = voxels[0], signals[0]
    count = len(contrasts)
    images = picture(head, [*signals[0], *signals[1]], [0] * count + [1] * count, shrink)
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
