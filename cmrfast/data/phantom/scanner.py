"""Parts shared by both phantoms: smooth random fields, partial volume, coil shading, noise."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]
Points = tuple[Array, Array, Array]
Box = tuple[slice, slice, slice]
Random = np.random.Generator


@dataclass(frozen=True)
class Grid:
    """A voxel grid in a frame of the anatomy.

    Args:
        shape: (I, J, K).
        frame_from_vox: (4, 4), to mm.
    """

    shape: tuple[int, int, int]
    frame_from_vox: Matrix

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel."""
        return float(abs(np.linalg.det(self.frame_from_vox[:3, :3])))

    def points(self, box: Box | None = None) -> Points:
        """Coordinates of the voxels in a box, default all; they broadcast to its shape."""
        index = np.ogrid[box or tuple(slice(0, n) for n in self.shape)]
        x, y, z = (
            np.asarray(sum((c * n for c, n in zip(row, index, strict=False) if c), row[3]))
            for row in self.frame_from_vox[:3]
        )
        return x.astype(np.float32), y.astype(np.float32), z.astype(np.float32)

    def box(self, centre_mm: Array, reach_mm: float) -> Box | None:
        """The voxels of a cube around a point; None if it lies outside the grid."""
        vox_from_frame = np.linalg.inv(self.frame_from_vox)
        centre = vox_from_frame[:3, :3] @ centre_mm + vox_from_frame[:3, 3]
        reach = reach_mm * np.abs(vox_from_frame[:3, :3]).sum(1)
        low = np.clip(np.floor(centre - reach), 0, self.shape).astype(int)
        high = np.clip(np.ceil(centre + reach) + 1, 0, self.shape).astype(int)
        if (high <= low).any():
            return None
        i, j, k = (slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
        return i, j, k


def rotation(about_x: float, about_y: float, about_z: float) -> Matrix:
    """(3, 3) matrix of three rotations in radians."""
    turn = np.eye(3)
    for axis, angle in enumerate((about_x, about_y, about_z)):
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        step = np.eye(3)
        step[[i, j, i, j], [i, j, j, i]] = (*[np.cos(angle)] * 2, -np.sin(angle), np.sin(angle))
        turn = turn @ step
    return turn


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
        """Draw waves in random directions; ``spread`` is the relative range of wavelengths."""
        direction = rng.standard_normal((count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        length = wavelength_mm * rng.uniform(1 - spread, 1 + spread, (count, 1))
        phase = rng.uniform(0, 2 * np.pi, count)
        return cls((2 * np.pi * direction / length).astype(np.float32), phase.astype(np.float32))

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        """Evaluate at each point (arrays that broadcast, mm)."""
        total = np.float32(0)
        for (a, b, c), phase in zip(self.rate, self.phase, strict=True):
            total = total + np.sin(a * x + (b * y + (c * z + phase)))
        return np.float32(np.sqrt(2 / len(self.phase))) * np.asarray(total)


def partial_volume(distance_mm: Array, blur_mm: float) -> Array:
    """Fraction of a voxel inside a surface, from its signed distance (negative inside)."""
    return np.asarray(np.clip(np.float32(0.5) - distance_mm / np.float32(blur_mm), 0, 1))


def smooth_minimum(a: Array, b: Array, reach_mm: float) -> Array:
    """Minimum of two distances, smoothed where they differ by less than ``reach_mm``."""
    near = np.clip(1 - np.abs(a - b) / np.float32(reach_mm), 0, 1)
    return np.asarray(np.minimum(a, b) - near * near * np.float32(reach_mm / 4))


def add_rician_noise(rng: Random, signal: Array, sigma: float) -> Array:
    """Magnitude of a signal with Gaussian noise in both receiver channels."""
    real = rng.standard_normal(signal.shape, dtype=np.float32)
    imaginary = rng.standard_normal(signal.shape, dtype=np.float32)
    real *= np.float32(sigma)
    imaginary *= np.float32(sigma)
    real += signal
    return np.sqrt(real * real + imaginary * imaginary)


def shading(rng: Random, shape: tuple[int, ...], strength: float) -> Array:
    """Coil sensitivity around 1 on a grid: the product of a smooth curve along each axis."""
    field = np.ones((1,) * len(shape), np.float32)
    for axis, length in enumerate(shape):
        place = np.linspace(-1, 1, length) if length > 1 else np.zeros(1)
        tilt, bend = rng.uniform(-strength, strength, 2)
        curve = np.exp(tilt * place + bend * (place**2 - 1 / 3))
        field = field * curve.astype(np.float32).reshape(
            [-1 if a == axis else 1 for a in range(len(shape))]
        )
    return field
