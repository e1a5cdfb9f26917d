"""Pictures for looking whether things are right: slices with labels over them, as PNG."""

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

#: Okabe and Ito's colours, which colour-blind readers can tell apart; one per label value.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#0072b2")
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
#: Pictures run to the patient's left, back and feet, as radiologists hang them.
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
    """Draw slices (third axis) in their true proportions, labels outlined and tinted.

    The patient's left is on the right and letters name the sides. Grey runs from the 1st to the
    99th percentile of the slices shown, exact zeros left out.

    Args:
        volume: the image.
        labels: integer or bool on the same grid, 0 is background.
        path: a PNG file to write as well.
        slices: which; default up to 12, evenly spread over those with labels, else over all.
        names: label value → name for the legend.
        channel: of both; a label volume of one channel serves every channel.
        columns: slices side by side; default what makes a wide page with few gaps.

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
    shown = list(slices) if slices is not None else _choose(mask)
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


def _choose(mask: npt.NDArray[Any], most: int = 12) -> list[int]:
    """Slices to show where none were named."""
    labelled = np.flatnonzero(mask.any(axis=(0, 1)))
    there = labelled if len(labelled) else np.arange(mask.shape[2])
    count = min(most, len(there))
    middles = (np.arange(count) + 0.5) * len(there) / count
    return [int(k) for k in there[middles.astype(int)]]


def _draw(
    volume: Volume,
    image: npt.NDArray[Any],
    mask: npt.NDArray[Any],
    shown: list[int],
    names: dict[int, str],
    columns: int | None,
) -> bytes:
    from matplotlib.figure import Figure

    axes, sides = _hanging(volume.orientation)
    across, down = (volume.shape[a] * volume.spacing_mm[a] for a in axes)
    columns = min(columns or _columns(len(shown), across / down), len(shown))
    rows = math.ceil(len(shown) / columns)
    inches = _PANEL_INCHES / max(across, down)
    width = columns * across * inches
    values = [int(value) for value in np.unique(mask[:, :, shown]) if value]
    texts = [names.get(value, f"label {value}") for value in values]
    lines = _lines(texts, width)
    legend = _LINE_INCHES * len(lines)
    figure = Figure((width, rows * down * inches + legend), facecolor="black")
    height = rows * down * inches / figure.get_figheight()
    low, high = _window(image[:, :, shown])
    for n, k in enumerate(shown):
        row, column = divmod(n, columns)
        place = (column / columns, 1 - height * (row + 1) / rows, 1 / columns, height / rows)
        panel = figure.add_axes(place)
        planes = (_hang(array[:, :, k], volume.orientation, axes) for array in (image, mask))
        _panel(panel, *planes, window=(low, high), extent=(0, across, down, 0))
        _letter(panel, sides, k)
    for line, members in enumerate(lines):
        y = (len(lines) - line - 0.5) * _LINE_INCHES / figure.get_figheight()
        for n, member in enumerate(members):
            style: dict[str, Any] = {"color": _colour(values[member]), "fontsize": 9}
            figure.text(
                (n + 0.5) / len(members), y, texts[member], ha="center", va="center", **style
            )
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, facecolor="black", metadata={"Software": None})
    return file.getvalue()


def _lines(texts: list[str], width_inches: float) -> list[list[int]]:
    """Which entries of the legend share a line, so that none runs into the next."""
    if not texts:
        return []
    widest = max(len(text) for text in texts) * _LETTER_INCHES + 0.05
    each = max(1, min(len(texts), int(width_inches / widest)))
    return [list(range(len(texts)))[n : n + each] for n in range(0, len(texts), each)]


def _columns(count: int, aspect: float) -> int:
    """Columns for a page wider than high with few panels left empty."""

    def cost(columns: int) -> float:
        rows = math.ceil(count / columns)
        return abs(math.log(aspect * columns / rows / 1.6)) + 0.25 * (rows * columns - count)

    return min(range(1, count + 1), key=cost)


def _hanging(orientation: str) -> tuple[tuple[int, int], tuple[str, str, str, str]]:
    """Which in-plane axis runs across and which down, and the sides left, right, top, bottom."""
    order = ("RL", "AP", "SI")  # the one that comes first runs across
    rank = [next(n for n, pair in enumerate(order) if code in pair) for code in orientation]
    axes = (0, 1) if rank[0] < rank[1] else (1, 0)
    ends = []
    for axis in axes:
        code = orientation[axis]
        to = code if code in _FORWARD else _OPPOSITE[code]
        ends += [_OPPOSITE[to], to]
    return axes, (ends[0], ends[1], ends[2], ends[3])


def _hang(plane: npt.NDArray[Any], orientation: str, axes: tuple[int, int]) -> npt.NDArray[Any]:
    """A slice (I, J) as (rows downwards, columns to the right)."""
    for axis in (0, 1):
        if orientation[axis] not in _FORWARD:
            plane = np.flip(plane, axis)
    return plane.transpose(axes[1], axes[0])


def _panel(
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
        here = mask == value
        tint = np.zeros((*mask.shape, 4))
        tint[here] = (*_rgb(int(value)), 0.25)
        panel.imshow(tint, extent=extent, aspect="equal", interpolation="nearest")
        # A rim of zeros closes outlines at the border; half a voxel keeps them on voxel edges.
        rows, columns = here.shape
        x = (np.arange(-1, columns + 1) + 0.5) * extent[1] / columns
        y = (np.arange(-1, rows + 1) + 0.5) * extent[2] / rows
        panel.contour(x, y, np.pad(here, 1), [0.5], colors=[_colour(int(value))], linewidths=0.8)
    panel.set_xlim(extent[0], extent[1])
    panel.set_ylim(extent[2], extent[3])


def _letter(panel: "Axes", sides: tuple[str, str, str, str], k: int) -> None:
    from matplotlib.patheffects import withStroke

    rim = [withStroke(linewidth=1.5, foreground="black")]
    style: dict[str, Any] = {"color": "white", "fontsize": 7, "path_effects": rim}
    style["transform"] = panel.transAxes
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02))
    for letter, place, ha, va in zip(
        sides,
        places,
        ("left", "right", "center", "center"),
        ("center", "center", "top", "bottom"),
        strict=True,
    ):
        panel.text(*place, letter, ha=ha, va=va, **style)
    panel.text(0.02, 0.98, f"{k}", ha="left", va="top", **style)


def _window(shown: npt.NDArray[Any]) -> tuple[float, float]:
    values = shown[np.isfinite(shown) & (shown != 0)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(edge) for edge in np.percentile(values, [1, 99]))
    return (low, high) if low < high else (low - 1, high + 1)


def _colour(value: int) -> str:
    return COLOURS[(value - 1) % len(COLOURS)]


def _rgb(value: int) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(_colour(value))
