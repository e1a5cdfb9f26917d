"""The figures of a report, as PNG: loss curves, and one slice with its masks."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from cmrfast import viz
from cmrfast.methods import Picture

_FACTS = {"step", "lr", "epoch", "samples_per_s", "waited_share", "validation"}


def draw_curves(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Losses over steps, and validation scores where there are enough for a curve.

    Args:
        records: lines of the run's log.
    """
    from matplotlib.figure import Figure

    steps = [record for record in records if "loss" in record]
    scores = validations(records)
    curve = len(scores) > 1
    figure = Figure((9, 3.2), layout="constrained")
    panels = figure.subplots(1, 2 if curve else 1, squeeze=False)[0]
    names = [name for name in (steps[-1] if steps else {}) if name not in _FACTS]
    # The loss that is minimised last, above its parts; a part that is all of it would hide it.
    losses = {n: [(r["step"], r[n]) for r in steps if n in r] for n in names}
    total = losses.pop("loss", [])
    for name, points in [*losses.items(), ("loss", total)]:
        if points and (name == "loss" or points != total):
            x, y = zip(*points, strict=True)
            style = {"color": "black", "linewidth": 1.8} if name == "loss" else {"linewidth": 1.0}
            panels[0].plot(x, _smooth(y), label=name, **style)
    panels[0].set(xlabel="step", ylabel="loss (running mean)")
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    if total:
        panels[0].legend(frameon=False)
    if curve:
        panels[1].plot(*zip(*scores, strict=True), "o-", markersize=3)
        panels[1].set(xlabel="step", ylabel="validation score (higher is better)")
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    return file.getvalue()


def validations(records: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Step and score of every validation that had a score."""
    return [(r["step"], r["validation"]) for r in records if r.get("validation") is not None]


def draw_slice(picture: Picture, k: int, names: Mapping[int, str]) -> bytes:
    """Slice k with the predicted mask and, beside it, with the reference."""
    masks = [picture.predicted] + ([picture.reference] if picture.reference else [])
    return _side_by_side(
        [viz.overlay(picture.image, mask, slices=[k], names=names) for mask in masks]
    )


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
