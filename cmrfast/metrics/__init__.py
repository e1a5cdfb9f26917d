"""Scores of masks, classes and lesions, and the statistics that the papers' tables print.

Dice and its like of two empty masks are 1, of one empty mask 0; distances with an empty mask are
NaN, left out of means and counted.
"""

from cmrfast.metrics.components import LesionScores, connected_components, lesion_scores
from cmrfast.metrics.overlap import (
    ClassScores,
    balanced_accuracy,
    dice,
    jaccard,
    precision,
    recall,
)
from cmrfast.metrics.paired import PairedTest, paired_t_test
from cmrfast.metrics.summary import Summary, summarise
from cmrfast.metrics.surface import (
    SurfaceDistances,
    average_surface_distance,
    center_distance,
    surface_distances,
)

__all__ = [
    "ClassScores",
    "LesionScores",
    "PairedTest",
    "Summary",
    "SurfaceDistances",
    "average_surface_distance",
    "balanced_accuracy",
    "center_distance",
    "connected_components",
    "dice",
    "jaccard",
    "lesion_scores",
    "paired_t_test",
    "precision",
    "recall",
    "summarise",
    "surface_distances",
]
