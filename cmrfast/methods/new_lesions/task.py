"""New MS lesions on images: patients' pairs prepared, cut into patches, predicted and judged."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cmrfast.data.cache import Tensors
from cmrfast.data.datasets.case import Case
from cmrfast.data.draws import uniforms
from cmrfast.data.patches import LesionSampler
from cmrfast.data.prepare import histogram_landmarks
from cmrfast.data.volume import Volume
from cmrfast.errors import FileError
from cmrfast.infer.new_lesions import NewLesionMap, align, normalise, segment
from cmrfast.metrics import connected_components, dice, lesion_scores
from cmrfast.models.new_lesions import Recipe
from cmrfast.ops import VolumeStore, extract_patches, resample
from cmrfast.ops.affine_sample import Mode
from cmrfast.tasks.gather import prepared_cases
from cmrfast.tasks.task import Batch, Output, Prediction, Row, Task, View

_MASKS = ("consensus", "rater1", "rater2", "rater3", "rater4")
_VERSION = 1  # of the preparation, for the cache
_NEAR: Mode = "nearest"
_FLIPS = 1  # added to the seed: a stream of draws apart from the sampler's


class Patches:
    """Patches of prepared patients; where lesions are, more of them.

    Args:
        patients: of each patient ``images`` (2, I, J, K), ``masks`` (5, I, J, K) and ``brain``
            (I, J, K), masks uint8.
        recipe: sampling.
        seed: of every random choice.
        device: where batches are made, and patients are kept.
    """

    def __init__(
        self,
        patients: Sequence[Mapping[str, Tensor]],
        recipe: Recipe,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.recipe, self.seed, self.device = recipe, seed, torch.device(device)
        self.sampler = LesionSampler(
            [p["masks"][0] & p["brain"] for p in patients],
            [p["brain"] for p in patients],
            (recipe.patch,) * 3,
            on_target=recipe.on_lesion,
            per_patient=recipe.per_patient,
            seed=seed,
        )
        self.images = VolumeStore([p["images"] for p in patients], device)
        self.masks = VolumeStore([p["masks"] for p in patients], device)

    def __len__(self) -> int:
        return len(self.sampler)

    def batch(self, epoch: int, samples: Tensor) -> Batch:
        """``earlier`` and ``later`` (B, 1, D, H, W), ``masks`` (B, 5, D, H, W) uint8."""
        samples = samples.cpu()
        windows = self.sampler.windows(epoch, samples)
        start, which = (x.to(self.device) for x in (windows.start_vox, windows.volume_index))
        flips = None
        if self.recipe.flip:
            draws = uniforms(self.seed + _FLIPS, epoch, samples, 3)
            flips = (draws < self.recipe.flip).to(self.device)
        size = self.sampler.size
        images = extract_patches(self.images, start, size, volume_index=which, flips=flips)
        masks = extract_patches(
            self.masks, start, size, volume_index=which, flips=flips, dtype=torch.uint8
        )
        return {"earlier": images[:, :1], "later": images[:, 1:], "masks": masks}


class NewLesionsTask(Task):
    """The paper's experiment on MSSEG-2, or open_ms.

    Masks that a patient lacks are taken from the consensus; open_ms has no other, so that all
    five maps learn the same there. Its mask is of any change, and its brain mask is used. Without
    one the foreground of the images stands in: strip MSSEG-2's first for the paper's images.
    """

    name = "new_lesions"
    layouts = ("msseg2", "open_ms")
    inputs = ("earlier", "later")
    objective = "dice"
    structures: ClassVar[Mapping[int, str]] = {1: "new lesion"}
    predict_batch = 2
    recipe: Recipe

    def fit(self, cases: Sequence[Case]) -> dict[str, Any]:
        """Landmarks of the histogram, from both visits of the training patients."""
        if not self.recipe.histogram:
            return {}

        def of_patient(case: Case) -> Tensor:
            aligned = self._aligned(case)
            inside = aligned["brain"] != 0
            return histogram_landmarks(image[inside] for image in aligned["images"])

        return {
            "landmarks": torch.stack(prepared_cases(self.name, cases, of_patient)).mean(0).tolist()
        }

    def feed(self, cases: Sequence[Case], *, seed: int) -> Patches:
        """Patches of every patient with both visits and a consensus; the others are left out."""
        patients = prepared_cases(self.name, cases, self._prepared)
        return Patches(patients, self.recipe, seed=seed, device=self.device)

    def predict(self, model: nn.Module, case: Case) -> Prediction:
        """``new_lesions`` and ``probability`` on the later image; how many there are."""
        found, like = self._segment(model, case), case.images["later"]
        _, count = connected_components(found.mask.data[0])
        voxel_ml = prod(found.mask.spacing_mm) / 1000
        return Prediction(
            {
                "new_lesions": Output(found.mask, like),
                "probability": Output(found.probability, like),
            },
            {"lesions": count, "volume_ml": voxel_ml * int(found.mask.data.sum())},
        )

    def evaluate(self, model: nn.Module, case: Case) -> list[Row]:
        """Voxels' Dice and scores by lesion; of a patient with nothing new, what was found."""
        if "consensus" not in case.labels:
            return []
        found, reference = self._segment(model, case).mask, case.label("consensus")
        scores = lesion_scores(
            found.data[0], reference.data[0], reference.spacing_mm, overlap=self.recipe.found
        )
        row: Row = {
            "case": case.name,
            "dice": dice(found.data, reference.data).item(),
            "lesions": scores.reference_count,
        }
        if scores.reference_count:
            row |= {
                "f1": scores.f1,
                "sensitivity": scores.sensitivity,
                "precision": scores.precision,
                "found": scores.found_count,
            }
        return [row | {"false": scores.false_count, "false_mm3": scores.false_volume_mm3}]

    def view(self, model: nn.Module, case: Case) -> View:
        """The later image with both masks."""
        reference = case.label("consensus") if "consensus" in case.labels else None
        return View(case.image("later"), self._segment(model, case).mask, reference)

    def _segment(self, model: nn.Module, case: Case) -> NewLesionMap:
        images = case.image("earlier"), case.image("later")
        return segment(
            model,
            *images,
            _brains(case),
            landmarks=self._landmarks(),
            recipe=self.recipe,
            batch=self.predict_batch,
        )

    def _landmarks(self) -> Tensor | None:
        if not self.recipe.histogram:
            return None
        if "landmarks" not in self.fitted:
            raise ValueError("new_lesions: fitted must hold landmarks, from fit; it does not")
        return torch.tensor(self.fitted["landmarks"], dtype=torch.float64)

    def _aligned(self, case: Case) -> Tensors:
        """Images, brain and masks on the network's grid, intensities as they are."""

        def make() -> Tensors:
            images = case.image("earlier"), case.image("later")
            pair = align(*images, _brains(case), recipe=self.recipe)
            there = [name for name in _MASKS if name in case.labels]  # the consensus at least
            labels = (case.label(name) for name in there)
            masks = [
                resample(
                    v.data, v.world_from_vox, pair.world_from_vox, pair.brain.shape, mode=_NEAR
                )
                for v in labels
            ]
            return {
                "images": pair.images,
                "brain": pair.brain.to(torch.uint8),
                "masks": torch.cat([masks[there.index(n) if n in there else 0] for n in _MASKS]),
            }

        return self._cached(case, {}, make)

    def _prepared(self, case: Case) -> Tensors:
        """The same, intensities as the network wants them."""
        landmarks = self._landmarks()

        def make() -> Tensors:
            aligned = self._aligned(case)
            images = normalise(aligned["images"], aligned["brain"], landmarks)
            return aligned | {"images": images.to(getattr(torch, self.recipe.stored))}

        learned = None if landmarks is None else landmarks.tolist()
        return self._cached(case, {"landmarks": learned, "stored": self.recipe.stored}, make)

    def _cached(
        self, case: Case, options: Mapping[str, object], make: Callable[[], Tensors]
    ) -> Tensors:
        there = {*case.images, *case.labels}
        lacking = [n for n in ("earlier", "later", "consensus") if n not in there]
        if lacking:
            raise FileError(f"{case.name} has no {', no '.join(lacking)}")
        if self.cache is None:
            return make()
        sources = {name: case.images[name] for name in ("earlier", "later")}
        sources |= {name: case.labels[name] for name in (*_MASKS, "brain") if name in case.labels}
        options = {
            "prepared": f"{self.name} {_VERSION}",
            "of": list(sources),
            "spacing_mm": self.recipe.spacing_mm,
            "bias_field": self.recipe.bias_field,
            **options,
        }
        return self.cache.tensors(list(sources.values()), options, make)


def _brains(case: Case) -> list[Volume]:
    return [case.label("brain")] if "brain" in case.labels else []


TASK = NewLesionsTask
