"""What all metrics make of empty masks, and of arguments that are wrong."""

import math

import pytest
import torch

from cmrfast import metrics


def test_empty_masks():
    empty, full = torch.zeros(4, 4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool)
    for score in (metrics.dice, metrics.jaccard, metrics.precision, metrics.recall):
        assert score(empty, empty) == 1
        assert score(empty, full) == score(full, empty) == 0
    for a, b in ((empty, empty), (empty, full), (full, empty)):
        assert all(math.isnan(d) for d in metrics.surface_distances(a, b, (1, 1)))
        assert math.isnan(metrics.average_surface_distance(a, b, (1, 1)))
        assert metrics.center_distance(a, b, (1, 1)).isnan()
        scores = metrics.lesion_scores(a, b, (1, 1))
        both = float(not (a.any() or b.any()))
        assert (scores.f1, scores.sensitivity, scores.precision) == (both, both, both)
    assert metrics.lesion_scores(full, empty, (1, 2)).false_volume_mm3 == 32


MASK = torch.zeros(4, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.dice(MASK.float(), MASK), TypeError, "prediction must be a bool or int"),
        (lambda: metrics.dice(MASK, [1]), TypeError, "reference must be a bool .* got list"),
        (lambda: metrics.dice(MASK, MASK[:2]), ValueError, r"one shape; got \(4, 4\) and \(2, 4"),
        (lambda: metrics.dice(MASK, MASK, batch_axes=2), ValueError, "leave at least one .* got 2"),
        (
            lambda: metrics.surface_distances(MASK, MASK, (1.0,)),
            ValueError,
            r"surface_distances: spacing_mm must have one entry per space axis \(2\)",
        ),
        (lambda: metrics.surface_distances(MASK, MASK, (1, 0)), ValueError, "positive and finite"),
        (lambda: metrics.surface_distances(MASK[0], MASK[0], (1,)), ValueError, "2 or 3 axes"),
        (lambda: metrics.connected_components(MASK[0]), ValueError, "2 or 3 axes"),
        (lambda: metrics.lesion_scores(MASK[0], MASK[0], (1,)), ValueError, "2 or 3 axes"),
        (
            lambda: metrics.lesion_scores(MASK, MASK, (1, 1), overlap=0),
            ValueError,
            r"overlap must lie in \(0, 1\]; got 0",
        ),
        (
            lambda: metrics.paired_t_test([1.0], [1.0, 2.0]),
            ValueError,
            r"values of the same cases; got \(1,\) and \(2,\)",
        ),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()
