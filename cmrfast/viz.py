"""Overlays for visual checks: slices of a volume with labels drawn on top, as PNG."""

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cmrfast.atomic import atomic_write
from cmrfast.data.volume import Volume
from cmrfast.errors import FileError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The colour-blind safe palette of Okabe and Ito; one colour per label value.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#0072b2")
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
#: Radiological display: images run to the patient's left, back and feet.
_FORWARD = "LPI"
_PANEL_INCHES = 2.6
_LINE_INCHES, _LETTER_INCHES = 0.27, 0.08  # of the legend


def overlay(
    volume: Volume,
    labels: Volume | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    slices: Sequence[int] | None = None,
    names: Mapping[int, str] | None = None,
    channel: int = 0,
    columns: int | None = None,
) -> bytes:
    """Draw slices (third axis) in their true proportions, with labels outlined and tinted.

    The patient's left is on the right; letters name the sides. The grey scale spans the 1st to the
    99th percentile of the slices shown, excluding exact zeros.

    Args:
        volume: the image.
        labels: integer or bool on the same grid, 0 is background.
        path: optional PNG file to write.
        slices: indices of the slices to draw; default up to 12, evenly spread over the slices with
            labels, or over all if there are none.
        names: label value → name for the legend.
        channel: channel of both volumes; labels with a single channel apply to every channel.
        columns: number of slices per row; by default, the page is wide and has few gaps.

    Returns:
        The PNG.
    """
    if labels is not None:
        _require_labels(volume, labels)
    if not -volume.channels <= channel < volume.channels:
        raise ValueError(f"overlay: channel must be one of {volume.channels}; got {channel}")
    image = volume.data[channel].detach().cpu().double().numpy()
    mask = np.zeros(volume.shape, np.int64)
    if labels is not None:
        mask = labels.data[channel if labels.channels > 1 else 0].cpu().long().numpy()
    shown = list(slices) if slices is not None else choose_slices(mask)
    if not shown or not all(0 <= k < volume.shape[2] for k in shown):
        raise ValueError(f"overlay: slices must lie in 0 to {volume.shape[2] - 1}; got {shown}")
    if columns is not None and columns < 1:
        raise ValueError(f"overlay: columns must be at least 1; got {columns}")
    picture = _draw(volume, image, mask, shown, dict(names or {}), columns)
    if path is not None:
        try:
            with atomic_write(Path(path)) as temporary:
                temporary.write_bytes(picture)
        except OSError as error:
            raise FileError(f"overlay: {path}: {error.strerror or error}") from error
    return picture


def _require_labels(volume: Volume, labels: Volume) -> None:
    if labels.data.is_floating_point():
        raise TypeError(f"overlay: labels must be integers or bool; got {labels.data.dtype}")
    if not volume.shares_grid(labels):
        raise ValueError(
            "overlay: labels must lie on the volume's grid; "
            f"got {labels.shape} {labels.orientation} on {volume.shape} {volume.orientation}"
        )
    if labels.channels not in (1, volume.channels):
        raise ValueError(
            f"overlay: labels must have one channel or {volume.channels}; got {labels.channels}"
        )


def choose_slices(mask: npt.NDArray[Any], most: int = 12) -> list[int]:
    """The slices to draw by default.

    Args:
        mask: (I, J, K); nonzero where there is a label.
        most: number of slices.

    Returns:
        Slices with labels, evenly spread if there are more than ``most`` of them; of all slices if
        none has labels.
    """
    labelled = np.flatnonzero(mask.any(axis=(0, 1)))
    candidates = labelled if len(labelled) else np.arange(mask.shape[2])
    count = min(most, len(candidates))
    middles = (np.arange(count) + 0.5) * len(candidates) / count
    return [int(k) for k in candidates[middles.astype(int)]]


def _draw(
    volume: Volume,
    image: npt.NDArray[Any],
    mask: npt.NDArray[Any],
    shown: list[int],
    names: dict[int, str],
    columns: int | None,
) -> bytes:
    from matplotlib.figure import Figure

    axes, sides = _display_axes(volume.orientation)
    across, down = (volume.shape[a] * volume.spacing_mm[a] for a in axes)
    columns = min(columns or _choose_columns(len(shown), across / down), len(shown))
    rows = math.ceil(len(shown) / columns)
    inches = _PANEL_INCHES / max(across, down)
    width = columns * across * inches
    values = [int(value) for value in np.unique(mask[:, :, shown]) if value]
    texts = [names.get(value, f"label {value}") for value in values]
    lines = _legend_lines(texts, width)
    legend = _LINE_INCHES * len(lines)
    figure = Figure((width, rows * down * inches + legend), facecolor="black")
    height = rows * down * inches / figure.get_figheight()
    low, high = grey_window(image[:, :, shown])
    for n, k in enumerate(shown):
        row, column = divmod(n, columns)
        box = (column / columns, 1 - height * (row + 1) / rows, 1 / columns, height / rows)
        panel = figure.add_axes(box)
        planes = (_orient(array[:, :, k], volume.orientation, axes) for array in (image, mask))
        _draw_panel(panel, *planes, window=(low, high), extent=(0, across, down, 0))
        _draw_letters(panel, sides, k)
    for line, members in enumerate(lines):
        y = (len(lines) - line - 0.5) * _LINE_INCHES / figure.get_figheight()
        for n, member in enumerate(members):
            style: dict[str, Any] = {"color": label_colour(values[member]), "fontsize": 9}
            figure.text(
                (n + 0.5) / len(members), y, texts[member], ha="center", va="center", **style
            )
    file = io.BytesIO()
    # Without the version of matplotlib in its metadata, the PNG depends on the image alone.
    figure.savefig(file, format="png", dpi=110, facecolor="black", metadata={"Software": None})
    return file.getvalue()


