"""new_lesions on images: pairs of visits prepared, cut into patches, predicted and scored."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cmrfast.data.cache import Cache, Tensors
from cmrfast.data.datasets.case import Case
from cmrfast.data.volume import Volume
from cmrfast.errors import FileError
from cmrfast.methods.new_lesions.histogram import histogram_landmarks
from cmrfast.methods.new_lesions.images import (
    NewLesionMap,
    align,
    find_brain,
    normalise,
    segment_visits,
    window_batch,
)
from cmrfast.methods.new_lesions.sampling import PatchFeed
from cmrfast.methods.preparation import Preparation, Source, prepare_cases
from cmrfast.methods.task import Facts, Output, Picture, Prediction, Row, Task, presence
from cmrfast.metrics import connected_components, dice, lesion_scores
from cmrfast.models.new_lesions import Config, NewLesions, Recipe
from cmrfast.ops import resample

_log = logging.getLogger(__name__)
_IMAGES = ("earlier", "later")
_RATERS = ("rater1", "rater2", "rater3", "rater4")
_MASKS = ("consensus", *_RATERS)
_ALL = ("earlier_lesions", "later_lesions")


def _align(source: Source[Config, Recipe]) -> Tensors:
    """Images, brain and masks on the network's grid, intensities as they are.

    ``lesions``, all those of either visit, where both masks of them are there.
    """
    case = source.case
    earlier, later = _read_visits(case, source.recipe)
    with _naming(case):
        visits = align(earlier, later, _brains(case), recipe=source.recipe)
    masks = {
        name: _resample_mask(mask, visits.world_from_vox, visits.brain.shape)
        for name, mask in ((n, case.label(n)) for n in (*_MASKS, *_ALL) if n in case.labels)
    }
    aligned = {
        "images": visits.images,
        "brain": visits.brain.to(torch.uint8),
        "masks": torch.cat([masks.get(name, masks["consensus"]) for name in _MASKS]),
    }
    if masks.keys() >= set(_ALL):
        aligned["lesions"] = torch.cat([masks[name] for name in _ALL])
    return aligned


def _normalise(source: Source[Config, Recipe]) -> Tensors:
    """The same, with intensities as the network takes them."""
    aligned = ALIGNED(source)
    landmarks = _landmarks(source.recipe, source.fitted)
    with _naming(source.case):
        images = normalise(aligned["images"], aligned["brain"], landmarks)
    return aligned | {"images": images.to(getattr(torch, source.recipe.stored))}


ALIGNED = Preparation(
    "new_lesions, aligned",
    _align,
    images=_IMAGES,
    labels=("consensus",),
    optional_labels=(*_RATERS, "brain", *_ALL),
    recipe=("spacing_mm", "bias_field", "non_finite"),
)
NORMALISED = Preparation(
    "new_lesions, normalised",
    _normalise,
    images=ALIGNED.images,
    labels=ALIGNED.labels,
    optional_labels=ALIGNED.optional_labels,
    recipe=(*ALIGNED.recipe, "histogram", "stored"),
    fitted=("landmarks",),
)


class NewLesionsTask(Task[NewLesions, Config, Recipe]):
    """The paper's experiment on MSSEG-2, or open_ms.

    Masks that a patient lacks are taken from the consensus; open_ms has only that one, so all five
    maps learn the same there. Its mask marks any change, and its brain mask is used. Where there is
    no brain mask, the foreground of the images is used: strip MSSEG-2's first for the paper's
    images.
    """

    preparations = (ALIGNED, NORMALISED)

    def __init__(
        self,
        config: Config,
        recipe: Recipe,
        fitted: Facts | None = None,
        *,
        device: torch.device | str = "cpu",
        cache: Cache | None = None,
    ) -> None:
        super().__init__(config, recipe, fitted, device=device, cache=cache)
        self.predict_batch = window_batch(recipe, self.device)

    def fit(self, cases: Sequence[Case]) -> dict[str, Any]:
        """Landmarks of the histogram, from both visits of the training patients."""
        if not self.recipe.bias_field and not Recipe().bias_field:
            _log.warning(
                "new_lesions: coil shading is not corrected, unlike in the paper's images: that "
                "needs the extra n4: pip install 'cmrfast[n4]'"
            )
        if not self.recipe.histogram:
            return {}

        def of_patient(case: Case) -> Tensor:
            aligned = self.prepared(ALIGNED, case)
            inside = aligned["brain"] != 0
            with _naming(case):
                return histogram_landmarks(image[inside] for image in aligned["images"])

        return {
            "landmarks": torch.stack(prepare_cases("new_lesions", cases, of_patient))
            .mean(0)
            .tolist()
        }

    def feed(self, cases: Sequence[Case], *, seed: int) -> PatchFeed:
        """Patches of every patient with both visits and a consensus; the others are left out."""
        all_lesions = self.config.aux_weight > 0 and self.config.aux_on == "all"

        def prepare(case: Case) -> Tensors:
            if all_lesions:
                case.require(labels=_ALL)
            prepared = dict(self.prepared(NORMALISED, case))
            if not all_lesions:
                prepared.pop("lesions", None)
            return prepared

        patients = prepare_cases("new_lesions", cases, prepare)
        return PatchFeed(patients, self.recipe, seed=seed, device=self.device)

    def predict(self, model: NewLesions, case: Case) -> Prediction:
        """``new_lesions`` and ``probability`` on the later image; lesion count and volume."""
        result, like = self._segment(model, case), case.images["later"]
        _, count = connected_components(result.mask.data[0])
        return Prediction(
            {
                "new_lesions": Output(result.mask, like, {1: "new_lesion"}),
                "probability": Output(result.probability, like),
            },
            {"lesions": count, "volume_ml": result.mask.mask_ml()},
        )

    def require_scorable(self, case: Case) -> None:
        """Raise ``FileError`` where a visit or a mask cannot be used, or there is no brain."""
        if "consensus" in case.labels:
            visits = _read_visits(case, self.recipe)
            with _naming(case):
                find_brain(*visits, _brains(case), recipe=self.recipe)
            case.label("consensus")

    def evaluate(self, model: NewLesions, case: Case) -> list[Row]:
        """Dice over voxels and scores by lesion; of a patient without new lesions, false ones."""
        if "consensus" not in case.labels:
            return []
        result = self._segment(model, case).mask
        reference = _consensus_on(case, result)
        scores = lesion_scores(
            result.data[0], reference.data[0], reference.spacing_mm, overlap=self.recipe.found
        )
        ids: dict[str, str | int] = {"case": case.name, "lesions": scores.reference_count}
        values = {"dice": dice(result.data, reference.data).item()}
        if scores.reference_count:
            ids["found"] = scores.found_count
            values |= {
                "f1": scores.f1,
                "sensitivity": scores.sensitivity,
                "precision": scores.precision,
            }
        ids["false"] = scores.false_count
        present = {"new_lesions": presence(scores.reference_count, result.data.any())}
        return [Row(ids, values | {"false_mm3": scores.false_volume_mm3}, present)]

    def picture(self, model: NewLesions, case: Case) -> Picture:
        """The later image with both masks."""
        result = self._segment(model, case)
        known = "consensus" in case.labels
        reference = _consensus_on(case, result.mask) if known else None
        maps = {"new_lesion": result.probability}
        return Picture(_read_visits(case, self.recipe)[1], result.mask, reference, maps)

    def _segment(self, model: NewLesions, case: Case) -> NewLesionMap:
        earlier, later = _read_visits(case, self.recipe)
        landmarks = _landmarks(self.recipe, self.fitted)
        with _naming(case):
            visits = align(earlier, later, _brains(case), recipe=self.recipe)
            images = normalise(visits.images, visits.brain, landmarks)
        visits = replace(visits, images=images)
        return segment_visits(model, visits, later, recipe=self.recipe, batch=self.predict_batch)


@contextmanager
def _naming(case: Case) -> Iterator[None]:
    """Raise what is wrong with a case's images as a ``FileError`` that names the case."""
    try:
        yield
    except ValueError as error:
        raise FileError(f"{case.name}: {error}") from None


def _consensus_on(case: Case, image: Volume) -> Volume:
    """The reference mask on an image's grid; its own may differ, as in training."""
    mask = case.label("consensus")
    if mask.shares_grid(image):
        return mask
    grid = image.world_from_vox
    return Volume(_resample_mask(mask, grid, image.data.shape[1:]), grid)


def _resample_mask(mask: Volume, world_from_vox: Tensor, shape: Sequence[int]) -> Tensor:
    return resample(mask.data, mask.world_from_vox, world_from_vox, shape, mode="nearest")


def _read_visits(case: Case, recipe: Recipe) -> tuple[Volume, Volume]:
    earlier, later = (
        case.image(name, channels=1, non_finite=recipe.non_finite) for name in _IMAGES
    )
    return earlier, later


def _landmarks(recipe: Recipe, fitted: Facts) -> Tensor | None:
    if not recipe.histogram:
        return None
    if "landmarks" not in fitted:
        raise ValueError("new_lesions: fitted must hold landmarks, from fit; it does not")
    return torch.tensor(fitted["landmarks"], dtype=torch.float64)


def _brains(case: Case) -> list[Volume]:
    return [case.label("brain")] if "brain" in case.labels else []
