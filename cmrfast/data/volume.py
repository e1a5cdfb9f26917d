"""Volume: voxels and their position in the scanner."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cmrfast.data.notebook import figure, pictures, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A matrix is singular if its axes, scaled to length 1, have a smaller determinant than this.
FLAT = 1e-6
#: Limit for the steps and the origin of a matrix; its inverse is the shortest step.
LONGEST_MM = 1e9
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """An image on a grid in world space.

    Args:
        data: (C, I, J, K), any real dtype, in NIfTI's voxel order; time points are channels.
        world_from_vox: (4, 4), from voxel indices to mm, voxel centres at integers; x points to
            the patient's right, y to the front, z to the head (NIfTI's RAS). Stored as float64 on
            the CPU.

    Example:
        >>> volume = Volume(torch.zeros(1, 8, 8, 3), np.diag([-1.5, -1.5, 8.0, 1.0]))
        >>> volume.spacing_mm, volume.orientation
        ((1.5, 1.5, 8.0), 'LPS')
    """

    data: Tensor
    world_from_vox: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.data, Tensor) or self.data.is_complex():
            kind = self.data.dtype if isinstance(self.data, Tensor) else type(self.data).__name__
            raise TypeError(f"Volume: data must be a real tensor; got {kind}")
        if self.data.dim() != 4:
            raise ValueError(f"Volume: data must be (C, I, J, K); got {tuple(self.data.shape)}")
        matrix = torch.as_tensor(self.world_from_vox, dtype=torch.float64, device="cpu")
        fault = fault_of_matrix(matrix.detach().numpy())
        if fault:
            raise ValueError(f"Volume: world_from_vox {fault}")
        object.__setattr__(self, "world_from_vox", matrix.detach().clone())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each spatial axis."""
        i, j, k = self.data.shape[1:]
        return i, j, k

    @property
    def channels(self) -> int:
        """Number of channels or time points."""
        return self.data.shape[0]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along each axis, in mm."""
        i, j, k = self.world_from_vox[:3, :3].norm(dim=0).tolist()
        return i, j, k

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(torch.linalg.det(self.world_from_vox[:3, :3]).abs()) / 1000

    def mask_ml(self) -> float:
        """Volume of the nonzero voxels in millilitres."""
        return int(self.data.count_nonzero()) * self.voxel_ml

    @property
    def orientation(self) -> str:
        """The side of the patient towards which each axis points, such as ``"LPS"``."""
        return orientation_of(self.world_from_vox.numpy())

    def __repr__(self) -> str:
        """Sizes, dtype, spacing and orientation; not the voxels."""
        return f"Volume({', '.join(value for _, value in self._facts())})"

    def _repr_html_(self) -> str:
        """Three planes and the geometry, for notebooks."""
        shown = pictures(self.data[0].detach(), self.spacing_mm) if self.data.numel() else ""
        return shown + table(self._facts())

    def plot(self, channel: int = 0) -> "Figure":
        """The middle slice along each axis, as a figure of matplotlib.

        Args:
            channel: which channel or time point.
        """
        if not -self.channels <= channel < self.channels:
            raise ValueError(f"plot: channel must be one of {self.channels}; got {channel}")
        return figure(self.data[channel].detach(), self.spacing_mm, repr(self))

    def _facts(self) -> list[tuple[str, str]]:
        """What a reader wants to know of the geometry, by name."""
        size = " x ".join(str(n) for n in self.shape)
        channels = f"{self.channels} x " if self.channels != 1 else ""
        return [
            ("voxels", f"{channels}{size} {str(self.data.dtype).removeprefix('torch.')}"),
            ("spacing", f"{' x '.join(f'{mm:.3g}' for mm in self.spacing_mm)} mm"),
            ("axes point to", self.orientation),
        ]

    def with_data(self, data: Tensor) -> "Volume":
        """A volume with other values, (C', I, J, K), on the same grid, such as a mask."""
        if data.shape[1:] != self.data.shape[1:]:
            raise ValueError(
                f"with_data: data must lie on the grid {self.shape}; got {tuple(data.shape)}"
            )
        return replace(self, data=data)

    def shares_grid(self, other: "Volume", *, tolerance_mm: float = 1e-3) -> bool:
        """Whether both volumes have the same shape and voxel positions."""
        return self.shape == other.shape and same_grid(
            self.shape, self.world_from_vox, other.world_from_vox, tolerance_mm=tolerance_mm
        )


def is_finite(data: Tensor) -> Tensor:
    """Where values are finite in float32, in which networks compute; bool, of the data's shape."""
    return data.abs() <= _LARGEST  # also false of NaN


def equals(data: Tensor, value: float) -> Tensor:
    """Where data holds a number; nowhere if its dtype cannot, where ``==`` would wrap the number.

    Example:
        >>> data = torch.tensor([0, 244], dtype=torch.uint8)
        >>> equals(data, 500), data == 500
        (tensor([False, False]), tensor([False,  True]))
    """
    if data.dtype != torch.bool and not data.is_floating_point():
        limits = torch.iinfo(data.dtype)
        if not limits.min <= value <= limits.max:
            return torch.zeros_like(data, dtype=torch.bool)
    return data == value


def count_non_finite(data: Tensor) -> int:
    """How many values are NaN or infinite, or would be in float32."""
    if not data.is_floating_point() or not data.numel():
        return 0
    low, high = data.aminmax()
    if low >= -_LARGEST and high <= _LARGEST:  # also false of NaN
        return 0
    return int((~is_finite(data)).sum())


def fault_of_matrix(world_from_vox: npt.NDArray[np.float64]) -> str:
    """Describe what is wrong with a voxel-to-world matrix; empty if nothing is."""
    if world_from_vox.shape != (4, 4):
        return f"must be (4, 4); got {world_from_vox.shape}"
    if not np.isfinite(world_from_vox).all():
        return "must be finite; it holds NaN or infinity"
    if world_from_vox[3].tolist() != [0, 0, 0, 1]:
        return f"must end in the row 0 0 0 1; got {world_from_vox[3].tolist()}"
    largest = np.abs(world_from_vox[:3, :3]).max(axis=0)
    if not ((largest >= 1 / LONGEST_MM) & (largest <= LONGEST_MM)).all():
        return f"must have steps between 1e-9 and 1e9 mm; got {largest.tolist()}"
    if np.abs(world_from_vox[:3, 3]).max() > LONGEST_MM:
        return f"must have its origin within 1e9 mm; got {world_from_vox[:3, 3].tolist()}"
    directions = world_from_vox[:3, :3] / np.linalg.norm(world_from_vox[:3, :3], axis=0)
    with np.errstate(divide="ignore"):  # a singular matrix
        flat = abs(np.linalg.det(directions)) < FLAT
    if flat:
        return "must be invertible; its axes lie in one plane"
    return ""


def same_grid(
    shape: Sequence[int],
    world_from_vox: Tensor,
    other_world_from_vox: Tensor,
    *,
    tolerance_mm: float = 1e-3,
) -> bool:
    """Whether two matrices map every voxel of a grid to the same position, within a tolerance."""
    # The difference is affine, so it is largest at a corner.
    corners = torch.cartesian_prod(*(torch.tensor([0.0, n - 1]) for n in shape)).double()
    difference = world_from_vox - other_world_from_vox
    shifts = corners @ difference[:3, :3].T + difference[:3, 3]
    return bool(shifts.norm(dim=1).max() <= tolerance_mm)


def orientation_of(world_from_vox: npt.NDArray[np.float64]) -> str:
    """The side of the patient towards which each axis points."""
    from nibabel.orientations import aff2axcodes

    return "".join(aff2axcodes(world_from_vox))
