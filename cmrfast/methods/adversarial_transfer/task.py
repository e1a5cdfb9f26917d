"""adversarial_transfer on images: three sequences of MS-CMRSeg, a sample a crop of a slice."""

import math
from collections.abc import Sequence

from torch import Tensor

from cmrfast.data.cache import Tensors
from cmrfast.data.datasets.case import Case
from cmrfast.data.random import order
from cmrfast.data.volume import Volume
from cmrfast.errors import FileError
from cmrfast.methods.adversarial_transfer.crops import Crops
from cmrfast.methods.adversarial_transfer.images import (
    STRUCTURES,
    even_label_pixels,
    even_pixels,
    segment,
)
from cmrfast.methods.adversarial_transfer.transfer import borrowed_masks
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
)
from cmrfast.metrics import dice, jaccard, surface_distances
from cmrfast.models.adversarial_transfer import AdversarialTransfer, Config, Recipe

_LGE, _OTHERS = "LGE", ("C0", "T2")
OVERLAPS = {f"{name}_{score}": name for name in STRUCTURES for score in ("dice_percent", "jaccard")}


def _prepare(source: Source[Config, Recipe]) -> Tensors:
    """Slices of the one image with the one mask, its own or that of another sequence's slices.

    Returns:
        ``images`` (S, 1, I, J) and ``labels`` (S, 1, I, J) uint8, of slices with a mask, with
        pixels of ``pixel_mm``.
    """
    case, recipe = source.case, source.recipe
    (sequence,), (lender, *_) = case.images, case.labels  # the first of a mask's files
    stored = case.image(sequence, channels=1, non_finite=recipe.non_finite)
    image = even_pixels(stored, recipe.pixel_mm)
    if sequence == lender:
        own = even_label_pixels(case.mask_on(stored, lender), recipe.pixel_mm)
        slices, labels = list(range(image.shape[2])), own.data
    else:
        slices, labels = borrowed_masks(case.label(lender), image, recipe.slice_map)
    shown = (labels[0] != 0).flatten(0, 1).any(0)
    return {
        "images": image.data[..., slices][..., shown].movedim(-1, 0).contiguous(),
        "labels": labels[..., shown].movedim(-1, 0).contiguous(),
    }


OWN_MASKS = {
    sequence: Preparation[Config, Recipe](
        f"adversarial_transfer, masks of {sequence}",
        _prepare,
        images=(sequence,),
        labels=(sequence,),
        recipe=("pixel_mm", "non_finite"),
    )
    for sequence in (*_OTHERS, _LGE)
}
BORROWED_MASKS = {
    lender: Preparation(
        f"adversarial_transfer, masks of {lender} on {_LGE}",
        _prepare,
        images=(_LGE,),
        labels=(lender,),
        recipe=("pixel_mm", "slice_map", "non_finite"),
    )
    for lender in _OTHERS
}


