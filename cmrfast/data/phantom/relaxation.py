"""T1 of a patient's muscle: diffuse changes, lesions, and errors of the scanner's fit."""

from dataclasses import dataclass

import numpy as np

from cmrfast.data.phantom.heart import Heart
from cmrfast.data.phantom.scanner import Array, Random

#: Bounds of the scanner's fit, ms.
FIT_MS = (200.0, 2400.0)


@dataclass(frozen=True)
class Relaxation:
    """What changes T1 in one patient, all of it independent of whether there is a lesion.

    Args:
        diffuse_ms: rise of T1 in all muscle, without any change in LGE.
        lesion_ms: rise of T1 in a lesion; 0 in one that only LGE shows.
        artefacts: (N, 5), focal errors of the fit that LGE does not show: centre (x, y, z) in the
            heart frame and radius in mm, and size in ms.
    """

    diffuse_ms: float
    lesion_ms: float
    artefacts: Array

    @classmethod
    def random(cls, rng: Random, heart: Heart, lesion_ms: float | None = None) -> "Relaxation":
        """Draw the changes; ``lesion_ms`` replaces what is drawn for lesions."""
        diffuse = rng.uniform(20, 110) if rng.random() < 0.4 else 0.0
        drawn = max(60.0, rng.normal(150, 35)) if rng.random() < 0.88 else 0.0
        return cls(
            diffuse_ms=diffuse,
            lesion_ms=drawn if lesion_ms is None else lesion_ms,
            artefacts=_artefacts(rng, heart),
        )

    def artefact_ms(self, x: Array, y: Array, z: Array) -> Array:
        """Error of the fit at points of the heart frame."""
        error = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), np.float32)
        for cx, cy, cz, radius, size_ms in self.artefacts:
            away = (x - cx) ** 2 + (y - cy) ** 2 + (np.float32(0.5) * (z - cz)) ** 2
            error += size_ms * np.exp(-away / (2 * radius * radius))
        return error


def _artefacts(rng: Random, heart: Heart) -> Array:
    """As from field errors and motion: on the wall, at any angle, dark or bright."""
    count = int(rng.poisson(1.0))
    angle, z = rng.uniform(-np.pi, np.pi, count), rng.uniform(-20, 30, count)
    out = heart.cavity_mm + rng.uniform(0, heart.wall_mm, count)
    radius, size = rng.uniform(4, 8, count), rng.uniform(60, 150, count)
    sign = np.where(rng.random(count) < 0.65, 1, -1)
    columns = (out * np.cos(angle), out * np.sin(angle), z, radius, sign * size)
    return np.stack(columns, 1).astype(np.float32)
