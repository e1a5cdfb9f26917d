"""nnU-Net's augmentation: its ranges and probabilities, drawn from (seed, sample).

Rotation, scaling and mirroring are one matrix per sample, for ``sample_patches``; the steps on
intensities are the parameters of ``augment_intensity``, which applies them in nnU-Net's order.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cmrfast.data.random import uniforms

_BLOCK = 64


class Stream:
    """Independent uniform numbers in [0, 1) of each sample, others in every call.

    Args:
        seed: any 64-bit integer.
        samples: (n,) int64, the numbers of the samples.
        first: where to start; streams of one seed that start far apart have no common numbers.
    """

    def __init__(self, seed: int, samples: Tensor, first: int = 0) -> None:
        self._seed, self._samples, self._next = seed, samples, first
        self._values = torch.empty(len(samples), 0, dtype=torch.float64)

    def __call__(self, *shape: int) -> Tensor:
        """(n, *shape) float64."""
        count = math.prod(shape)
        if count > self._values.shape[1]:  # made in blocks: small tensors cost time, not numbers
            self._values = uniforms(self._seed, self._next, self._samples, max(count, _BLOCK))
            self._next += 1
        values, self._values = self._values[:, :count], self._values[:, count:]
        return values.reshape(-1, *shape)


@dataclass(frozen=True)
class Drawn:
    """What is done to each of n samples with C channels and d space axes.

    Args:
        matrix: (n, d, d), from steps in the patch to steps in the image, in voxels.
        moved: (n,), whether a sample is rotated or scaled; others are cropped and mirrored.
        intensity: parameters of ``augment_intensity``, NaN where a step is left out.
    """

    matrix: Tensor
    moved: Tensor
    intensity: dict[str, Tensor]


@dataclass(frozen=True)
class Augmentation:
    """Ranges and probabilities; the defaults are those of nnU-Net 2.8.

    Args:
        rotation: largest angle about each axis, in radians.
        mirror_axes: each is mirrored with probability 1/2.
        in_plane: leave the first axis as it is, apart from mirroring and blurring; for patches
            with thick slices, nnU-Net's ``do_dummy_2d_data_aug``.
        p_rotation, p_scaling: probabilities.
        scaling: factor of the distance between voxels of the patch, the same along all axes.
        p_noise, noise_sd: Gaussian noise, the same SD for all channels.
        p_blur, p_blur_channel, blur_sd_vox: Gaussian filter, an SD for each channel and axis.
        p_gain, gain: factor of the values of each channel.
        p_contrast, contrast: factor of the difference from the mean of each channel.
        p_low_res, p_low_res_channel, low_res: zoom to a coarser grid of each channel.
        p_gamma_inverted, p_gamma, gamma: exponents of each channel.

    Factors (``gain``, ``contrast``, ``gamma``) are below 1 with probability 1/2, and uniform
    there and above.

    Example:
        >>> augmentation = Augmentation(rotation=0.5, mirror_axes=(0, 1, 2))
        >>> drawn = augmentation.draw(seed=0, samples=torch.arange(4), channels=2, axes=3)
        >>> drawn.matrix.shape, drawn.intensity["gamma"].shape
        (torch.Size([4, 3, 3]), torch.Size([4, 2]))
    """

    rotation: float
    mirror_axes: tuple[int, ...]
    in_plane: bool = False
    p_rotation: float = 0.2
    p_scaling: float = 0.2
    scaling: tuple[float, float] = (0.7, 1.4)
    p_noise: float = 0.1
    noise_sd: tuple[float, float] = (0.0, 0.1)
    p_blur: float = 0.2
    p_blur_channel: float = 0.5
    blur_sd_vox: tuple[float, float] = (0.5, 1.0)
    p_gain: float = 0.15
    gain: tuple[float, float] = (0.75, 1.25)
    p_contrast: float = 0.15
    contrast: tuple[float, float] = (0.75, 1.25)
    p_low_res: float = 0.25
    p_low_res_channel: float = 0.5
    low_res: tuple[float, float] = (0.5, 1.0)
    p_gamma_inverted: float = 0.1
    p_gamma: float = 0.3
    gamma: tuple[float, float] = (0.7, 1.5)

    def __post_init__(self) -> None:
        if any(axis not in (0, 1, 2) for axis in self.mirror_axes):
            raise ValueError(
                f"Augmentation: mirror_axes must be of 0, 1, 2; got {self.mirror_axes}"
            )
        for name in ("gain", "contrast", "gamma"):
            low, high = getattr(self, name)
            if not 0 < low <= 1 <= high:
                raise ValueError(f"Augmentation: {name} must contain 1; got {(low, high)}")

    def draw(self, seed: int, samples: Tensor, *, channels: int, axes: int) -> Drawn:
        """Draw the parameters of samples, which depend on the seed and each sample's number.

        Args:
            seed: any 64-bit integer.
            samples: (n,) int64, numbers of the samples.
            channels: of the images.
            axes: space axes, 2 or 3.
        """
        if axes not in (2, 3):
            raise ValueError(f"Augmentation: axes must be 2 or 3; got {axes}")
        if max(self.mirror_axes, default=0) >= axes:
            raise ValueError(
                f"Augmentation: mirror_axes {self.mirror_axes} must be among {axes} axes"
            )
        stream = Stream(seed, samples)
        matrix, moved = self._draw_matrix(stream, axes)
        return Drawn(matrix, moved, self._draw_intensity(stream, channels, axes))

    def _draw_matrix(self, stream: Stream, axes: int) -> tuple[Tensor, Tensor]:
        rotated, scaled = stream() < self.p_rotation, stream() < self.p_scaling
        angles = self.rotation * (2 * stream(3) - 1) * rotated[:, None]
        zoom = torch.where(scaled, _within(self.scaling, stream()), 1.0)[:, None, None]
        n = len(angles)
        if axes == 3 and not self.in_plane:
            matrix = _about(angles[:, 2], 0, 1) @ _about(angles[:, 1], 2, 0)
            matrix = zoom * (matrix @ _about(angles[:, 0], 1, 2))
        else:
            cos, sin = angles[:, 0].cos(), angles[:, 0].sin()
            matrix = torch.eye(axes, dtype=torch.float64).repeat(n, 1, 1)
            plane = torch.stack((cos, -sin, sin, cos), 1).view(-1, 2, 2)
            matrix[:, axes - 2 :, axes - 2 :] = zoom * plane
        signs = torch.ones(n, axes, dtype=torch.float64)
        mirrored = stream(3)[:, list(self.mirror_axes)] < 0.5
        signs[:, list(self.mirror_axes)] = 1 - 2 * mirrored.double()
        return matrix * signs[:, None, :], rotated | scaled

    def _draw_intensity(self, stream: Stream, channels: int, axes: int) -> dict[str, Tensor]:
        noise = _sometimes(stream() < self.p_noise, _within(self.noise_sd, stream()))
        blurred = stream() < self.p_blur
        blurred = blurred[:, None] & (stream(channels) < self.p_blur_channel)
        blur = _sometimes(blurred[..., None], _within(self.blur_sd_vox, stream(channels, axes)))
        gain = _sometimes(stream()[:, None] < self.p_gain, _factor(self.gain, stream, channels))
        contrast = _sometimes(
            stream()[:, None] < self.p_contrast, _factor(self.contrast, stream, channels)
        )
        coarser = stream() < self.p_low_res
        coarser = coarser[:, None] & (stream(channels) < self.p_low_res_channel)
        low_res = _sometimes(coarser, _within(self.low_res, stream(channels)))
        low_res = low_res[..., None].repeat(1, 1, axes)
        if self.in_plane:
            low_res[..., 0] = torch.nan
        gamma_inverted, gamma = (
            _sometimes(stream()[:, None] < p, _factor(self.gamma, stream, channels))
            for p in (self.p_gamma_inverted, self.p_gamma)
        )
        return {
            "noise_sd": noise,
            "blur_sd_vox": blur,
            "gain": gain,
            "contrast": contrast,
            "low_res": low_res,
            "gamma_inverted": gamma_inverted,
            "gamma": gamma,
        }


def _within(limits: tuple[float, float], values: Tensor) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * values


def _sometimes(chosen: Tensor, values: Tensor) -> Tensor:
    return torch.where(chosen, values, torch.nan)


def _factor(limits: tuple[float, float], stream: Stream, channels: int) -> Tensor:
    """Uniform below 1 or above 1, each with probability 1/2."""
    low, high = limits
    below, at = stream(channels) < 0.5, stream(channels)
    return torch.where(below, _within((low, 1.0), at), _within((1.0, high), at))


def _about(angles: Tensor, first: int, second: int) -> Tensor:
    """(n, 3, 3) rotations that turn axis ``first`` towards axis ``second``."""
    matrix = torch.eye(3, dtype=torch.float64).repeat(len(angles), 1, 1)
    matrix[:, first, first] = matrix[:, second, second] = angles.cos()
    matrix[:, second, first] = angles.sin()
    matrix[:, first, second] = -angles.sin()
    return matrix
