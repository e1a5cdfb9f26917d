"""A small version of every method, with inputs and targets: all that a new model must add.

The contract in tests/models/test_contract.py runs over each of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from cmrfast.models import build

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sample:
    """How to build and feed one method in a test."""

    #: Arguments of forward and the batch of the loss: ``make(count, side)``.
    inputs: Callable[[int, int], Tensors]
    batch: Callable[[int, int], Tensors]
    #: Shapes of the outputs, likewise.
    shapes: Callable[[int, int], dict[str, tuple[int, ...]]]
    #: Fields that make it small, for a side.
    small: Callable[[int], dict[str, Any]]
    #: Variants: changes that each give another network; the first is the default.
    variants: list[dict[str, Any]]
    sides: tuple[int, int] = (32, 48)
    #: A side that the network cannot take.
    wrong_side: int = 33
    learning_rate: float = 1e-3
    #: Relative difference that bfloat16 may make, of the largest output.
    coarse: float = 0.05


def images(*names: str) -> Callable[[int, int], Tensors]:
    """Random images (B, 1, side, side) under each name."""
    return lambda count, side: {name: torch.randn(count, 1, side, side) for name in names}


def volumes(*names: str) -> Callable[[int, int], Tensors]:
    """Random volumes (B, 1, side, side, side) under each name."""
    return lambda count, side: {name: torch.randn(count, 1, side, side, side) for name in names}


def labels(side: int, count: int, classes: int) -> torch.Tensor:
    """Discs in discs, moved a little from sample to sample: (B, side, side)."""
    at = torch.arange(side) - side / 2
    shift = torch.arange(count).view(-1, 1, 1) - count / 2
    radius = ((at[:, None] + shift) ** 2 + (at + 0.5) ** 2).sqrt() / side
    return (classes - 1 - (radius * 3 * classes).long()).clamp(min=0)


SAMPLES: dict[str, Sample] = {
    "siamese_lesion": Sample(
        inputs=images("t1", "lge"),
        batch=lambda count, _: {"labels": torch.arange(count) % 2},
        shapes=lambda count, _: {"logits": (count, 2), "t1": (count, 128), "lge": (count, 128)},
        small=lambda side: {"patch": side, "channels": (8, 8, 8, 8), "hidden": 32},
        variants=[{}, {"variant": "siamese"}, {"variant": "partial"}, {"norm": "batch"}],
    ),
    "joint_registration": Sample(
        inputs=images("cine", "lge"),
        batch=lambda count, side: {
            "cine_labels": labels(side, count, 4),
            "lge_labels": labels(side, count, 4).roll(3, -1),
        },
        shapes=lambda count, side: {
            "theta": (count, 2, 3),
            "cine": (count, 4, side, side),
            "lge": (count, 4, side, side),
        },
        small=lambda _: {"widths": (4, 6, 8), "head_grid": 4, "hidden": 8},
        variants=[{}, {"fusion": "image"}],
    ),
    "joint_scar": Sample(
        inputs=images("images"),
        batch=lambda count, side: {
            "myocardium": labels(side, count, 2),
            "scar": labels(side, count, 2).roll(3, -1),
        },
        shapes=lambda count, side: {
            "myocardium": (count, 2, side, side),
            "scar": (count, 2, side, side),
        },
        small=lambda side: {
            "image": side,
            "root": 32,
            "units": (1, 2, 1),
            "width": 32,
            "depth": 2,
            "heads": 4,
            "hidden": 48,
            "decoder": (16, 16, 8, 8, 8),
        },
        variants=[
            {},
            {"detach_mask": True},
            {"variant": "two_step"},
            {"variant": "direct"},
            {"variant": "mtl"},
        ],
        sides=(32, 64),
    ),
    "new_lesions": Sample(
        inputs=volumes("earlier", "later"),
        batch=lambda count, side: {
            "masks": torch.stack([labels(side, count, 2).roll(r, -1) for r in range(5)], 1)[
                ..., None
            ].expand(-1, -1, -1, -1, side)
        },
        shapes=lambda count, side: {"logits": (count, 5, side, side, side)},
        small=lambda _: {},
        variants=[{}, {"aux_weight": 0.5}, {"preset": "b"}, {"preset": "b", "aux_weight": 0.5}],
        sides=(16, 24),
        wrong_side=20,
    ),
    "adversarial_transfer": Sample(
        inputs=images("images", "pseudo_images"),
        batch=lambda count, side: {
            "labels": labels(side, count, 4),
            "pseudo_labels": labels(side, count, 4).roll(3, -1),
        },
        shapes=lambda count, side: {
            "logits": (count, 4, side, side),
            "pseudo_logits": (count, 4, side, side),
        },
        small=lambda side: {"width": 8, "size": side, "disc_widths": (4, 6, 8)},
        variants=[{}, {"disc": "residual"}, {"variant": "u"}],
    ),
}


def small(name: str, side: int | None = None, **changes: Any) -> torch.nn.Module:
    """The small version of a method, always the same."""
    sample = SAMPLES[name]
    torch.manual_seed(0)
    return build(name, **sample.small(side or sample.sides[0]) | changes)


def given(name: str, count: int = 4, side: int | None = None) -> tuple[Tensors, Tensors]:
    """Its inputs and its batch, always the same."""
    sample = SAMPLES[name]
    side = side or sample.sides[0]
    torch.manual_seed(1)
    return sample.inputs(count, side), sample.batch(count, side)
