"""Registration of cine and LGE slices by SimpleITK, which is an extra."""

from typing import Any

import torch
from torch import Tensor

from cmrfast.data.cache import Tensors

_BINS, _RATE, _STEPS = 32, 1.0, 200


def moved_labels(pairs: Tensors, *, affine: bool) -> Tensor:
    """LGE labels on the cine slices, (N, side, side), after aligning the images' centres of mass.

    Args:
        pairs: images and labels, as ``joint_registration`` prepares them.
        affine: then register by mutual information too, with six parameters.
    """
    try:
        import SimpleITK
    except ImportError:
        raise ImportError("classical: needs SimpleITK; pip install 'cmrfast[bench]'") from None

    moved = []
    for cine, lge, labels in zip(
        pairs["cine"][:, 0], pairs["lge"][:, 0], pairs["lge_labels"], strict=True
    ):
        fixed, moving, marked = (
            SimpleITK.GetImageFromArray(x.numpy()) for x in (cine.float(), lge.float(), labels)
        )
        # Both are z-scores; moments need values that are not negative.
        fixed, moving = (SimpleITK.RescaleIntensity(image, 0, 1) for image in (fixed, moving))
        moments = SimpleITK.CenteredTransformInitializerFilter.MOMENTS
        transform = SimpleITK.CenteredTransformInitializer(
            fixed, moving, SimpleITK.AffineTransform(2), moments
        )
        if affine:
            transform = _register(fixed, moving, transform)
        labels_there = SimpleITK.Resample(marked, fixed, transform, SimpleITK.sitkNearestNeighbor)
        moved.append(torch.from_numpy(SimpleITK.GetArrayFromImage(labels_there)))
    return torch.stack(moved)


def _register(fixed: Any, moving: Any, transform: Any) -> Any:
    import SimpleITK

    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(_RATE, 1e-3, _STEPS)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SetInitialTransform(transform, inPlace=False)
    return method.Execute(fixed, moving)
