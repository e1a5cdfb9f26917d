"""What notebooks show of volumes and cases: three planes as pictures, and tables."""

import base64
import html
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLANES = ("third axis", "second axis", "first axis")
_LARGEST_SIDE = 220  # of a picture, in pixels


def middle_planes(channel: Tensor, spacing_mm: Sequence[float]) -> list[tuple[Tensor, float]]:
    """The middle slice along each axis, the third first.

    Args:
        channel: (I, J, K).
        spacing_mm: of its voxels.

    Returns:
        For each, rows from bottom to top along the later of its axes, in [0, 1], and the height of
        its pixels relative to their width. Percentiles 1 and 99 of all three become 0 and 1.
    """
    cuts = [channel.select(axis, channel.shape[axis] // 2) for axis in (2, 1, 0)]
    values = torch.cat([cut.flatten() for cut in cuts]).double()
    known = values[values.isfinite()]
    low, high = known.quantile(torch.tensor([0.01, 0.99]).double()) if len(known) else (0.0, 1.0)
    shown = []
    for cut, (across, up) in zip(cuts, ((0, 1), (0, 2), (1, 2)), strict=True):
        scaled = ((cut.double() - low) / max(float(high - low), 1e-12)).nan_to_num().clamp(0, 1)
        shown.append((scaled.T.flip(0), spacing_mm[up] / spacing_mm[across]))
    return shown


def pictures(channel: Tensor, spacing_mm: Sequence[float]) -> str:
    """The three middle planes as HTML."""
    images = []
    for plane, (pixels, ratio) in zip(PLANES, middle_planes(channel, spacing_mm), strict=True):
        height, width = pixels.shape[0] * ratio, pixels.shape[1]
        scale = _LARGEST_SIDE / max(height, width)
        source = base64.b64encode(_png(pixels)).decode()
        images.append(
            f'<img alt="middle slice of the {plane}" style="image-rendering:pixelated;margin:2px" '
            f'width="{scale * width:.0f}" height="{scale * height:.0f}" '
            f'src="data:image/png;base64,{source}">'
        )
    return "".join(images)


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows as an HTML table, the first cell of each as its head."""
    lines = (
        f'<tr><th style="text-align:left">{html.escape(head)}</th>'
        + "".join(f'<td style="text-align:left">{html.escape(cell)}</td>' for cell in cells)
        + "</tr>"
        for head, *cells in rows
    )
    return f"<table>{''.join(lines)}</table>"


def figure(channel: Tensor, spacing_mm: Sequence[float], title: str) -> "Figure":
    """The three middle planes as a figure of matplotlib."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9, 3.4), layout="constrained")
    drawn.suptitle(title, fontsize=10)
    axes = drawn.subplots(1, 3)
    planes = middle_planes(channel, spacing_mm)
    for panel, name, (pixels, ratio) in zip(axes, PLANES, planes, strict=True):
        panel.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1, aspect=ratio)
        panel.set_title(f"middle of the {name}", fontsize=9)
        panel.set_axis_off()
    return drawn


def _png(pixels: Tensor) -> bytes:
    """A grey picture of values in [0, 1], (H, W)."""
    rows = (pixels * 255).round().byte().cpu().numpy()
    data = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
