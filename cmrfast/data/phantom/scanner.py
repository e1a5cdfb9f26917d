"""What both phantoms share: random smooth fields, partial volume, coil shading and Rician noise."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Random = np.random.Generator


@dataclass(frozen=True)
class Waves:
    """A smooth random function of space, mean 0 and SD 1: a sum of plane waves.

    Args:
        rate: (N, 3), radians per mm.
        phase: (N,), radians.
    """

    rate: Array
    phase: Array

    @classmethod
    def random(
        cls, rng: Random, wavelength_mm: float, count: int = 9, spread: float = 0.35
    ) -> "Waves":
        """Waves in random directions; their lengths differ by the relative spread."""
        way = rng.standard_normal((count, 3))
        way /= np.linalg.norm(way, axis=1, keepdims=True)
        length = wavelength_mm * rng.uniform(1 - spread, 1 + spread, (count, 1))
        phase = rng.uniform(0, 2 * np.pi, count)
        return cls((2 * np.pi * way / length).astype(np.float32), phase.astype(np.float32))

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        """The value at each point (arrays that broadcast, mm)."""
        total = np.float32(0)
        for (a, b, c), phase in zip(self.rate, self.phase, strict=True):
            total = total + np.sin(a * x + (b * y + (c * z + phase)))
        return np.float32(np.sqrt(2 / len(self.phase))) * np.asarray(total)


def inside(distance_mm: Array, blur_mm: float) -> Array:
    """Share of a voxel within a surface, from the signed distance to it (negative inside)."""
    return np.clip(np.float32(0.5) - distance_mm / np.float32(blur_mm), 0, 1)


def smooth_minimum(a: Array, b: Array, reach_mm: float) -> Array:
    """Minimum of two distances whose crease is filled over the reach."""
    near = np.clip(1 - np.abs(a - b) / np.float32(reach_mm), 0, 1)
    return np.minimum(a, b) - near * near * np.float32(reach_mm / 4)


def rician(rng: Random, signal: Array, sigma: float) -> Array:
    """Magnitude of a signal with Gaussian noise in both receiver channels."""
    real = rng.standard_normal(signal.shape, dtype=np.float32)
    imaginary = rng.standard_normal(signal.shape, dtype=np.float32)
    real *= np.float32(sigma)
    imaginary *= np.float32(sigma)
    real += signal
    return np.hypot(real, imaginary)


def shading(rng: Random, shape: tuple[int, ...], strength: float) -> Array:
    """Coil sensitivity around 1 on a grid: a product of one slow curve along each axis."""
    field = np.ones((1,) * len(shape), np.float32)
    for axis, length in enumerate(shape):
        place = np.linspace(-1, 1, length) if length > 1 else np.zeros(1)
        tilt, bend = rng.uniform(-strength, strength, 2)
        curve = np.exp(tilt * place + bend * (place**2 - 1 / 3))
        field = field * curve.astype(np.float32).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return field
