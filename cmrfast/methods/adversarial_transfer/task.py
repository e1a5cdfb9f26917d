"""adversarial_transfer on images: three sequences of MS-CMRSeg, a sample a crop of a slice."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cmrfast.data.cache import Tensors
from cmrfast.data.datasets.case import Case
from cmrfast.data.datasets.slices import world_from_slice
from cmrfast.data.draws import order
from cmrfast.data.prepare import transfer_slices
from cmrfast.data.volume import Volume
from cmrfast.errors import FileError
from cmrfast.infer.adversarial_transfer import segment
from cmrfast.metrics import dice, jaccard, surface_distances
from cmrfast.ops import resample
from cmrfast.tasks.crops import Crops
from cmrfast.tasks.gather import prepared_cases
from cmrfast.tasks.task import Batch, Feed, Output, Prediction, Row, Task, View

_LGE, _OTHERS = "LGE", ("C0", "T2")
_STRUCTURES = {"lv": 1, "myocardium": 2, "rv": 3}
_VERSION = 1  # of what is cached

_METRICS = {
    "dice_percent": {
        "u, patients 4 and 5": "70.5 50.0 70.0",
        "u_a, patients 4 and 5": "65.1 53.9 74.7",
        "u_a_t, patients 4 and 5": "76.0 59.6 71.7",
        "u_a": "76.6 42.0 69.5",
        "u_a_t": "82.4 61.0 71.0",
        "u_a, median": "77.8 42.7 71.1",
        "u_a_t, median": "82.1 60.8 72.8",
    },
    "jaccard": {
        "u_a": "0.62 0.27 0.54",
        "u_a_t": "0.71 0.45 0.57",
        "u_a, median": "0.63 0.27 0.55",
        "u_a_t, median": "0.70 0.44 0.57",
    },
    "assd_mm": {
        "u_a": "5.5 4.7 5.5",
        "u_a_t": "3.9 4.0 5.0",
        "u_a, median": "5.3 4.3 5.0",
        "u_a_t, median": "3.8 3.9 4.6",
    },
    "hausdorff_mm": {
        "u, patients 4 and 5": "13.2 12.0 24.6",
        "u_a, patients 4 and 5": "38.0 16.1 19.4",
        "u_a_t, patients 4 and 5": "10.2 12.1 12.9",
        "u_a": "22.1 42.0 32.7",
        "u_a_t": "23.7 24.6 23.5",
        "u_a, median": "18.5 41.2 28.5",
        "u_a_t, median": "15.4 19.6 22.8",
    },
}


def _published() -> dict[str, dict[str, str]]:
    """Tables 1 to 3: without a note, means over patients 6 to 45."""
    table: dict[str, dict[str, str]] = {model: {} for model in _METRICS["dice_percent"]}
    for metric, models in _METRICS.items():
        for model, cells in models.items():
            for structure, cell in zip(_STRUCTURES, cells.split(), strict=True):
                table[model][f"{structure}_{metric}"] = cell
    return table


class AdversarialTransferTask(Task):
    """Learns from annotated slices of all sequences, and from LGE slices with borrowed masks.

    Of the training patients few lend their LGE masks (``recipe.lge_masks``), as in the paper: the
    first ones that have any. LGE slices of the others borrow masks of their bSSFP and T2 slices,
    whether or not they have their own. LGE stacks are judged patient by patient.
    """

    name: ClassVar[str] = "adversarial_transfer"
    layouts: ClassVar[tuple[str, ...]] = ("mscmrseg",)
    inputs: ClassVar[tuple[str, ...]] = ("images",)
    objective: ClassVar[str] = "dice_percent"
    structures: ClassVar[Mapping[int, str]] = {n: name for name, n in _STRUCTURES.items()}
    single_image: ClassVar[str | None] = _LGE
    published: ClassVar[Mapping[str, Mapping[str, str]]] = _published()

    def step(self, epoch: int) -> dict[str, Any]:
        """The generator learns alone in the first epochs."""
        return {"adversarial": epoch >= self.recipe.pretrain_epochs}

    def feed(self, cases: Sequence[Case], *, seed: int) -> Feed:
        """Five crops of every annotated slice, each as it is and changed."""
        lenders = self._lge_lenders(cases)
        found = prepared_cases(self.name, cases, lambda c: self._stacks(c, c.name in lenders))
        true = [stack for own, _ in found for stack in own]
        pseudo = [stack for _, borrowed in found for stack in borrowed]
        if not true:
            raise FileError(f"{self.name}: no training patient has an image with its mask")
        if self.config.variant == "u_a_t" and not pseudo:
            raise FileError(
                f"{self.name}: variant u_a_t needs a training patient with an LGE image and a mask "
                f"of {' or '.join(_OTHERS)}, besides {', '.join(sorted(lenders))}; there is none"
            )
        crops = Crops(true, self.config.size, self.recipe, seed, self.device)
        return _SliceFeed(
            crops,
            Crops(pseudo, self.config.size, self.recipe, seed, self.device, first=len(crops))
            if pseudo
            else None,
        )

    def predict(self, model: nn.Module, case: Case) -> Prediction:
        """``labels``: 1 left ventricle, 2 myocardium, 3 right ventricle; their volumes in ml."""
        labels = self._segmented(model, _single(case, _LGE))
        voxel_ml = torch.linalg.det(labels.world_from_vox[:3, :3]).abs().item() / 1000
        facts = {
            f"{name}_ml": (labels.data == value).sum().item() * voxel_ml
            for name, value in _STRUCTURES.items()
        }
        return Prediction({"labels": Output(labels, case.images[_LGE])}, facts)

    def evaluate(self, model: nn.Module, case: Case) -> list[Row]:
        """One row: of each structure in 3-D Dice, Jaccard and surface distances; mean Dice."""
        if _LGE not in case.labels:
            return []
        image, truth = _masked(case, _LGE)
        labels = self._segmented(model, image).data[0].cpu()
        row: Row = {"case": case.name}
        for name, value in _STRUCTURES.items():
            pair = labels == value, truth.data[0] == value
            distances = surface_distances(*pair, image.spacing_mm)
            row |= {
                f"{name}_dice_percent": 100 * dice(*pair).item(),
                f"{name}_jaccard": jaccard(*pair).item(),
                f"{name}_assd_mm": distances.assd_mm,
                f"{name}_hausdorff_mm": distances.hausdorff_mm,
                f"{name}_hd95_mm": distances.hd95_mm,
            }
        shares = [float(row[f"{name}_dice_percent"]) for name in _STRUCTURES]
        return [row | {"dice_percent": sum(shares) / len(shares)}]

    def view(self, model: nn.Module, case: Case) -> View:
        """The LGE stack with its labels."""
        image = case.image(_LGE)
        reference = case.label(_LGE) if _LGE in case.labels else None
        return View(image, self._segmented(model, image), reference)

    def _segmented(self, model: nn.Module, image: Volume) -> Volume:
        return segment(model, image, self.recipe, batch=self.predict_batch).labels

    def _lge_lenders(self, cases: Sequence[Case]) -> set[str]:
        """Patients whose LGE masks are learned from."""
        having = [c.name for c in cases if _LGE in c.images and _LGE in c.labels]
        share = self.recipe.lge_masks / self.recipe.split[0]
        count = max(1, round(share * len(cases))) if share else 0
        return set(having[:count])

    def _stacks(self, case: Case, lends_lge: bool) -> tuple[list[Tensors], list[Tensors]]:
        """Slices of a patient with their own masks, and with borrowed ones."""
        both = case.images.keys() & case.labels.keys()
        sequences = [s for s in (*_OTHERS, _LGE) if s in both and (s != _LGE or lends_lge)]
        true = [self._prepared(case, s, s) for s in sequences]
        lenders = [s for s in _OTHERS if s in case.labels]
        if self.config.variant != "u_a_t" or lends_lge or _LGE not in case.images:
            lenders = []
        pseudo = [self._prepared(case, _LGE, lender) for lender in lenders]
        true, pseudo = ([s for s in stacks if len(s["images"])] for stacks in (true, pseudo))
        if not true and not pseudo:
            raise FileError(f"{self.name}: {case.name} has no slice with a mask")
        return true, pseudo

    def _prepared(self, case: Case, sequence: str, lender: str) -> Tensors:
        """Slices that have a mask, their own or that of the lender's slice.

        Returns:
            ``images`` (S, 1, I, J) as stored, ``labels`` (S, 1, I, J) uint8.
        """

        def make() -> Tensors:
            if sequence == lender:
                image, masks = _masked(case, sequence)
                slices = list(range(image.shape[2]))
                labels = masks.data
            else:
                image = _single(case, sequence)
                slices, labels = borrowed_masks(case.label(lender), image, self.recipe.slice_map)
            shown = (labels[0] != 0).flatten(0, 1).any(0)
            images = image.data[..., slices]
            return {
                "images": images[..., shown].movedim(-1, 0).contiguous(),
                "labels": labels[..., shown].movedim(-1, 0).contiguous(),
            }

        if self.cache is None:
            return make()
        options = {
            "task": self.name,
            "version": _VERSION,
            "borrowed": sequence != lender,
            "slice_map": self.recipe.slice_map,
            "labelling": asdict(case.labelling[lender]),
        }
        return self.cache.tensors((case.images[sequence], case.labels[lender]), options, make)


class _SliceFeed:
    """Annotated crops; in adversarial epochs as many with borrowed masks beside them."""

    def __init__(self, true: Crops, pseudo: Crops | None) -> None:
        self.true, self.pseudo = true, pseudo

    def __len__(self) -> int:
        return len(self.true)

    def batch(self, epoch: int, samples: Tensor) -> Batch:
        """``images`` (B, 1, size, size), ``labels`` (B, size, size) uint8, and both ``pseudo_…``.

        Every epoch pairs the samples of both sets anew, and uses those of each equally often.
        """
        images, labels = self.true.batch(epoch, samples)
        batch = {"images": images, "labels": labels}
        if self.pseudo is not None and epoch >= self.true.recipe.pretrain_epochs:
            shuffled = order(self.true.seed, epoch, len(self.pseudo))
            others = shuffled[samples.cpu() % len(self.pseudo)]
            images, labels = self.pseudo.batch(epoch, others)
            batch |= {"pseudo_images": images, "pseudo_labels": labels}
        return batch


def borrowed_masks(
    lender: Volume, borrower: Volume, slice_map: Any = "paper"
) -> tuple[list[int], Tensor]:
    """Masks of one stack on slices of another: by order from base to apex, in plane by position.

    Args:
        lender: labels of one stack.
        borrower: the other stack.
        slice_map: as in ``transfer_slices``.

    Returns:
        For each slice of the lender, from the borrower's first end on, the borrower's slice; and
        the masks (1, I, J, S) on these.
    """
    count = lender.shape[2]
    slices = transfer_slices(count, borrower.shape[2], form=slice_map)
    along, other = lender.world_from_vox[:3, 2], borrower.world_from_vox[:3, 2]
    sources = range(count) if along @ other > 0 else reversed(range(count))
    masks = [
        resample(
            lender.data[..., i],
            world_from_slice(lender, i),
            world_from_slice(borrower, j),
            borrower.shape[:2],
            mode="nearest",
        )
        for i, j in zip(sources, slices, strict=True)
    ]
    return slices, torch.stack(masks, -1)


def _single(case: Case, sequence: str) -> Volume:
    image = case.image(sequence)
    if image.channels != 1:
        raise FileError(
            f"adversarial_transfer: {case.images[sequence]} must be one image; "
            f"got {image.channels} channels or time points"
        )
    return image


def _masked(case: Case, sequence: str) -> tuple[Volume, Volume]:
    """An image and its mask."""
    image, label = _single(case, sequence), case.label(sequence)
    if label.channels != 1 or not label.shares_grid(image):
        raise FileError(
            f"adversarial_transfer: {case.labels[sequence]} must be one mask on the grid of "
            f"{case.images[sequence].name}; got {tuple(label.data.shape)} for "
            f"{tuple(image.data.shape)}"
        )
    return image, label


TASK = AdversarialTransferTask
