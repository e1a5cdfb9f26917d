"""MONAI's classes and the ones of ``cmrfast.compat.monai`` that take their place."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.workloads.workload import Variant, Workload, with_gradients

_KEYS = ("image", "label")
_MODES = {"mode": ("bilinear", "nearest")}


def _classes(name: str) -> dict[str, Any]:
    """The class of each implementation."""
    import monai.inferers
    import monai.losses
    import monai.transforms

    from cmrfast.compat import monai as ours

    modules = (monai.inferers, monai.losses, monai.transforms)
    theirs = next(getattr(module, name) for module in modules if name in dir(module))
    return {"cmrfast": getattr(ours, name), "MONAI": theirs}


def _case(shape: tuple[int, ...]) -> dict[str, Tensor]:
    """An image and a label of 1 % of its voxels, as MONAI loads them."""
    from monai.data import MetaTensor

    label = (torch.rand(1, *shape) > 0.99).float()
    return {"image": MetaTensor(torch.rand(1, *shape)), "label": MetaTensor(label)}


def sliding_windows(factor: float = 1) -> Workload:
    """Windows of 96³ over 192 x 192 x 160, half overlapping, Gaussian weights, 4 classes."""
    side = max(8, int(96 * factor ** (1 / 3)))
    image = torch.rand(1, 1, 2 * side, 2 * side, 5 * side // 3)
    options = {"sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}

    def network(windows: Tensor) -> Tensor:
        return torch.cat([windows] * 4, 1)

    def run(kind: Any) -> list[Tensor]:
        return [kind((side,) * 3, **options)(image, network)]

    return Workload(_variants("SlidingWindowInferer", run), moved=20 * image.numel())


def loss(name: str, factor: float = 1) -> Workload:
    """A loss of (2, 4, 96³) with labels, forward and backward."""
    side = max(4, int(96 * factor ** (1 / 3)))
    logits = torch.randn(2, 4, side, side, side, requires_grad=True)
    labels = torch.randint(0, 4, (2, 1, side, side, side)).float()

    def run(kind: Any) -> Any:
        made = kind(to_onehot_y=True, softmax=True)
        return with_gradients(lambda x: made(x, labels), logits)()

    return Workload(_variants(name, run), moved=12 * logits.numel(), tolerance=1e-3)


def crops(factor: float = 1) -> Workload:
    """4 crops of 96³ from 192 x 192 x 128, half of them with foreground in their centre."""
    side = max(8, int(96 * factor ** (1 / 3)))
    case = _case((2 * side, 2 * side, 4 * side // 3))

    def run(kind: Any) -> list[Tensor]:
        crop = kind(_KEYS, "label", (side,) * 3, num_samples=4).set_random_state(0)
        return [sample[key].as_tensor() for sample in crop(case) for key in _KEYS]

    read = 4 * case["label"].numel()  # crops are views
    return Workload(_variants("RandCropByPosNegLabeld", run), moved=read)


def affines(factor: float = 1) -> Workload:
    """A rotation and scaling of 128³ with its label, reflected at the border."""
    side = max(8, int(128 * factor ** (1 / 3)))
    case = _case((side,) * 3)
    ranges = {"prob": 1.0, "rotate_range": [0.3] * 3, "scale_range": [0.1] * 3}

    def run(kind: Any) -> list[Tensor]:
        made = kind(_KEYS, **ranges, **_MODES).set_random_state(0)(case)
        return [made[key].as_tensor() for key in _KEYS]

    moved = 16 * case["image"].numel()
    return Workload(_variants("RandAffined", run), moved=moved, tolerance=1e-3, outliers=1e-3)


def spacing(factor: float = 1) -> Workload:
    """182 x 218 x 182 at 1 mm to 0.83 mm, with its label."""
    case = _case(tuple(max(6, int(n * factor ** (1 / 3))) for n in (182, 218, 182)))

    def run(kind: Any) -> list[Tensor]:
        spaced = kind(_KEYS, (0.83,) * 3, **_MODES)(case)
        return [spaced[key].as_tensor() for key in _KEYS]

    moved = 22 * case["image"].numel()
    return Workload(_variants("Spacingd", run), moved=moved, tolerance=1e-3, outliers=1e-3)


def _variants(name: str, run: Callable[[Any], list[Tensor]]) -> dict[str, Variant]:
    return {library: partial(run, kind) for library, kind in _classes(name).items()}


#: Name -> what is done, and the workload.
COMPAT: dict[str, tuple[str, Callable[[], Workload]]] = {
    "SlidingWindowInferer": (
        "192 x 192 x 160, windows of 96³, Gaussian, without a network",
        sliding_windows,
    ),
    "DiceCELoss": ("(2, 4, 96³), forward and backward", partial(loss, "DiceCELoss")),
    "DiceLoss": ("(2, 4, 96³), forward and backward", partial(loss, "DiceLoss")),
    "RandCropByPosNegLabeld": ("4 crops of 96³ from 192 x 192 x 128, with label", crops),
    "RandAffined": ("128³ with label", affines),
    "Spacingd": ("182 x 218 x 182, 1 mm to 0.83 mm, with label", spacing),
}
