"""joint_scar on images: LGE stacks of EMIDEC and MyoPS, a sample a slice."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cmrfast.data.augment import Ranges, augment
from cmrfast.data.cache import Tensors
from cmrfast.data.datasets.case import Case
from cmrfast.data.slices import center_slices, pack_slices
from cmrfast.data.volume import Volume
from cmrfast.methods.joint_scar.images import masks_of, network_view, probabilities, segment
from cmrfast.methods.preparation import Preparation, Source, prepare_cases
from cmrfast.methods.task import (
    Batch,
    Feed,
    Output,
    Picture,
    Prediction,
    Presence,
    Row,
    Task,
    presence,
    rows_of_columns,
)
from cmrfast.metrics import dice, precision, recall
from cmrfast.models.joint_scar import Config, JointScar, Recipe

_SEQUENCE = "LGE"
_CLASSES = ("myocardium", "scar")  # scar lies in the myocardium, no-reflow in the scar
OVERLAPS = {
    "scar_dice": "scar",
    "scar_precision": "scar",
    "scar_recall": "scar",
    "myocardium_dice": "myocardium",
}


def _prepare(source: Source[Config, Recipe]) -> Tensors:
    """``images`` (N, 1, side, side) float32 and ``labels`` (N, 2, side, side) uint8."""
    side = source.config.image
    image, masks = _annotated(source.case, source.recipe)
    labels = [center_slices(pack_slices(mask[None]), (side, side)) for mask in masks]
    images = network_view(pack_slices(image.data), side)
    return {"images": images, "labels": torch.stack(labels, 1)}


SLICES = Preparation(
    "joint_scar",
    _prepare,
    images=(_SEQUENCE,),
    labels=(_SEQUENCE,),
    config=("image",),
    recipe=("non_finite",),
)


class JointScarTask(Task[JointScar, Config, Recipe]):
    """Learns from every slice of an annotated stack; scored slice by slice, on the stack's grid.

    Parts of a heart beyond the square that the network sees count as missed.
    """

    preparations = (SLICES,)

    def feed(self, cases: Sequence[Case], *, seed: int) -> Feed:
        """Every slice once an epoch, augmented differently each time."""
        prepared = prepare_cases("joint_scar", cases, lambda case: self.prepared(SLICES, case))
        images, labels = (
            torch.cat([tensors[name] for tensors in prepared]).to(self.device)
            for name in ("images", "labels")
        )
        recipe = self.recipe
        ranges = Ranges(
            rotate_deg=recipe.rotate_deg,
            scale=recipe.scale,
            translate_share=recipe.translate_share,
            shear_deg=recipe.shear_deg,
        )
        return _SliceFeed(images, labels, ranges, seed)

    def predict(self, model: JointScar, case: Case) -> Prediction:
        """Masks ``myocardium`` and ``scar``, and their volumes in ml."""
        masks = self._segment(model, _read_image(case, self.recipe))
        facts = {f"{name}_ml": mask.mask_ml() for name, mask in masks.items()}
        if facts.get("myocardium_ml"):
            facts["scar_share"] = facts["scar_ml"] / facts["myocardium_ml"]
        path = case.images[_SEQUENCE]
        outputs = {name: Output(mask, path, {1: name}) for name, mask in masks.items()}
        return Prediction(outputs, facts)

    def require_scorable(self, case: Case) -> None:
        """Raise ``FileError`` where the stack or its masks cannot be used."""
        if _SEQUENCE in case.labels:
            _annotated(case, self.recipe)

    def evaluate(self, model: JointScar, case: Case) -> list[Row]:
        """A row a slice: Dice, precision and recall of the scar, Dice of the myocardium.

        Where neither the reference nor the prediction has any, these are 1; ``present`` identifies
        such slices.
        """
        if _SEQUENCE not in case.labels:
            return []
        image, reference = _annotated(case, self.recipe)
        truth = dict(zip(_CLASSES, (pack_slices(mask[None]) for mask in reference), strict=True))
        scores: dict[str, Tensor] = {}
        present: dict[str, list[Presence]] = {}
        for name, mask in self._segment(model, image).items():
            pair = pack_slices(mask.data), truth[name]
            predicted, real = (side.flatten(1).any(1).tolist() for side in pair)
            present[name] = [presence(*slice_) for slice_ in zip(real, predicted, strict=True)]
            scores[f"{name}_dice"] = dice(*pair, batch_axes=1)
            if name == "scar":
                scores["scar_precision"] = precision(*pair, batch_axes=1)
                scores["scar_recall"] = recall(*pair, batch_axes=1)
        pixels = truth["scar"].flatten(1).sum(1, dtype=torch.int64).tolist()
        ids = {"slice": range(len(pixels)), "scar_pixels": pixels}
        return rows_of_columns(case.name, ids, scores, present)

    def picture(self, model: JointScar, case: Case) -> Picture:
        """The stack; label 1 is myocardium, 2 scar."""
        image = _read_image(case, self.recipe)
        maps = probabilities(model, image, batch=self.predict_batch)
        masks = masks_of(maps, self.recipe.threshold)
        predicted = _join_masks(**{name: mask.data for name, mask in masks.items()})
        reference = None
        if _SEQUENCE in case.labels:
            myocardium, scar = _annotated(case, self.recipe)[1]
            reference = image.with_data(_join_masks(scar, myocardium)[None])
        return Picture(image, image.with_data(predicted), reference, maps)

    def _segment(self, model: JointScar, image: Volume) -> dict[str, Volume]:
        return segment(model, image, threshold=self.recipe.threshold, batch=self.predict_batch)


class _SliceFeed:
    """Slices in memory; image and masks of a batch are warped together."""

    def __init__(self, images: Tensor, labels: Tensor, ranges: Ranges, seed: int) -> None:
        self.images, self.labels, self.ranges, self.seed = images, labels, ranges, seed

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, epoch: int, samples: Tensor) -> Batch:
        """``images`` (B, 1, side, side), ``myocardium`` and ``scar`` (B, side, side) uint8."""
        images, labels = augment(
            self.images[samples],
            self.labels[samples],
            self.ranges,
            seed=self.seed,
            epoch=epoch,
            samples=samples,
        )
        return {"images": images, "myocardium": labels[:, 0], "scar": labels[:, 1]}


def _read_image(case: Case, recipe: Recipe) -> Volume:
    return case.image(_SEQUENCE, channels=1, non_finite=recipe.non_finite)


def _annotated(case: Case, recipe: Recipe) -> tuple[Volume, Tensor]:
    """LGE, and its masks of myocardium and scar (2, I, J, K) uint8."""
    image = _read_image(case, recipe)
    label, labelling = case.mask_on(image, _SEQUENCE), case.labelling[_SEQUENCE]
    return image, torch.cat([labelling.mask(label, name).data for name in _CLASSES]).byte()


def _join_masks(scar: Tensor, myocardium: Tensor | None = None) -> Tensor:
    """Labels: 1 in the myocardium, 2 in the scar."""
    return 2 * scar if myocardium is None else torch.maximum(myocardium, 2 * scar)
