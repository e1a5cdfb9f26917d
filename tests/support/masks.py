"""Masks drawn for tests, and what scores of them are compared by."""

import math

import numpy as np
import torch
from hypothesis import strategies as st
from scipy import ndimage


def ball(shape, center, radius):
    axes = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    return sum((a - c) ** 2 for a, c in zip(axes, center, strict=True)) < radius**2


def blobs(shape, share, seed, sigma=2.0):
    """Smooth random shapes that fill a share of the image."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    smooth = ndimage.gaussian_filter(noise, sigma)
    return torch.from_numpy(smooth > np.quantile(smooth, 1 - share))


def masks(axes, side=9):
    """Pairs of masks of one shape, empty ones included."""
    shapes = st.tuples(*[st.integers(1, side)] * axes)
    return st.tuples(shapes, st.integers(0, 2**31), st.sampled_from([0.0, 0.05, 0.3, 1.0])).map(
        lambda given: [
            torch.rand(given[0], generator=torch.Generator().manual_seed(given[1] + i)) < given[2]
            for i in range(2)
        ]
    )


def same(a, b):
    """Equal to float64's tolerance, NaN where NaN is."""
    torch.testing.assert_close(
        torch.as_tensor(a, dtype=torch.float64),
        torch.as_tensor(b, dtype=torch.float64),
        equal_nan=True,
    )


def ellipse(shape, center, radius, turned=0.0, ratio=1.0):
    i, j = torch.meshgrid(*(torch.arange(n).double() for n in shape), indexing="ij")
    i, j = i - center[0], j - center[1]
    along, across = (
        i * math.cos(turned) + j * math.sin(turned),
        j * math.cos(turned) - i * math.sin(turned),
    )
    return along.square() + (across / ratio).square() < radius**2
