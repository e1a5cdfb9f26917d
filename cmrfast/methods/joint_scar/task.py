"""joint_scar on images: LGE stacks of EMIDEC and MyoPS, a sample a slice."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import ClassVar

import torch
from torch import Tensor, nn

from cmrfast.data.augment import Ranges, augment
from cmrfast.data.cache import Tensors
from cmrfast.data.datasets.case import Case
from cmrfast.data.volume import Volume
from cmrfast.errors import FileError
from cmrfast.infer.joint_scar import as_slices, centred, network_view, segment
from cmrfast.metrics import dice, precision, recall
from cmrfast.tasks.gather import prepared_cases
from cmrfast.tasks.task import Batch, Feed, Output, Prediction, Row, Task, View

_SEQUENCE = "LGE"
_CLASSES = ("myocardium", "scar")  # scar lies in the myocardium, no-reflow in the scar
_VERSION = 1  # of what is cached


class JointScarTask(Task):
    """Learns from every slice of an annotated stack; is judged slice by slice, on the stack's grid.

    Part of a heart that lies beyond the square that the network sees counts as missed.
    """

    name: ClassVar[str] = "joint_scar"
    layouts: ClassVar[tuple[str, ...]] = ("emidec", "myops")
    inputs: ClassVar[tuple[str, ...]] = ("images", "myocardium")  # two_step masks with the latter
    objective: ClassVar[str] = "scar_dice"
    structures: ClassVar[Mapping[int, str]] = {1: "myocardium", 2: "scar"}
    single_image: ClassVar[str | None] = _SEQUENCE
    separable: ClassVar[bool] = True
    published: ClassVar[Mapping[str, Mapping[str, str]]] = {  # the scar's are plots only
        "two_step": {"myocardium_dice": "0.894"},
        "mtl": {"myocardium_dice": "0.900"},
        "jdl": {"myocardium_dice": "0.891"},
    }

    def feed(self, cases: Sequence[Case], *, seed: int) -> Feed:
        """Every slice once an epoch, each time changed anew."""
        found = prepared_cases("joint_scar", cases, self._prepared)
        images, labels = (
            torch.cat([tensors[name] for tensors in found]).to(self.device)
            for name in ("images", "labels")
        )
        recipe = self.recipe
        ranges = Ranges(
            rotate_deg=recipe.rotate_deg,
            scale=recipe.scale,
            translate_share=recipe.translate_share,
            shear_deg=recipe.shear_deg,
        )
        return _Slices(images, labels, ranges, seed)

    def predict(self, model: nn.Module, case: Case) -> Prediction:
        """Masks ``myocardium`` and ``scar``, and their volumes in ml."""
        masks = self._segmented(model, case.image(_SEQUENCE))
        facts = {f"{name}_ml": _millilitres(mask) for name, mask in masks.items()}
        if facts.get("myocardium_ml"):
            facts["scar_share"] = facts["scar_ml"] / facts["myocardium_ml"]
        path = case.images[_SEQUENCE]
        return Prediction({name: Output(mask, path) for name, mask in masks.items()}, facts)

    def evaluate(self, model: nn.Module, case: Case) -> list[Row]:
        """A row a slice: Dice, precision and recall of the scar, Dice of the myocardium.

        Where nothing is drawn and nothing found these are 1; ``scar_pixels`` tells such slices.
        """
        if _SEQUENCE not in case.labels:
            return []
        image, truth = _annotated(case)
        masks = {name: m.data for name, m in self._segmented(model, image).items()}
        scores: dict[str, Tensor] = {}
        for name, mask in masks.items():
            pair = as_slices(mask), as_slices(truth[_CLASSES.index(name)][None])
            scores[f"{name}_dice"] = dice(*pair, batch_axes=1)
            if name == "scar":
                scores["scar_precision"] = precision(*pair, batch_axes=1)
                scores["scar_recall"] = recall(*pair, batch_axes=1)
        drawn = as_slices(truth[_CLASSES.index("scar")][None]).flatten(1).sum(1, dtype=torch.int64)
        columns = {"scar_pixels": drawn.tolist()}
        columns |= {name: values.tolist() for name, values in scores.items()}
        return [
            {"case": case.name, "slice": k, **dict(zip(columns, row, strict=True))}
            for k, row in enumerate(zip(*columns.values(), strict=True))
        ]

    def view(self, model: nn.Module, case: Case) -> View:
        """The stack; label 1 is myocardium, 2 scar."""
        image = case.image(_SEQUENCE)
        masks = self._segmented(model, image)
        predicted = _joined(**{name: mask.data for name, mask in masks.items()})
        reference = None
        if _SEQUENCE in case.labels:
            myocardium, scar = _annotated(case)[1]
            reference = image.with_data(_joined(scar, myocardium)[None])
        return View(image, image.with_data(predicted), reference)

    def _segmented(self, model: nn.Module, image: Volume) -> dict[str, Volume]:
        return segment(model, image, threshold=self.recipe.threshold, batch=self.predict_batch)

    def _prepared(self, case: Case) -> Tensors:
        """``images`` (N, 1, side, side) float32 and ``labels`` (N, 2, side, side) uint8."""

        def make() -> Tensors:
            image, truth = _annotated(case)
            labels = torch.stack([centred(as_slices(m[None]), (side, side)) for m in truth], 1)
            return {"images": network_view(as_slices(image.data), side), "labels": labels}

        side = self.config.image
        if self.cache is None or not {_SEQUENCE} <= case.images.keys() & case.labels.keys():
            return make()
        options = {
            "task": self.name,
            "version": _VERSION,
            "side": side,
            "labelling": asdict(case.labelling[_SEQUENCE]),
        }
        sources = (case.images[_SEQUENCE], case.labels[_SEQUENCE])
        return self.cache.tensors(sources, options, make)


class _Slices:
    """Slices in memory; a batch of them is warped at once, image and masks together."""

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


def _annotated(case: Case) -> tuple[Volume, Tensor]:
    """LGE, and its masks of myocardium and scar (2, I, J, K) uint8."""
    image, label = case.image(_SEQUENCE), case.label(_SEQUENCE)
    if image.channels != 1 or label.channels != 1 or not label.shares_grid(image):
        raise FileError(
            f"joint_scar: {case.labels[_SEQUENCE]} must be one mask on the grid of one image; "
            f"got {tuple(label.data.shape)} for {tuple(image.data.shape)}"
        )
    labelling = case.labelling[_SEQUENCE]
    return image, torch.cat([labelling.mask(label, name).data for name in _CLASSES]).byte()


def _joined(scar: Tensor, myocardium: Tensor | None = None) -> Tensor:
    """1 in the myocardium, 2 in the scar."""
    return 2 * scar if myocardium is None else torch.maximum(myocardium, 2 * scar)


def _millilitres(mask: Volume) -> float:
    voxel_mm3 = float(torch.linalg.det(mask.world_from_vox[:3, :3]).abs())
    return int(mask.data.count_nonzero()) * voxel_mm3 / 1000


TASK = JointScarTask
