"""A heart as a function of space: short-axis anatomy, scar, and how patients differ.

Heart frame, in mm: the origin is mid-ventricular on the long axis; x points to the lateral wall
(right in most displays), y to the inferior wall (down), z to the base. Surfaces are signed
distances, negative inside, so that partial volumes can be computed for voxels of any size and
orientation.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cmrfast.data.phantom.scanner import Array, Random, Waves

#: Names of the values of a heart's label map.
LABELS = ("background", "cavity", "myocardium", "right_ventricle", "scar", "no_reflow", "edema")


@dataclass(frozen=True)
class Scar:
    """Position of a scar in the wall: angle and height of its centre, and its depth.

    Args:
        angle: angle of its centre, radians from the lateral wall towards the inferior wall.
        half_angle: half its width along the wall, radians.
        z_mm: height of its centre.
        half_mm: half its height.
        depth: (inner, outer) border as a fraction of the wall from the cavity outwards; (0, 0.5)
            is subendocardial, (0.3, 0.7) mid-wall.
        no_reflow: whether its core is obstructed.
    """

    angle: float
    half_angle: float
    z_mm: float
    half_mm: float
    depth: tuple[float, float]
    no_reflow: bool = False


@dataclass(frozen=True)
class Heart:
    """One patient: sizes in mm, Fourier terms (cos, sin of 1θ, 2θ, 3θ), lesions and textures."""

    length_mm: float
    cavity_mm: float
    wall_mm: float
    right_mm: float
    fat_mm: float
    septum_angle: float
    curve_mm: tuple[float, float]
    cavity_terms: Array
    wall_terms: Array
    bulge: float
    bulge_angle: float
    scars: tuple[Scar, ...]
    chest_mm: tuple[float, float]
    diaphragm_mm: float
    papillary: tuple[tuple[float, float], ...]
    texture: Mapping[str, Waves]

    @classmethod
    def random(cls, rng: Random, *, thick: bool, lesion: str) -> "Heart":
        """Draw a patient.

        Args:
            thick: whether the wall is hypertrophic.
            lesion: none, infarct or fibrosis; an infarct thins the wall, fibrosis leaves its shape.
        """
        length = rng.uniform(68, 90)
        cavity = rng.uniform(19, 24) if thick else rng.uniform(22, 30)
        septum = np.pi + rng.uniform(-0.2, 0.25)
        scars = _SCARS[lesion](rng, length, septum)
        scales = {"edge": 15, "slow": 34, "fine": 8, "vessel": 21, "branch": 26, "organ": 80}
        return cls(
            length_mm=length,
            cavity_mm=cavity,
            wall_mm=rng.uniform(10, 13) if thick else rng.uniform(8, 10.5),
            right_mm=rng.uniform(22, 31),
            fat_mm=rng.uniform(1.5, 6),
            septum_angle=septum,
            curve_mm=(rng.uniform(-4, 4), rng.uniform(-4, 4)),
            cavity_terms=_terms(rng, 0.05),
            wall_terms=_terms(rng, 0.1),
            bulge=rng.uniform(0.35, 0.9) if thick else rng.uniform(-0.3, 0.05),
            bulge_angle=scars[0].angle
            if lesion == "infarct"
            else septum + 0.5 + rng.normal(0, 0.5),
            scars=scars,
            chest_mm=(rng.uniform(160, 185), rng.uniform(112, 132)),
            diaphragm_mm=rng.uniform(40, 56),
            papillary=tuple(
                (angle + rng.uniform(-0.2, 0.2), rng.uniform(3.8, 6)) for angle in (-0.75, 1.15)
            ),
            texture={name: Waves.random(rng, mm) for name, mm in scales.items()},
        )

    @property
    def base_mm(self) -> float:
        """Height of the valve plane; the apex lies ``length_mm`` below."""
        return 0.45 * self.length_mm


def _terms(rng: Random, size: float) -> Array:
    terms = rng.uniform(-size, size, (3, 2)) / np.array([[3], [1], [1.3]])
    return np.asarray(terms, np.float32)


def _infarct(rng: Random, length: float, septum: float) -> tuple[Scar, ...]:
    # Territories of the three coronary arteries: anteroseptal, lateral, inferior.
    angle = septum + rng.choice([0.75, -np.pi, -1.6]) + rng.uniform(-0.3, 0.3)
    large = rng.random() < 0.35
    outer = rng.uniform(0.8, 1.1) if large else rng.uniform(0.4, 1.05)
    return (
        Scar(
            angle,
            rng.uniform(0.95, 1.45) if large else rng.uniform(0.4, 0.95),
            rng.uniform(-0.25, 0.15) * length,
            rng.uniform(0.3, 0.5) * length if large else rng.uniform(0.2, 0.4) * length,
            (-0.2, outer),
            no_reflow=bool(outer > 0.55 and rng.random() < 0.7),
        ),
    )


def _fibrosis(rng: Random, length: float, septum: float) -> tuple[Scar, ...]:
    # Anywhere in the wall: mid-wall, beneath the endocardium or the epicardium, or all through.
    depths = ((0.2, 0.75), (0.2, 0.75), (-0.2, 0.55), (0.45, 1.2), (-0.2, 1.2))
    return tuple(
        Scar(
            rng.uniform(-np.pi, np.pi),
            rng.uniform(0.25, 0.6),
            rng.uniform(-0.25, 0.4) * length,
            rng.uniform(0.2, 0.4) * length,
            depths[rng.integers(len(depths))],
        )
        for _ in range(rng.integers(1, 4))
    )


_SCARS = {"none": lambda *_: (), "infarct": _infarct, "fibrosis": _fibrosis}
