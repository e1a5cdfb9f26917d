"""The figures of a report: losses, validation scores, box plots, and slices with their masks."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cmrfast import viz
from cmrfast.methods import Picture
from cmrfast.runs.text import format_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FACTS = {"step", "lr", "epoch", "samples_per_s", "waited_share", "validation"}
#: Colours of a figure → of the page that it is part of, which may be light or dark.
_INK, _LINE, _BAR = "#1c2126", "#c9d0d7", "#0072b2"
_OF_PAGE = {_INK: "var(--ink)", _LINE: "var(--line)", _BAR: "var(--bar)"}
#: Values below which they are drawn as points alone: quartiles of fewer say nothing.
_FEW = 5


def loss_figure(records: Sequence[Mapping[str, Any]]) -> "Figure":
    """Losses over steps, as running means.

    Args:
        records: lines of the run's log.
    """
    figure, panel = _panel(2.8)
    steps = [record for record in records if "loss" in record]
    names = [name for name in (steps[-1] if steps else {}) if name not in _FACTS]
    # The loss that is minimised last, above its parts; a part that is all of it would hide it.
    losses = {n: [(r["step"], r[n]) for r in steps if n in r] for n in names}
    total = losses.pop("loss", [])
    for n, (name, points) in enumerate([*losses.items(), ("loss", total)]):
        if points and (name == "loss" or points != total):
            x, y = zip(*points, strict=True)
            whole: dict[str, Any] = {"color": _INK, "linewidth": 1.8}
            part: dict[str, Any] = {"color": viz.COLOURS[n % len(viz.COLOURS)], "linewidth": 1.2}
            panel.plot(x, _smooth(y), label=name, **(whole if name == "loss" else part))
    panel.set(xlabel="step", ylabel="loss (running mean)")
    panel.locator_params(axis="x", integer=True)
    if total:
        panel.legend(frameon=False, labelcolor=_INK)
    return figure


def validation_figure(records: Sequence[Mapping[str, Any]]) -> "Figure | None":
    """Validation scores over steps; a single one as a point with its value, none without any.

    Args:
        records: lines of the run's log.
    """
    scores = validations(records)
    if not scores:
        return None
    figure, panel = _panel(2.8)
    panel.plot(*zip(*scores, strict=True), "o-", color=_BAR, markersize=5)
    panel.set(xlabel="step", ylabel="validation score")
    panel.locator_params(axis="x", integer=True)
    if len(scores) == 1:
        ((step, score),) = scores
        text = f"{format_numbers([score])[0]} at step {step}"
        panel.annotate(text, (step, score), (0, 10), textcoords="offset points", ha="center")
        room = 0.5 * abs(score) or 0.5
        panel.set(xlim=(0, 2 * step or 1), xticks=[0, step], ylim=(score - room, score + room))
    return figure


def box_figure(scores: Mapping[str, Sequence[float]], unit: str) -> "Figure":
    """A box a score, with a point for every value; of fewer than five values only the points.

    Args:
        scores: name in words → values.
        unit: that all have, for the limits of the axis.
    """
    figure, panel = _panel(0.75 + 0.42 * len(scores))
    for row, values in enumerate(scores.values()):
        if len(values) >= _FEW:
            style = {"color": _INK, "linewidth": 1.1}
            panel.boxplot(
                [values],
                positions=[row],
                orientation="horizontal",
                widths=0.55,
                showfliers=False,
                boxprops=style,
                whiskerprops=style,
                capprops=style,
                medianprops={"color": _INK, "linewidth": 2.2},
            )
        shifts = [0.12 * ((n % 3) - 1) for n in range(len(values))]  # points apart
        panel.plot(values, [row + s for s in shifts], "o", color=_BAR, markersize=4, alpha=0.75)
    panel.set_yticks(range(len(scores)), list(scores))
    panel.set_ylim(len(scores) - 0.4, -0.6)
    panel.grid(axis="x", color=_LINE, linewidth=0.6)
    panel.set_axisbelow(True)
    everything = [value for values in scores.values() for value in values]
    top = {"": 1.0, "%": 100.0}.get(unit)
    if top and everything and min(everything) >= 0 and max(everything) <= top:
        panel.set_xlim(-0.03 * top, 1.03 * top)
    return figure


def validations(records: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Step and score of every validation that had a score."""
    return [(r["step"], r["validation"]) for r in records if r.get("validation") is not None]


def as_png(figure: "Figure") -> bytes:
    """A figure as a picture on white."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def as_svg(figure: "Figure", name: str) -> str:
    """A figure as a part of a page, in its colours and typeface; equal figures give equal bytes.

    Args:
        figure: drawn with the colours of this file.
        name: sets its elements apart from those of other figures on the page.
    """
    import matplotlib as mpl

    file, none = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata=none)
    svg = file.getvalue()
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg role=img viewBox="\1">', svg, count=1)
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r' id="(?!m|p)[^"]*"', "", svg)  # of groups; two figures have the same
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    for colour, of_page in _OF_PAGE.items():
        svg = svg.replace(colour, of_page)
    return svg


def draw_slice(picture: Picture, k: int, names: Mapping[int, str]) -> bytes:
    """Slice k, once with each of the picture's masks."""
    masks = picture.masks().values()
    return _side_by_side(
        [viz.overlay(picture.image, mask, slices=[k], names=names) for mask in masks]
    )


def _panel(height: float) -> "tuple[Figure, Axes]":
    """A figure of one panel, as wide as a telephone shows."""
    from matplotlib.figure import Figure

    figure = Figure((4.6, height), layout="constrained")
    panel = figure.add_subplot()
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["bottom", "left"]].set_color(_INK)
    panel.tick_params(colors=_INK)
    for label in (panel.xaxis.label, panel.yaxis.label):
        label.set_color(_INK)
    return figure, panel


def _side_by_side(pictures: Sequence[bytes]) -> bytes:
    """PNGs in a row, padded to one height."""
    import numpy as np
    from matplotlib.image import imread, imsave

    planes = [imread(io.BytesIO(picture)) for picture in pictures]
    height = max(plane.shape[0] for plane in planes)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, 0), (0, 0))) for p in planes]
    file = io.BytesIO()
    imsave(file, np.concatenate(padded, 1), format="png")
    return file.getvalue()


def _smooth(values: Sequence[float]) -> list[float]:
    width = max(1, len(values) // 50)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    ends = range(1, len(sums))
    return [(sums[i] - sums[max(0, i - width)]) / min(i, width) for i in ends]
