"""Scores of masks, classes and lesions, and the statistics in the papers' tables.

Overlap scores such as Dice are 1 if both masks are empty and 0 if one is; distances are NaN if a
mask is empty, and means exclude and count them.
"""

from cmrfast.metrics.comparison import Comparison, compare_arms, holm
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
    "Comparison",
    "LesionScores",
    "PairedTest",
    "Summary",
    "SurfaceDistances",
    "average_surface_distance",
    "balanced_accuracy",
    "center_distance",
    "compare_arms",
    "connected_components",
    "dice",
    "holm",
    "jaccard",
    "lesion_scores",
    "paired_t_test",
    "precision",
    "recall",
    "summarise",
    "surface_distances",
]
