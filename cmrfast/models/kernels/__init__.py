"""Layers with CPU kernels of their own, for the models: registered as the ops are."""

from cmrfast.models.kernels.max_pool import max_pool
from cmrfast.models.kernels.same_conv2d import same_conv2d
from cmrfast.models.kernels.thin_conv3d import thin_conv3d

__all__ = ["max_pool", "same_conv2d", "thin_conv3d"]
