"""What trainings of new_lesions do with each lesion of the test patients, from one prediction each.

The findings of a training are kept in its folder, so that an interrupted study resumes.
"""

import json
import math
import multiprocessing
import os
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from cmrfast import metrics
from cmrfast.atomic import atomic_write
from cmrfast.data.datasets import Case
from cmrfast.data.nifti import read_nifti
from cmrfast.data.phantom.lesions import HISTORIES
from cmrfast.methods import Picture
from cmrfast.train import Run

THRESHOLDS = (0.5, 0.6)  # P 1.5: it used 0.6, and calls 0.5 better
Findings = Mapping[str, Mapping[str, float]]  # ``f1`` by threshold, ``percent`` by history


def findings(runs: Mapping[str, Sequence[Run]]) -> dict[str, list[Findings]]:
    """The findings of each arm's trainings."""
    folders = {arm: [str(run.path) for run in seeds] for arm, seeds in runs.items()}
    context = multiprocessing.get_context("spawn")  # OpenMP does not survive a fork
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        return {arm: list(pool.map(_findings_of, seeds)) for arm, seeds in folders.items()}


def _findings_of(folder: str) -> dict[str, dict[str, float]]:
    kept = Path(folder) / "called-new.json"
    if not kept.exists():
        torch.set_num_threads(1)
        trained = Run.open(folder)
        task, model = trained.task(), trained.model()
        f1: dict[str, list[float]] = {str(threshold): [] for threshold in THRESHOLDS}
        hits: dict[str, list[bool]] = {history: [] for history in HISTORIES}
        for case in trained.cases("test"):
            with torch.inference_mode():
                picture = task.picture(model, case)
            for threshold in THRESHOLDS:
                f1[str(threshold)] += f1_above(picture, threshold, task.recipe.found)
            for history, own in hits_by_history(picture, case).items():
                hits[history] += own
        percent = {name: 100 * statistics.fmean(own) for name, own in hits.items() if own}
        means = {name: statistics.fmean(own or [math.nan]) for name, own in f1.items()}
        with atomic_write(kept) as path:
            path.write_text(json.dumps({"f1": means, "percent": percent}, indent=1) + "\n")
    found: dict[str, dict[str, float]] = json.loads(kept.read_text())
    return found


def f1_above(picture: Picture, threshold: float, found: float) -> list[float]:
    """F1 if voxels above a probability are new lesion; none of a patient without new lesions."""
    assert picture.reference is not None
    reference = picture.reference.data[0]
    predicted = picture.maps["new_lesion"].data[0] > threshold
    spacing_mm = picture.reference.spacing_mm
    scores = metrics.lesion_scores(predicted, reference, spacing_mm, overlap=found)
    return [scores.f1] if scores.reference_count else []


def hits_by_history(picture: Picture, case: Case) -> dict[str, list[bool]]:
    """Whether any voxel of a lesion is predicted as new, for all lesions of each history."""
    path = case.images["later"].with_name("lesions.nii.gz")
    if not path.exists():  # only phantoms have this file
        return {}
    histories, predicted = read_nifti(path).data[0], picture.predicted.data[0] != 0
    hits = {}
    for history, value in HISTORIES.items():
        lesions, count = metrics.connected_components(histories == value)
        touched = lesions[predicted].unique().tolist()
        hits[history] = [number in touched for number in range(1, count + 1)]
    return hits


def facts(found: Mapping[str, Sequence[Findings]]) -> dict[str, Any]:
    """The findings by name, each with a value per training."""
    named: dict[str, Any] = {
        f"F1 with threshold {threshold:g}, final maps": [
            one["f1"][str(threshold)] for one in found["final maps"]
        ]
        for threshold in THRESHOLDS
    }
    for arm, seeds in found.items():
        for history in seeds[0]["percent"]:
            named[f"percent called new of lesions that {history}, {arm}"] = [
                one["percent"][history] for one in seeds
            ]
    return named
