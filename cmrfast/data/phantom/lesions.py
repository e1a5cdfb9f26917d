"""Multiple-sclerosis lesions at two visits, and four raters who outline the new ones."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cmrfast.data.phantom.brain import Anatomy
from cmrfast.data.phantom.scanner import Array, Grid, Points, Random, Waves

#: Change of a lesion between the visits → its value in ``draw_histories``.
HISTORIES = {"stayed": 1, "grew": 2, "shrank": 3, "appeared": 4}
#: Smallest outline that counts as a lesion, in mm³.
SMALLEST_MM3 = 3.0


@dataclass(frozen=True)
class Lesion:
    """An ellipsoid with a frayed border, in the brain frame.

    Args:
        centre_mm: (3,).
        axes: (3, 3); rows are the unit axes divided by the radii.
        radius_mm: mean radius.
        size: relative size at the two visits; 0 if absent.
        strength: signal, from white matter (0) to a full lesion (1).
    """

    centre_mm: Array
    axes: Array
    radius_mm: float
    size: tuple[float, float]
    strength: float

    @property
    def history(self) -> str:
        """One of ``HISTORIES``; a lesion that vanished has shrunk."""
        earlier, later = self.size
        if not earlier:
            return "appeared"
        return "stayed" if later == earlier else "grew" if later > earlier else "shrank"

    def distance(self, points: Points, fray: Waves, visit: int) -> Array:
        """Approximate distance to its border in mm, at one visit (0 or 1)."""
        size = self.size[visit]
        if not size:
            return np.full(np.broadcast_shapes(*(p.shape for p in points)), 99, np.float32)
        u, v, w = (p - m for p, m in zip(points, self.centre_mm, strict=True))
        a, b, c = (r[0] * u + r[1] * v + r[2] * w for r in self.axes)
        away = np.sqrt(a * a + b * b + c * c) - np.float32(size)
        return np.asarray((away + np.float32(0.18) * fray(*points)) * np.float32(self.radius_mm))

    @property
    def reach_mm(self) -> float:
        """Upper bound of the distance of its points from its centre."""
        longest = 1 / np.linalg.norm(self.axes, axis=1).min()
        return float(1.6 * max(self.size) * longest)


def random_lesions(rng: Random, anatomy: Anatomy, points: Points, new: int) -> list[Lesion]:
    """Draw old, growing, shrinking and ``new`` lesions in white matter, most near the ventricles.

    Args:
        anatomy: surfaces at ``points``, an open mesh in the brain frame.
    """
    white = (anatomy.white < -1) & (anatomy.hull < -6) & (anatomy.ventricle > 1.5)
    white &= np.broadcast_to(points[2] > -48, white.shape)
    candidates = np.flatnonzero(white)
    weight = np.exp(-anatomy.ventricle.ravel()[candidates] / 6) + 0.12
    old = int(rng.integers(3, 12) if rng.random() < 0.4 else rng.integers(12, 34))
    where = rng.choice(candidates, old + new, replace=False, p=weight / weight.sum())
    i, j, k = np.unravel_index(where, white.shape)
    centres = np.stack([p.ravel()[n] for p, n in zip(points, (i, j, k), strict=True)], 1)
    near = anatomy.ventricle.ravel()[where] < 9
    sizes = [_size(rng) for _ in range(old)] + [(0.0, 1.0)] * new
    return [
        _lesion(rng, centre, size, bool(side))
        for centre, size, side in zip(centres, sizes, near, strict=True)
    ]


def _size(rng: Random) -> tuple[float, float]:
    """Draw the sizes of an old lesion: most stay, some grow or shrink, a few vanish."""
    later = rng.choice([1.0, 1.3, 0.75, 0.0], p=[0.62, 0.2, 0.13, 0.05])
    return 1.0, float(later)


def _lesion(rng: Random, centre: Array, size: tuple[float, float], periventricular: bool) -> Lesion:
    # Most new lesions are small: few have grown as far as the old ones.
    log_mm = rng.normal(1.1, 0.45) if size[0] else rng.normal(0.85, 0.4)
    radius = float(np.clip(np.exp(log_mm), 1.5, 8))
    # Periventricular lesions follow the veins, which run outwards in the axial plane.
    direction = centre - np.array([0, -10, 15]) if periventricular else rng.standard_normal(3)
    first = direction * [1, 1, 0.2] + 1e-3
    frame, _ = np.linalg.qr(np.stack([first, *rng.standard_normal((2, 3))], 1))
    stretch = np.array([rng.uniform(1.2, 2) if periventricular else rng.uniform(0.9, 1.3), 1, 0.9])
    axes = frame.T / (radius * stretch[:, None])
    centre = centre.astype(np.float32)
    return Lesion(centre, axes.astype(np.float32), radius, size, float(rng.uniform(0.55, 1)))


def rate_lesions(
    rng: Random, lesions: Iterable[Lesion], fray: Waves, grid: Grid
) -> npt.NDArray[np.uint8]:
    """Draw masks of new lesions: the consensus and four raters, (5, I, J, K).

    Raters miss small lesions, draw different borders, and sometimes take growth for a new lesion.
    The consensus holds the true outline of every lesion that at least two of them saw.
    """
    masks = np.zeros((5, *grid.shape), np.uint8)
    bias = rng.normal(0, 0.35, 4)  # some raters draw wide borders, some narrow ones
    for one in lesions:
        if one.history not in ("appeared", "grew"):
            continue
        grown = one.history == "grew"
        box = grid.box(one.centre_mm, one.reach_mm)
        if box is None:
            continue
        points = grid.points(box)
        outline = one.distance(points, fray, 1)
        if grown:
            outline = np.maximum(outline, -one.distance(points, fray, 0))
        chance = 0.06 if grown else np.clip(0.35 + 0.2 * one.radius_mm, 0, 0.95)
        seen = rng.random(4) < chance
        border = rng.normal(0, 0.3, 4) + bias
        for rater in np.flatnonzero(seen):
            wobble = Waves.random(rng, 6, 5)(*points)
            mask = outline + 0.45 * wobble < border[rater]
            if mask.sum() * grid.voxel_mm3 >= SMALLEST_MM3:
                masks[rater + 1][box] |= mask
        if not grown and seen.sum() >= 2 and (outline < 0).sum() * grid.voxel_mm3 >= SMALLEST_MM3:
            masks[0][box] |= outline < 0
    return masks


def draw_changes(lesions: Iterable[Lesion], fray: Waves, grid: Grid) -> npt.NDArray[np.uint8]:
    """Draw what is lesion at one visit only: new, grown, shrunk, vanished; 0 or 1, (I, J, K)."""
    mask = np.zeros(grid.shape, np.uint8)
    for one in lesions:
        box = grid.box(one.centre_mm, one.reach_mm)
        if box is not None and one.size[0] != one.size[1]:
            earlier, later = (one.distance(grid.points(box), fray, visit) < 0 for visit in (0, 1))
            mask[box] |= earlier ^ later
    return mask


def draw_histories(lesions: Iterable[Lesion], fray: Waves, grid: Grid) -> npt.NDArray[np.uint8]:
    """Draw what is lesion at either visit, labelled by its history, (I, J, K)."""
    labels = np.zeros(grid.shape, np.uint8)
    for one in lesions:
        box = grid.box(one.centre_mm, one.reach_mm)
        if box is not None:
            earlier, later = (one.distance(grid.points(box), fray, visit) < 0 for visit in (0, 1))
            value = (earlier | later) * np.uint8(HISTORIES[one.history])
            labels[box] = np.maximum(labels[box], value)
    return labels


def draw_visits(lesions: Iterable[Lesion], fray: Waves, grid: Grid) -> npt.NDArray[np.uint8]:
    """Draw all lesions of each visit; 0 or 1, (2, I, J, K)."""
    masks = np.zeros((2, *grid.shape), np.uint8)
    for one in lesions:
        box = grid.box(one.centre_mm, one.reach_mm)
        if box is not None:
            for visit, mask in enumerate(masks):
                mask[box] |= one.distance(grid.points(box), fray, visit) < 0
    return masks
