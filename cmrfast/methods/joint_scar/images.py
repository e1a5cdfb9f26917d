"""Myocardium and scar in LGE volumes, slice by slice."""

from collections.abc import Mapping

import torch
from torch import Tensor

from cmrfast.data.prepare import min_max
from cmrfast.data.slices import center_slices, pack_slices, unpack_slices
from cmrfast.data.volume import Volume
from cmrfast.infer import predict_batches
from cmrfast.models.joint_scar import JointScar


def segment(
    model: JointScar, volume: Volume, *, threshold: float = 0.5, batch: int = 8
) -> dict[str, Volume]:
    """Draw myocardium and scar.

    Args:
        model: a ``JointScar`` in evaluation mode.
        volume: LGE, any scale of intensities; each channel is an image of its own.
        threshold: voxels of a larger probability belong to the mask.
        batch: slices in one forward pass.

    Returns:
        ``scar`` and, of variants but ``direct``, ``myocardium``: uint8 masks on the volume's grid.

    Example:
        >>> from cmrfast.models import build
        >>> model = build("joint_scar", image=32, root=32, units=(1, 1, 1), width=8, heads=2)
        >>> masks = segment(model.eval(), Volume(torch.rand(1, 40, 30, 3), torch.eye(4)))
        >>> {name: mask.shape for name, mask in masks.items()}
        {'myocardium': (40, 30, 3), 'scar': (40, 30, 3)}
    """
    return masks_of(probabilities(model, volume, batch=batch), threshold)


def masks_of(maps: Mapping[str, Volume], threshold: float) -> dict[str, Volume]:
    """uint8 masks of the voxels whose probability is larger than ``threshold``."""
    return {name: p.with_data((p.data > threshold).byte()) for name, p in maps.items()}


def probabilities(model: JointScar, volume: Volume, *, batch: int = 8) -> dict[str, Volume]:
    """Probability of each structure; arguments and names are those of ``segment``.

    Holds the slices as the network sees them, the results and one batch. Beyond the square that the
    network sees, as wide as its ``config.image`` about the middle of a slice, the probability is 0.

    Returns:
        float32 volumes in [0, 1] on the volume's grid.
    """
    slices = pack_slices(volume.data)
    device = next(model.parameters()).device
    images = network_view(slices.to(device), model.config.image)
    results: dict[str, list[Tensor]] = {}
    for outputs in predict_batches("joint_scar", model, {"images": images}, batch):
        for name, logits in outputs.items():
            foreground = logits.float().softmax(1)[:, 1]
            on_grid = center_slices(foreground, slices.shape[1:])
            results.setdefault(name, []).append(on_grid.cpu())
    return {
        name: volume.with_data(unpack_slices(torch.cat(parts), volume.channels))
        for name, parts in results.items()
    }


def network_view(slices: Tensor, side: int) -> Tensor:
    """Slices as the network sees them: a square about the middle, scaled to [0, 1] each.

    Exact zeros do not count for a slice's range: scanners and data sets pad with them outside the
    image, where phase-sensitive images would be bright.

    Args:
        slices: (N, I, J), real; pixels that are not finite do not count either, and become 0.
        side: of the square, in pixels; what lies beyond the slice is 0.

    Returns:
        (N, 1, side, side) float32.
    """
    square = center_slices(slices, (side, side))
    values = square.movedim(0, -1)[None]  # one range a slice of the last axis
    known = values.isfinite()
    scaled = min_max(values, mask=(known & (values != 0))[0], over="slice").float()
    # Zeros may lie outside the range of the other pixels.
    return torch.where(known, scaled.clamp(0, 1), 0.0).movedim(-1, 0)
