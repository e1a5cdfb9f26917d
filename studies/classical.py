"""Registration of cine and LGE slices by SimpleITK, which is an extra."""

from typing import Any

from torch import Tensor

_BINS, _RATE, _STEPS = 32, 1.0, 200


def register(fixed: Tensor, moving: Tensor, *, affine: bool) -> Any:
    """SimpleITK's transform from one slice to another, in pixels, columns before rows.

    Args:
        fixed, moving: (H, W) slices.
        affine: maximise Mattes' mutual information with six parameters, after aligning the centres
            of mass.
    """
    import SimpleITK

    # Slices are scaled to [0, 1]; moments need a background of 0, too.
    slices = [x.float().cpu() for x in (fixed, moving)]
    images = [
        SimpleITK.GetImageFromArray((x - x.quantile(0.05)).clamp(min=0).numpy()) for x in slices
    ]
    moments = SimpleITK.CenteredTransformInitializerFilter.MOMENTS
    start = SimpleITK.AffineTransform(2)
    transform = SimpleITK.CenteredTransformInitializer(*images, start, moments)
    if not affine:
        return transform
    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(_RATE, 1e-4, _STEPS)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SetInitialTransform(transform, inPlace=False)
    return method.Execute(*images)