class AdversarialTransferTask(Task[AdversarialTransfer, Config, Recipe]):
    """Learns from annotated slices of all sequences, and from LGE slices with borrowed masks.

    As in the paper, LGE masks of few training patients are used (``recipe.lge_masks``): the first
    ones that have any. LGE slices of the other patients borrow the masks of their bSSFP and T2
    slices, whether or not they have masks of their own. LGE stacks are scored patient by patient.

    A split per sequence decides instead of ``recipe.lge_masks``: all LGE masks of its training part
    are used, and its unlabelled LGE images borrow. ``protocol_split`` makes those of the paper.
    """

    preparations = (*OWN_MASKS.values(), *BORROWED_MASKS.values())

    def feed(self, cases: Sequence[Case], *, seed: int) -> Feed:
        """Five crops of every annotated slice, unchanged and augmented."""
        lenders = self._lge_lenders(cases)
        prepared = prepare_cases(
            "adversarial_transfer", cases, lambda case: self._stacks(case, case.name in lenders)
        )
        true = [stack for own, _ in prepared for stack in own]
        pseudo = [stack for _, borrowed in prepared for stack in borrowed]
        if not true:
            raise FileError("adversarial_transfer: no training patient has an image with its mask")
        if self.config.variant == "u_a_t" and not pseudo:
            raise FileError(
                "adversarial_transfer: variant u_a_t needs a training patient with an LGE image "
                f"and a mask of {' or '.join(_OTHERS)}, besides {', '.join(sorted(lenders))}; "
                "there is none"
            )
        crops = Crops(true, self.config.size, self.recipe, seed, self.device)
        return _SliceFeed(
            crops,
            Crops(pseudo, self.config.size, self.recipe, seed, self.device, first=len(crops))
            if pseudo
            else None,
        )

    def predict(self, model: AdversarialTransfer, case: Case) -> Prediction:
        """``labels``: 1 left ventricle, 2 myocardium, 3 right ventricle; their volumes in ml."""
        labels = self._segment(model, self._image(case))
        facts = {
            f"{name}_ml": labels.with_data(labels.data == value).mask_ml()
            for name, value in STRUCTURES.items()
        }
        names = {value: name for name, value in STRUCTURES.items()}
        return Prediction({"labels": Output(labels, case.images[_LGE], names)}, facts)

    def require_scorable(self, case: Case) -> None:
        """Raise ``FileError`` where LGE or its mask cannot be used."""
        if _LGE in case.labels:
            case.mask_on(self._image(case), _LGE)

    def evaluate(self, model: AdversarialTransfer, case: Case) -> list[Row]:
        """One row: 3-D Dice, Jaccard and surface distances of each structure; mean Dice.

        The mean leaves out a structure that both masks lack.
        """
        if _LGE not in case.labels:
            return []
        image = self._image(case)
        truth = case.mask_on(image, _LGE)
        labels = self._segment(model, image).data[0].cpu()
        scores: dict[str, float] = {}
        present: dict[str, Presence] = {}
        for name, value in STRUCTURES.items():
            pair = labels == value, truth.data[0] == value
            present[name] = presence(pair[1].any(), pair[0].any())
            distances = surface_distances(*pair, image.spacing_mm)
            scores |= {
                f"{name}_dice_percent": 100 * dice(*pair).item(),
                f"{name}_jaccard": jaccard(*pair).item(),
                f"{name}_assd_mm": distances.assd_mm,
                f"{name}_hausdorff_mm": distances.hausdorff_mm,
                f"{name}_hd95_mm": distances.hd95_mm,
            }
        each = [scores[f"{n}_dice_percent"] for n, which in present.items() if which != "neither"]
        mean = sum(each) / len(each) if each else math.nan
        return [Row({"case": case.name}, scores | {"dice_percent": mean}, present)]

    def picture(self, model: AdversarialTransfer, case: Case) -> Picture:
        """The LGE stack with its labels."""
        image = self._image(case)
        reference = case.label(_LGE) if _LGE in case.labels else None
        return Picture(image, self._segment(model, image), reference)

    def _image(self, case: Case) -> Volume:
        return case.image(_LGE, channels=1, non_finite=self.recipe.non_finite)

    def _segment(self, model: AdversarialTransfer, image: Volume) -> Volume:
        return segment(model, image, self.recipe, batch=self.predict_batch).labels

    def _lge_lenders(self, cases: Sequence[Case]) -> set[str]:
        """Names of the patients whose LGE masks are used."""
        having = [c.name for c in cases if _LGE in c.images and _LGE in c.labels]
        if any(case.sequences is not None for case in cases):  # the split lists them
            return set(having)
        fraction = self.recipe.lge_masks / self.recipe.split[0]
        count = max(1, round(fraction * len(cases)))
        return set(having[: min(count, self.recipe.lge_masks)])

    def _stacks(self, case: Case, lends_lge: bool) -> tuple[list[Tensors], list[Tensors]]:
        """Slices of a patient with their own masks, and with borrowed ones."""
        both = case.images.keys() & case.labels.keys()
        sequences = [s for s in (*_OTHERS, _LGE) if s in both and (s != _LGE or lends_lge)]
        true = [self.prepared(OWN_MASKS[sequence], case) for sequence in sequences]
        lenders = [s for s in _OTHERS if s in case.labels]
        # Patients with true LGE masks never get pseudo masks.
        if self.config.variant != "u_a_t" or lends_lge or _LGE not in case.images:
            lenders = []
        pseudo = [self.prepared(BORROWED_MASKS[lender], case) for lender in lenders]
        true, pseudo = ([s for s in stacks if len(s["images"])] for stacks in (true, pseudo))
        if not true and not pseudo:
            raise FileError(f"adversarial_transfer: {case.name} has no slice with a mask")
        return true, pseudo


class _SliceFeed:
    """Annotated crops; in adversarial epochs, as many crops with borrowed masks."""

    def __init__(self, true: Crops, pseudo: Crops | None) -> None:
        self.true, self.pseudo = true, pseudo

    def __len__(self) -> int:
        return len(self.true)

    def batch(self, epoch: int, samples: Tensor) -> Batch:
        """``images`` (B, 1, size, size), ``labels`` (B, size, size) uint8, and both ``pseudo_…``.

        Every epoch draws new pairs of samples of both sets, and uses those of each equally often,
        on average over epochs.
        """
        images, labels = self.true.batch(epoch, samples)
        batch = {"images": images, "labels": labels}
        # Algorithm 1 first trains the generator alone, on true masks.
        if self.pseudo is not None and epoch >= self.true.recipe.pretrain_epochs:
            shuffled = order(self.true.seed, epoch, len(self.pseudo))
            others = shuffled[samples.cpu() % len(self.pseudo)]
            images, labels = self.pseudo.batch(epoch, others)
            batch |= {"pseudo_images": images, "pseudo_labels": labels}
        return batch