def _legend_lines(texts: list[str], width_inches: float) -> list[list[int]]:
    """Group the legend entries into lines, so that they do not overlap."""
    if not texts:
        return []
    widest = max(len(text) for text in texts) * _LETTER_INCHES + 0.05
    per_line = max(1, min(len(texts), int(width_inches / widest)))
    return [list(range(len(texts)))[n : n + per_line] for n in range(0, len(texts), per_line)]


def _choose_columns(count: int, aspect: float) -> int:
    """Choose the number of columns: the page should be wide and have few empty panels."""

    def cost(columns: int) -> float:
        rows = math.ceil(count / columns)
        return abs(math.log(aspect * columns / rows / 1.6)) + 0.25 * (rows * columns - count)

    return min(range(1, count + 1), key=cost)


def _display_axes(orientation: str) -> tuple[tuple[int, int], tuple[str, str, str, str]]:
    """The in-plane axes that run across and down, and the sides at left, right, top, bottom."""
    order = ("RL", "AP", "SI")  # the axis that comes first runs across
    rank = [next(n for n, pair in enumerate(order) if code in pair) for code in orientation]
    axes = (0, 1) if rank[0] < rank[1] else (1, 0)
    ends = []
    for axis in axes:
        code = orientation[axis]
        to = code if code in _FORWARD else _OPPOSITE[code]
        ends += [_OPPOSITE[to], to]
    return axes, (ends[0], ends[1], ends[2], ends[3])


def _orient(plane: npt.NDArray[Any], orientation: str, axes: tuple[int, int]) -> npt.NDArray[Any]:
    """Orient a slice (I, J) for display, (rows downwards, columns to the right)."""
    for axis in (0, 1):
        if orientation[axis] not in _FORWARD:
            plane = np.flip(plane, axis)
    return plane.transpose(axes[1], axes[0])


def _draw_panel(
    panel: "Axes",
    image: npt.NDArray[Any],
    mask: npt.NDArray[Any],
    *,
    window: tuple[float, float],
    extent: tuple[float, float, float, float],
) -> None:
    low, high = window
    panel.imshow(image, cmap="gray", vmin=low, vmax=high, extent=extent, aspect="equal")
    panel.set_axis_off()
    for value in np.unique(mask[mask != 0]):
        label = mask == value
        tint = np.zeros((*mask.shape, 4))
        tint[label] = (*_rgb(int(value)), 0.25)
        panel.imshow(tint, extent=extent, aspect="equal", interpolation="nearest")
        # Padding with zeros closes outlines at the border; the offset of half a voxel puts them
        # on voxel edges.
        rows, columns = label.shape
        x = (np.arange(-1, columns + 1) + 0.5) * extent[1] / columns
        y = (np.arange(-1, rows + 1) + 0.5) * extent[2] / rows
        panel.contour(
            x, y, np.pad(label, 1), [0.5], colors=[label_colour(int(value))], linewidths=0.8
        )
    panel.set_xlim(extent[0], extent[1])
    panel.set_ylim(extent[2], extent[3])


def _draw_letters(panel: "Axes", sides: tuple[str, str, str, str], k: int) -> None:
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=1.5, foreground="black")]
    style: dict[str, Any] = {"color": "white", "fontsize": 7, "path_effects": outline}
    style["transform"] = panel.transAxes
    positions = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02))
    for letter, position, ha, va in zip(
        sides,
        positions,
        ("left", "right", "center", "center"),
        ("center", "center", "top", "bottom"),
        strict=True,
    ):
        panel.text(*position, letter, ha=ha, va=va, **style)
    panel.text(0.02, 0.98, f"{k}", ha="left", va="top", **style)


def grey_window(shown: npt.NDArray[Any]) -> tuple[float, float]:
    """The values that are drawn black and white: the 1st and the 99th percentile, without zeros."""
    values = shown[np.isfinite(shown) & (shown != 0)]  # exact zeros are usually padding
    if not values.size:
        return 0.0, 1.0
    low, high = (float(edge) for edge in np.percentile(values, [1, 99]))
    return (low, high) if low < high else (low - 1, high + 1)


def label_colour(value: int) -> str:
    """The colour of a label; there are seven, which repeat.

    Example:
        >>> label_colour(1), label_colour(8)
        ('#e69f00', '#e69f00')
    """
    return COLOURS[(value - 1) % len(COLOURS)]


def _rgb(value: int) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(label_colour(value))
