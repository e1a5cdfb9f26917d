"""Myocardium and scar in LGE volumes, slice by slice."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cmrfast.data.prepare import min_max
from cmrfast.data.volume import Volume
from cmrfast.ops import extract_patches


def segment(
    model: nn.Module, volume: Volume, *, threshold: float = 0.5, batch: int = 8
) -> dict[str, Volume]:
    """Draw myocardium and scar.

    Args:
        model: a ``JointScar`` in evaluation mode.
        volume: LGE, any scale of intensities; channels are images of their own.
        threshold: a mask is where its probability is larger.
        batch: slices that the network gets at once.

    Returns:
        ``scar`` and, of variants but ``direct``, ``myocardium``: uint8 masks on the volume's grid.

    Example:
        >>> from cmrfast.models import build
        >>> model = build("joint_scar", image=32, root=32, units=(1, 1, 1), width=8, heads=2)
        >>> masks = segment(model.eval(), Volume(torch.rand(1, 40, 30, 3), torch.eye(4)))
        >>> {name: mask.shape for name, mask in masks.items()}
        {'myocardium': (40, 30, 3), 'scar': (40, 30, 3)}
    """
    found = probabilities(model, volume, batch=batch)
    return {name: p.with_data((p.data > threshold).byte()) for name, p in found.items()}


def probabilities(model: nn.Module, volume: Volume, *, batch: int = 8) -> dict[str, Volume]:
    """How sure the network is of each voxel; arguments and names as those of ``segment``.

    Holds the slices, the results and one batch. Beyond the square that the network sees, as wide as
    its ``config.image`` about the middle of a slice, the probability is 0.

    Returns:
        float32 volumes in [0, 1] on the volume's grid.
    """
    config: Any = model.config
    device = next(model.parameters()).device
    slices = as_slices(volume.data)
    results: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for part in slices.split(batch):
            outputs = model(network_view(part.to(device), config.image))
            for name, logits in outputs.items():
                foreground = logits.float().softmax(1)[:, 1]
                on_grid = centred(foreground, slices.shape[1:])
                results.setdefault(name, []).append(on_grid.cpu())
    return {
        name: volume.with_data(as_volume(torch.cat(parts), volume.channels))
        for name, parts in results.items()
    }


def network_view(slices: Tensor, side: int) -> Tensor:
    """Slices as the network sees them: a square about the middle, scaled to [0, 1] each.

    Exact zeros do not count for a slice's range: scanners and the data sets' makers fill with them
    what lies beyond the image, while phase-sensitive images are bright there.

    Args:
        slices: (N, I, J), real.
        side: of the square, in pixels; what lies beyond the slice is 0.

    Returns:
        (N, 1, side, side) float32.
    """
    square = centred(slices, (side, side))
    values = square.movedim(0, -1)[None]  # one range a slice of the last axis
    counts = values.isfinite() & (values != 0)
    scaled = min_max(values, mask=counts[0], over="slice").float()
    return scaled.nan_to_num(0.0, 0.0, 0.0).clamp(0, 1).movedim(-1, 0)


def centred(slices: Tensor, shape: Sequence[int]) -> Tensor:
    """Slices cut or padded with 0 about their middle; a second time brings back what was kept.

    Args:
        slices: (N, I, J), any real dtype.
        shape: of the result, two entries.

    Returns:
        (N, *shape), of the slices' dtype.

    Example:
        >>> square = centred(torch.ones(1, 3, 5), (4, 4))
        >>> centred(square, (3, 5))[0, 0].tolist()
        [1.0, 1.0, 1.0, 1.0, 0.0]
    """
    count, old = len(slices), slices.shape[1:]
    start = torch.tensor([n // 2 - m // 2 for n, m in zip(old, shape, strict=True)])
    return extract_patches(
        slices[:, None],
        start.to(slices.device).expand(count, -1),
        shape,
        volume_index=torch.arange(count, device=slices.device),
        dtype=slices.dtype,
    )[:, 0]


def as_slices(data: Tensor) -> Tensor:
    """(C, I, J, K) as (C · K, I, J)."""
    return data.movedim(-1, 1).flatten(0, 1)


def as_volume(slices: Tensor, channels: int) -> Tensor:
    """(C · K, I, J) as (C, I, J, K), the inverse of ``as_slices``."""
    return slices.view(channels, -1, *slices.shape[1:]).movedim(1, -1)
