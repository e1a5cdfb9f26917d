"""Two masks compared by overlap and by distance."""

import json
import os
from collections.abc import Mapping, Sequence

from cmrfast import metrics
from cmrfast.data.nifti import read_nifti
from cmrfast.data.volume import Volume, equals
from cmrfast.errors import FileError
from cmrfast.runs.text import align_columns, finite_or_none

_MOST_LABELS = 64


def compare(
    predicted: str | os.PathLike[str], reference: str | os.PathLike[str]
) -> dict[str, dict[str, float]]:
    """Overlap and distances between two NIfTI masks on one grid.

    Returns:
        {label: {metric: value}}, for every label but 0 in either mask.

    Raises:
        FileError: they are not on one grid, or one of them is an image rather than a mask, or
            several masks.
    """
    p, r = read_nifti(predicted), read_nifti(reference)
    for path, mask in ((predicted, p), (reference, r)):
        if mask.channels != 1:
            raise FileError(
                f"compare: {path} must be one mask; it has {mask.channels} channels or time points"
            )
    if not p.shares_grid(r):
        raise FileError(
            f"compare: {predicted} and {reference} must lie on one grid; they have "
            f"{p.shape} voxels of {_mm(p.spacing_mm)} and {r.shape} of {_mm(r.spacing_mm)}"
        )
    labels = sorted({*_labels(predicted, p), *_labels(reference, r)} - {0})
    scores: dict[str, dict[str, float]] = {}
    for label in labels:
        a, b = equals(p.data[0], label), equals(r.data[0], label)
        distances = metrics.surface_distances(a, b, r.spacing_mm)
        scores[f"{label:g}"] = {
            "dice": float(metrics.dice(a, b)),
            "jaccard": float(metrics.jaccard(a, b)),
            "precision": float(metrics.precision(a, b)),
            "recall": float(metrics.recall(a, b)),
            **distances._asdict(),
            "center_distance_mm": float(metrics.center_distance(a, b, r.spacing_mm)),
        }
    return scores


def as_json(scores: Mapping[str, Mapping[str, float]]) -> str:
    """The scores as JSON, NaN as null."""
    content = {label: finite_or_none(cells) for label, cells in scores.items()}
    return json.dumps(content, indent=1, allow_nan=False)


def as_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Labels down, metrics across."""
    columns = list(next(iter(scores.values()), {}))
    lines = [["label", *columns]]
    lines += [[label, *(f"{cells[c]:.4f}" for c in columns)] for label, cells in scores.items()]
    return align_columns(lines, right=True)


def _labels(path: str | os.PathLike[str], mask: Volume) -> list[float]:
    """The values of a mask."""
    values: list[float] = mask.data.unique().tolist()
    fraction = next((value for value in values if not float(value).is_integer()), None)
    if fraction is not None or len(values) > _MOST_LABELS:
        what = f"{len(values)} values" if fraction is None else f"the value {fraction:g}"
        raise FileError(
            f"compare: {path} must be a mask of whole numbers, at most {_MOST_LABELS} of them; it "
            f"holds {what}; is it an image?"
        )
    return values


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{s:.3g}" for s in spacing) + " mm"
