"""A head with a folded cortex as a function of space, painted in several contrasts.

Brain frame, in mm: x to the right, y to the front, z up, with the origin between the thalami.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cmrfast.data.phantom.scanner import Array, Random, Waves, partial_volume, smooth_minimum

#: Tissues with a signal of their own.
TISSUES = (
    *("air", "skin", "fat", "muscle", "bone", "marrow", "eye"),
    *("csf", "grey", "white", "deep", "pallidum", "plexus", "lesion"),
)
_CORTEX_MM = 2.7
_SULCUS_MM = 21.0
#: Each lateral ventricle as two tubes with knots (x, y, z, radius): front to back, and around the
#: thalamus.
_HORNS = (
    ((13, 36, 6, 2.5), (9, 22, 15, 4.5), (8, -4, 24, 4.5), (19, -33, 17, 6), (25, -62, 6, 1)),
    ((21, -34, 14, 5), (31, -22, -8, 2.5), (28, 6, -18, 1.5)),
)
_CAUDATE = ((14, 27, 6, 6), (16, 8, 20, 4), (18, -18, 24, 2))
_STEM = ((0, -16, -10, 13), (0, -20, -30, 15), (0, -32, -52, 10), (0, -38, -90, 8))


@dataclass(frozen=True)
class Brain:
    """One patient: scale of each axis, widths in mm, and the fields that fold the cortex."""

    size: tuple[float, float, float]
    ventricle_mm: float
    sulcus_mm: float
    fold: Waves
    depth: Waves
    bend: Waves
    fine: Waves

    @classmethod
    def random(cls, rng: Random) -> "Brain":
        """Draw a patient; wide ventricles and wide sulci occur together."""
        atrophy = rng.uniform(0, 1)
        scale = rng.uniform(0.95, 1.05)
        return cls(
            size=tuple(scale * rng.uniform(0.96, 1.04, 3)),
            ventricle_mm=-0.5 + 3.5 * atrophy + rng.uniform(-0.5, 0.5),
            sulcus_mm=0.5 + 1.1 * atrophy,
            fold=Waves.random(rng, _SULCUS_MM, 18, spread=0.2),
            depth=Waves.random(rng, 60),
            bend=Waves.random(rng, 40),
            fine=Waves.random(rng, 9),
        )


@dataclass(frozen=True)
class Anatomy:
    """Signed distances in mm, negative inside, at points of the brain frame.

    Attributes:
        hull: to the hull of the brain, which includes the fluid in its folds.
        fluid: to the nearest outer fluid (fissures, sulci, outside the hull).
        ventricle: to the nearest inner fluid.
        white: to the border between cerebral or cerebellar white and grey matter.
    """

    hull: Array
    fluid: Array
    ventricle: Array
    white: Array


def compute_anatomy(brain: Brain, fold: Array, x: Array, y: Array, z: Array) -> Anatomy:
    """Compute the distances that painting and lesions need.

    Args:
        fold: signed distance to the nearest sulcus (``sulcus_distance``), of the broadcast shape.
    """
    side = np.abs(x)
    bend = brain.bend(x, y, z)
    cerebrum = smooth_minimum(
        np.maximum(_ellipsoid_distance(x, y, z, (0, -4, 17), (67, 86, 59)), -16 - z + 4 * bend),
        _ellipsoid_distance(side, y, z, (42, 6, -20), (26, 42, 24)),
        14,
    )
    cerebellum = _ellipsoid_distance(x, y, z, (0, -58, -36), (49, 33, 27))
    stem = _tube_distance(side, y, z, [_STEM])
    depth = -cerebrum
    reach = 18 + 6 * brain.depth(x, y, z)
    opening = np.float32(0.5 * brain.sulcus_mm) + np.float32(1.4) * np.exp(
        -np.maximum(depth, 0) / 3
    )
    core = _ellipsoid_distance(x, y, z, (0, -6, 12), (60, 44, 22))
    below = np.maximum(depth - reach, 0)
    sulcus = np.sqrt(fold * fold + below * below) - opening
    fissure = np.hypot(x + bend, np.maximum(-core, 0)) - np.float32(0.9)
    lateral = np.sqrt(
        (z + np.float32(0.4) * y - 2 - 2 * bend) ** 2
        + np.maximum(37 - side, 0) ** 2
        + np.maximum(np.abs(y - 4) - 26, 0) ** 2
    ) - np.float32(0.8 * brain.sulcus_mm)
    fluid = np.minimum(np.minimum(sulcus, fissure), np.minimum(lateral, depth))

    folia = np.abs(np.sin(np.float32(1.1) * (z + np.float32(0.3) * (y + 58) + 2 * bend))) * 2
    small = cerebellum > -9
    leaf = np.where(small, folia - np.float32(0.45), 9)
    tree = (
        _ellipsoid_distance(side, y, z, (16, -54, -36), (22, 17, 13))
        + 3 * bend
        + 2 * brain.fine(x, y, z)
    )
    hind = np.minimum(cerebellum, stem)
    behind = hind < cerebrum
    fluid = np.where(behind, np.minimum(np.minimum(leaf, -hind), 9), fluid)
    fluid = np.where(stem < 0, -stem, fluid)
    white = np.where(behind, np.minimum(tree, stem), np.float32(_CORTEX_MM) - fluid)
    horns = _tube_distance(side, y, z, _HORNS) - np.float32(brain.ventricle_mm)
    third = _ellipsoid_distance(side, y, z, (0, -5, 0), (2 + 0.5 * brain.ventricle_mm, 14, 11))
    fourth = _ellipsoid_distance(side, y, z, (0, -40, -32), (8, 5, 10))
    ventricle = np.minimum(np.minimum(horns, third), fourth)
    return Anatomy(np.minimum(cerebrum, hind), fluid, ventricle, white)


def paint(
    brain: Brain, anatomy: Anatomy, x: Array, y: Array, z: Array, signal: Array, blur: float
) -> Array:
    """Paint the head in each contrast.

    Args:
        signal: (C, len(TISSUES)), signal of each tissue.

    Returns:
        (C, *shape of the points).
    """
    value = dict(zip(TISSUES, signal.T, strict=True))
    images = np.empty((len(signal), *anatomy.hull.shape), np.float32)
    images[...] = value["air"][:, None, None, None]

    def blend(distance: Array, name: str, opacity: float = 1.0, soft: float = 1.0) -> None:
        weight = partial_volume(distance, soft * blur) * np.float32(opacity)
        for image, tissue in zip(images, value[name], strict=True):
            image += weight * (tissue - image)

    side = np.abs(x)
    bend = brain.bend(x, y, z)
    head = _ellipsoid_distance(x, y, z, (0, -2, -4), (80, 101, 96)) + bend
    neck = np.maximum(np.hypot(x, (y + 22) * np.float32(0.8)) - 62, z + 40)
    face = _ellipsoid_distance(x, y, z, (0, 46, -68), (56, 54, 50))
    head = smooth_minimum(head, smooth_minimum(neck, face, 12), 12)
    skull = anatomy.hull - np.float32(2.5)
    blend(head, "skin")
    blend(head + 2, "fat")
    blend(head + 8 + 3 * bend, "muscle")
    blend(np.maximum(skull - 7, head + 4), "bone")
    blend(np.maximum(np.abs(skull - np.float32(3.5)) - np.float32(1.6), head + 5), "marrow")
    orbit = _ellipsoid_distance(side, y, z, (32, 66, -30), (19, 24, 18))
    blend(np.maximum(orbit, 1 - skull), "fat")
    blend(
        np.maximum(_ellipsoid_distance(side, y, z, (32, 76, -30), (12, 12, 12)), 1 - skull), "eye"
    )
    blend(skull, "csf")
    blend(np.maximum(anatomy.hull, -anatomy.fluid), "grey")
    blend(np.maximum(anatomy.white, anatomy.hull), "white", soft=1.3)
    for centre, radii, name in (
        ((27, 2, 4), (6, 18, 12), "deep"),
        ((19, -1, 1), (5, 11, 7), "pallidum"),
        ((11, -16, 6), (10, 15, 10), "deep"),
    ):
        blend(_ellipsoid_distance(side, y, z, centre, radii) + bend, name, soft=1.5)
    blend(_tube_distance(side, y, z, [_CAUDATE]), "deep", soft=1.5)
    blend(anatomy.ventricle - 2, "grey", 0.45, 2)  # the bright rim in every FLAIR image
    blend(anatomy.ventricle, "csf")
    plexus = _ellipsoid_distance(side, y, z, (20, -34, 15), (3, 6, 4)) + brain.fine(x, y, z)
    blend(np.maximum(plexus, anatomy.ventricle + 1), "plexus")
    images *= 1 + np.float32(0.015) * bend + np.float32(0.012) * brain.fine(x, y, z)
    return images


def sulcus_distance(brain: Brain, x: Array, y: Array, z: Array) -> Array:
    """Signed distance in mm to the sulci, sheets that run inwards from the hull.

    The zeros of a random field with a single wavelength form a labyrinth; dividing the field by
    its gradient turns its values into distances. They are smooth enough for a grid of 2 mm. The
    coordinates broadcast.
    """
    radius = np.sqrt((x / 67) ** 2 + ((y + 4) / 86) ** 2 + ((z - 15) / 64) ** 2)
    out = np.float32(0.8) / np.maximum(radius, np.float32(0.25)) ** np.float32(0.6)
    px, py, pz = x * out, y * out, z * out
    value: Array = np.zeros_like(radius)
    slopes: list[Array] = [np.zeros_like(radius) for _ in range(3)]
    for rate, phase in zip(brain.fold.rate, brain.fold.phase, strict=True):
        turn = rate[0] * px + rate[1] * py + rate[2] * pz + phase
        value += np.sin(turn)
        cosine = np.cos(turn)
        for slope, step in zip(slopes, rate, strict=True):
            slope += step * cosine
    slope = np.sqrt(sum(s * s for s in slopes)) * out
    typical = np.float32(np.sqrt(len(brain.fold.phase) / 2) * 2 * np.pi / _SULCUS_MM)
    return np.asarray(value / np.sqrt(slope**2 + (np.float32(0.35) * typical) ** 2))


def _ellipsoid_distance(
    x: Array, y: Array, z: Array, centre: Sequence[float], radii: Sequence[float]
) -> Array:
    """Approximate signed distance to an ellipsoid."""
    a, b, c = (
        (p - np.float32(m)) / np.float32(r)
        for p, m, r in zip((x, y, z), centre, radii, strict=True)
    )
    first = np.sqrt(a * a + b * b + c * c) + np.float32(1e-4)
    a, b, c = (p / np.float32(r) for p, r in zip((a, b, c), radii, strict=True))
    second = np.sqrt(a * a + b * b + c * c) + np.float32(1e-6)
    return np.asarray(first * (first - 1) / second)


def _tube_distance(
    x: Array, y: Array, z: Array, chains: Iterable[Sequence[Sequence[float]]]
) -> Array:
    """Signed distance to tubes that run through knots (x, y, z, radius)."""
    nearest = np.float32(99)
    for knots in chains:
        for start, end in pairwise(knots):
            step = np.subtract(end[:3], start[:3]).astype(np.float32)
            px, py, pz = (p - np.float32(m) for p, m in zip((x, y, z), start, strict=False))
            along = np.clip((px * step[0] + py * step[1] + pz * step[2]) / (step @ step), 0, 1)
            away = np.sqrt(
                (px - along * step[0]) ** 2
                + (py - along * step[1]) ** 2
                + (pz - along * step[2]) ** 2
            )
            radius = np.float32(start[3]) + along * np.float32(end[3] - start[3])
            nearest = np.minimum(nearest, away - radius)
    return np.asarray(nearest)
