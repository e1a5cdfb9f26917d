"""Two visits of a patient: two scanners, a common space, and lesions that changed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cmrfast.data.phantom.brain import TISSUES, Brain, compute_anatomy, paint, sulcus_distance
from cmrfast.data.phantom.lesions import Lesion, random_lesions
from cmrfast.data.phantom.scanner import (
    Array,
    Grid,
    Matrix,
    Random,
    add_rician_noise,
    rotation,
    shading,
)
from cmrfast.ops import resample

#: Corner and extent of the box around the head, in the brain frame.
_LOW_MM = np.array([-88.0, -112, -82])
_EXTENT_MM = np.array([176.0, 220, 178])
_SLAB = 6


def _signals(*values: float) -> Array:
    return np.array(values, np.float32)


#                  air skin  fat  musc  bone marr  eye   csf  grey white deep pall plex lesion
CONTRASTS = {
    "FLAIR": _signals(0, 0.45, 0.72, 0.36, 0.03, 0.4, 0.1, 0.1, 0.68, 0.53, 0.6, 0.5, 0.58, 0.98),
    "T1W": _signals(0, 0.5, 1.0, 0.45, 0.04, 0.7, 0.2, 0.18, 0.5, 0.74, 0.6, 0.68, 0.4, 0.5),
    "T2W": _signals(0, 0.4, 0.6, 0.22, 0.03, 0.4, 1.0, 1.0, 0.55, 0.4, 0.46, 0.32, 0.75, 0.72),
}


@dataclass(frozen=True)
class Head:
    """A patient in the common space: anatomy, position of the head, lesions.

    Args:
        brain_from_world: (4, 4); includes the scale of the patient's head.
    """

    brain: Brain
    brain_from_world: Matrix
    lesions: tuple[Lesion, ...]

    @classmethod
    def random(cls, rng: Random, new: int) -> "Head":
        """Draw a patient with ``new`` new lesions."""
        brain = Brain.random(rng)
        world_from_brain = np.eye(4)
        world_from_brain[:3, :3] = rotation(*np.deg2rad(rng.uniform(-6, 6, 3))) * brain.size
        world_from_brain[:3, 3] = rng.uniform(-6, 6, 3)
        grid = _grid(3.0)
        points = grid.points()
        anatomy = compute_anatomy(brain, sulcus_distance(brain, *points), *points)
        lesions = random_lesions(rng, anatomy, points, new)
        brain_from_world = np.linalg.inv(world_from_brain).astype(np.float64)
        return cls(brain, brain_from_world, tuple(lesions))


def _grid(spacing_mm: float) -> Grid:
    frame_from_vox = np.diag([spacing_mm] * 3 + [1.0])
    frame_from_vox[:3, 3] = _LOW_MM
    i, j, k = np.ceil(_EXTENT_MM / spacing_mm).astype(int).tolist()
    return Grid((i, j, k), frame_from_vox)


def render(head: Head, signals: Sequence[Array], visits: Sequence[int], spacing_mm: float) -> Array:
    """Render the head without noise on its own grid (``_grid``), (C, I, J, K).

    Args:
        signals: for each channel, the signals of ``TISSUES``.
        visits: for each channel, the visit (0 or 1) whose lesions it shows.
    """
    grid, coarse = _grid(spacing_mm), _grid(2 * spacing_mm)
    brain = head.brain
    fold = _resample(
        sulcus_distance(brain, *coarse.points())[None],
        coarse.frame_from_vox,
        grid.frame_from_vox,
        grid.shape,
    )[0]
    images = np.empty((len(signals), *grid.shape), np.float32)
    blur = 1.3 * spacing_mm
    wide, high, deep = grid.shape
    for start in range(0, deep, _SLAB):
        slab = slice(0, wide), slice(0, high), slice(start, min(start + _SLAB, deep))
        points = grid.points(slab)
        anatomy = compute_anatomy(brain, fold[slab], *points)
        images[:, *slab] = paint(brain, anatomy, *points, np.stack(signals), blur)
    for one in head.lesions:
        box = grid.box(one.centre_mm, one.reach_mm)
        if box is None:
            continue
        points = grid.points(box)
        anatomy = compute_anatomy(brain, fold[box], *points)
        # A lesion never extends into the fluid.
        tissue = np.clip(np.minimum(anatomy.ventricle, anatomy.fluid) / np.float32(blur), 0, 1)
        for image, signal, visit in zip(images, signals, visits, strict=True):
            away = one.distance(points, brain.fine, visit)
            weight = np.clip(0.5 - away / np.float32(2 * blur), 0, 1) * tissue * one.strength
            image[box] += weight * (signal[TISSUES.index("lesion")] - image[box])
    return images


def random_signals(rng: Random, contrasts: Sequence[str]) -> list[Array]:
    """Draw the signals of one scanner: contrast varies between sites."""
    return [
        CONTRASTS[c] * np.exp(rng.normal(0, 0.06, len(TISSUES))).astype(np.float32)
        for c in contrasts
    ]


def acquire(
    rng: Random,
    head: Head,
    images: Array,
    spacing_mm: float,
    voxel_mm: Sequence[float],
    common: Grid,
    misplaced_mm: float,
) -> npt.NDArray[np.int16]:
    """Scan the images of one visit on their own grid, then resample them to the common space.

    Args:
        images: (C, I, J, K), from ``render`` with ``spacing_mm``.
        voxel_mm: voxel size of the scan.
        common: grid of the result; its frame is the world.
        misplaced_mm: largest registration error along each axis.
    """
    world_from_picture = np.linalg.inv(head.brain_from_world) @ _grid(spacing_mm).frame_from_vox
    field_mm = np.array(common.shape) * np.linalg.norm(common.frame_from_vox[:3, :3], axis=0) + 8
    shape = tuple(np.ceil(field_mm / voxel_mm).astype(int).tolist())
    world_from_scan = np.eye(4)
    world_from_scan[:3, :3] = rotation(*np.deg2rad(rng.uniform(-4, 4, 3))) * voxel_mm
    middle = common.frame_from_vox @ [*((np.array(common.shape) - 1) / 2), 1]
    offset = world_from_scan[:3, :3] @ ((np.array(shape) - 1) / 2)
    world_from_scan[:3, 3] = middle[:3] + rng.uniform(-4, 4, 3) - offset
    scans = np.zeros((len(images), *shape), np.float32)
    parts = np.array([-1, 0, 1]) / 3 if voxel_mm[2] > 1.4 * spacing_mm else np.zeros(1)
    for part in parts:  # a slice is the mean over its thickness
        within = world_from_scan.copy()
        within[:3, 3] += part * within[:3, 2]
        scans += _resample(images, world_from_picture, within, shape) / np.float32(len(parts))
    shade = shading(rng, shape, 0.22)
    scale = rng.uniform(200, 900)
    for scan in scans:
        scan[...] = add_rician_noise(rng, scan * shade, rng.uniform(0.018, 0.034))
    error = np.eye(4)
    error[:3, :3] = rotation(*np.deg2rad(rng.uniform(-0.4, 0.4, 3) * misplaced_mm))
    error[:3, 3] = rng.uniform(-misplaced_mm, misplaced_mm, 3)
    moved = _resample(scans, error @ world_from_scan, common.frame_from_vox, common.shape)
    voxels: npt.NDArray[np.int16] = np.rint(moved * np.float32(scale)).astype(np.int16)
    return voxels


def brain_mask(head: Head, common: Grid) -> npt.NDArray[np.uint8]:
    """Mask of the brain and its fluid, 0 or 1, on a grid whose frame is the world."""
    coarse = _grid(2.0)
    points = coarse.points()
    fold = np.zeros(coarse.shape, np.float32)
    hull = compute_anatomy(head.brain, fold, *points).hull[None]
    world_from_coarse = np.linalg.inv(head.brain_from_world) @ coarse.frame_from_vox
    distance = _resample(hull, world_from_coarse, common.frame_from_vox, common.shape, fill=9.0)
    mask: npt.NDArray[np.uint8] = (distance[0] < 0.5).astype(np.uint8)
    return mask


def _resample(
    volume: Array,
    source: Matrix,
    target: Matrix,
    shape: Sequence[int],
    *,
    fill: float = 0.0,
) -> Array:
    matrices = torch.from_numpy(source), torch.from_numpy(target)
    data = torch.from_numpy(np.ascontiguousarray(volume))
    return np.asarray(resample(data, *matrices, shape, fill=fill).numpy())
