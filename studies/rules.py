"""What needs no network: classical registration, threshold rules, borrowed masks."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import cmrfast
from cmrfast import methods
from cmrfast.data import Volume
from cmrfast.data.datasets import Case
from cmrfast.methods import Row
from cmrfast.methods.adversarial_transfer.transfer import borrowed_masks
from cmrfast.methods.new_lesions.images import align, normalise
from cmrfast.methods.siamese_lesion.lesions import lesion_mask, reference_sector
from cmrfast.ops import resample
from cmrfast.runs.evaluate import Evaluation
from studies.classical import register
from studies.peer import Peer, score

_THRESHOLDS = tuple(n / 2 for n in range(2, 13))  # of a difference of z-scores


class _Registration(nn.Module):
    """SimpleITK in place of a registration network, on the slices that a network would get."""

    def __init__(self, *, affine: bool) -> None:
        super().__init__()
        self.affine = affine

    def forward(self, cine: Tensor, lge: Tensor) -> dict[str, Tensor]:
        """``theta`` (B, 2, 3) of slices (B, 1, H, W)."""
        pairs = zip(cine[:, 0], lge[:, 0], strict=True)
        return {"theta": torch.stack([_theta(*pair, affine=self.affine) for pair in pairs])}


def _theta(fixed: Tensor, moving: Tensor, *, affine: bool) -> Tensor:
    """SimpleITK's transform as ``affine_sample`` takes it, (2, 3)."""
    transform = register(fixed, moving, affine=affine)
    origin, *ends = (
        torch.tensor(transform.TransformPoint(point), dtype=torch.float64)
        for point in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    )
    linear = torch.stack([end - origin for end in ends], 1)
    # From pixels to coordinates from -1 to 1, in SimpleITK's order: columns before rows.
    half = torch.tensor(fixed.shape[::-1], dtype=torch.float64) / 2
    middle = half - 0.5
    offset = linear @ middle + origin - middle
    return torch.cat((linear * half / half[:, None], (offset / half)[:, None]), 1).float()


def registrations(test: Sequence[Case], **changes: Any) -> list[Peer]:
    """SimpleITK's registrations, scored as ``joint_registration``'s networks; none without it."""
    if find_spec("SimpleITK") is None:
        return []
    method = methods.get("joint_registration")
    task = method.task(*method.configure(changes))
    found = []
    for name, affine in (("centres of mass", False), ("affine, mutual information", True)):
        start = time.monotonic()
        model: Any = _Registration(affine=affine).eval()
        rows = [row for case in test for row in task.evaluate(model, case)]
        found.append(
            Peer(
                f"SimpleITK, {name}",
                version("SimpleITK"),
                time.monotonic() - start,
                Evaluation("joint_registration", "test", rows, {}),
                "each pair of slices on its own, as the networks get it; no training",
            )
        )
    return found


def six_deviations(
    test: Sequence[Case], walls: Mapping[str, Volume] | None = None, **changes: Any
) -> Peer:
    """The 6-SD rule in the wall as scar, with the wall's darkest sector as healthy muscle.

    Args:
        test: patients.
        walls: of each patient, on the image's grid; None for the true ones.
        changes: changed fields of the method.
    """
    start, labels = time.monotonic(), {}
    for case in test:
        image = case.image("LGE", channels=1)
        if walls is None:
            wall = case.labelling["LGE"].mask(case.mask_on(image, "LGE"), "myocardium")
        else:
            wall = walls[case.name].with_data(walls[case.name].data != 0)
        slices = [
            _bright(image.data[0, ..., k], wall.data[0, ..., k], image.spacing_mm[:2])
            for k in range(image.shape[2])
        ]
        scar = torch.stack(slices, -1)
        labels[case.name] = image.with_data(wall.data.byte() + scar[None].byte())
    evaluation = score("joint_scar", test, labels, **changes)
    without_wall = [
        Row(row.ids, {name: v for name, v in row.scores.items() if name.startswith("scar")})
        for row in evaluation.rows  # the wall was given
    ]
    whose = "true" if walls is None else "predicted"
    note = "healthy muscle: the wall's darkest sector of 60 degrees"
    return _rule(
        f"the 6-SD rule in the {whose} wall", start, replace(evaluation, rows=without_wall), note
    )


def _bright(image: Tensor, wall: Tensor, spacing_mm: Sequence[float]) -> Tensor:
    """The rule in one slice; nothing where the wall is too small for a sector."""
    try:
        healthy = reference_sector(image, wall, spacing_mm=spacing_mm)
    except ValueError:
        return torch.zeros_like(wall)
    return lesion_mask(image, wall, healthy, border_px=0, spacing_mm=spacing_mm) & wall


def difference_threshold(train: Sequence[Case], test: Sequence[Case], **changes: Any) -> Peer:
    """Later minus earlier visit above the threshold of the best mean F1 of training patients."""
    start = time.monotonic()
    recipe = methods.get("new_lesions").configure(changes)[1]
    differences = {case.name: _difference(case, recipe) for case in (*train, *test)}

    def evaluate(cases: Sequence[Case], threshold: float) -> Evaluation:
        images = {case.name: differences[case.name] for case in cases}
        labels = {
            n: image.with_data((image.data > threshold).byte()) for n, image in images.items()
        }
        return score("new_lesions", cases, labels, **changes)

    best = max(_THRESHOLDS, key=lambda t: evaluate(train, t).summary()["f1"].mean)
    note = f"difference of z-scores in the brain above {best:g}, the best on the training patients"
    return _rule("a threshold of the difference image", start, evaluate(test, best), note)


def _difference(case: Case, recipe: Any) -> Volume:
    """Later minus earlier z-scores, on the later image's grid."""
    brains = [case.label("brain")] if "brain" in case.labels else []
    first, second = case.image("earlier"), case.image("later")
    visits = align(first, second, brains, recipe=recipe)
    earlier, later = normalise(visits.images, visits.brain)
    difference = (later - earlier)[None]
    return second.with_data(
        resample(difference, visits.world_from_vox, second.world_from_vox, second.shape)
    )


def borrowed(test: Sequence[Case], **changes: Any) -> list[Peer]:
    """Masks of cine and T2 on the LGE stack, which ``adversarial_transfer`` learns from."""
    recipe = methods.get("adversarial_transfer").configure(changes)[1]
    found = []
    for lender in ("C0", "T2"):
        start, cases = time.monotonic(), [case for case in test if lender in case.labels]
        labels = {case.name: _borrow(case, lender, recipe) for case in cases}
        evaluation = score("adversarial_transfer", cases, labels, **changes)
        note = "each mask is repeated up to the slice of the next one"
        found.append(_rule(f"masks borrowed from {lender}", start, evaluation, note))
    return found


def _borrow(case: Case, lender: str, recipe: Any) -> Volume:
    image = case.image("LGE", channels=1)
    slices, masks = borrowed_masks(case.label(lender), image, recipe.slice_map)
    labels = torch.zeros_like(image.data, dtype=torch.uint8)
    for n, first in enumerate(slices):
        labels[..., first:] = masks[..., n : n + 1]
    return image.with_data(labels)


def _rule(name: str, start: float, evaluation: Evaluation, note: str) -> Peer:
    return Peer(name, cmrfast.__version__, time.monotonic() - start, evaluation, note)
