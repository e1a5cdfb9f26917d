"""What the network learns: labels of a batch as nnU-Net's losses take them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Labels, or masks of regions, at the resolution of each output of the network.

    Args:
        scales: zoom of each output along each axis (deep supervision); None for one output.
        regions: label values of each region, instead of labels.
        masked_channels: of the images; set to 0 where the label is -1, outside of the patient.

    Example:
        >>> labels = torch.tensor([[[[-1, 0, 1, 2]] * 2]], dtype=torch.int16)
        >>> [t.tolist() for t in Targets(scales=[(1, 1), (0.5, 0.5)])(labels)]
        [[[[[0, 0, 1, 2], [0, 0, 1, 2]]]], [[[[0, 2]]]]]
    """

    scales: Sequence[Sequence[float]] | None = None
    regions: Sequence[int | Sequence[int]] | None = None
    masked_channels: tuple[int, ...] = ()

    def mask(self, images: Tensor, labels: Tensor) -> None:
        """Set channels of images (B, C, *S) to 0 in place where labels (B, 1, *S) are below 0."""
        for channel in self.masked_channels:
            images[:, channel].masked_fill_(labels[:, 0] < 0, 0)

    def __call__(self, labels: Tensor) -> Tensor | list[Tensor]:
        """Targets of labels (B, 1, *S), whose values below 0 are background; one per scale.

        (B, 1, *S) of the labels' dtype, or (B, R, *S) bool for R regions.
        """
        labels = labels.clamp(min=0)
        if self.scales is None:
            return self._of(labels)
        return [self._of(_nearest(labels, scale)) for scale in self.scales]

    def _of(self, labels: Tensor) -> Tensor:
        if self.regions is None:
            return labels
        regions = [[r] if isinstance(r, int) else list(r) for r in self.regions]
        return torch.cat([torch.isin(labels, torch.tensor(values)) for values in regions], 1)


def _nearest(labels: Tensor, scale: Sequence[float]) -> Tensor:
    """Nearest-exact interpolation, without a copy as float."""
    for axis, (n, zoom) in enumerate(zip(labels.shape[2:], scale, strict=True), 2):
        coarse = round(n * zoom)
        if coarse != n:
            voxels = (2 * torch.arange(coarse) + 1) * n // (2 * coarse)
            labels = labels.index_select(axis, voxels)
    return labels
