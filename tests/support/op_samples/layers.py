"""Samples of the models' own layers."""

import torch

from tests.support.op_samples.registry import samples_of
from tests.support.op_samples.tensors import normal


@samples_of("thin_conv3d")
def thin_conv3d(device, dtype):
    for (batch, *size), before, after, slope in (
        ((2, 3, 2, 3), 1, 2, 0.1),
        ((1, 1, 1, 1), 1, 1, 1.0),
        ((2, 5, 7, 11), 3, 1, 1.0),
        ((1, 19, 3, 29), 7, 5, 0.01),
        ((2, 1, 61, 67), 14, 13, 1.0),
        ((0, 3, 4, 5), 2, 3, 1.0),
    ):
        x = normal(batch, before, *size, device=device, dtype=dtype)
        weight = normal(after, before, 3, 3, 3, device=device, dtype=dtype) / (27 * before) ** 0.5
        yield x, weight, normal(after, device=device, dtype=dtype), slope


@samples_of("thin_conv3d_backward")
def thin_conv3d_backward(device, dtype):
    for x, weight, *_ in thin_conv3d(device, dtype):
        shape = torch.Size((x.shape[0], weight.shape[0], *x.shape[2:]))
        yield normal(*shape, device=device, dtype=dtype) / max(1, shape[2:].numel()) ** 0.5, x


@samples_of("max_pool")
def max_pool(device, dtype):
    for size in ((2, 3, 4, 6), (1, 1, 2, 2), (1, 2, 7, 37), (2, 2, 4, 6, 8), (1, 1, 3, 5, 33)):
        yield (normal(*size, device=device, dtype=dtype),)
    yield (normal(0, 2, 4, 4, device=device, dtype=dtype),)


@samples_of("max_pool_backward")
def max_pool_backward(device, dtype):
    for (x,) in max_pool(device, dtype):
        size = (*x.shape[:2], *(n // 2 for n in x.shape[2:]))
        yield normal(*size, device=device, dtype=dtype), x


@samples_of("same_conv2d")
def same_conv2d(device, dtype):
    for (batch, *size), before, after, side, dilation, mirrored in (
        ((2, 3, 2), 1, 2, 3, 1, False),
        ((1, 1, 1), 1, 1, 5, 1, True),
        ((2, 7, 11), 3, 5, 3, 2, True),
        ((1, 19, 29), 9, 17, 5, 1, False),
        ((3, 61, 67), 18, 35, 3, 1, False),
        ((2, 5, 40), 20, 3, 5, 3, True),
        ((0, 4, 5), 2, 3, 3, 1, False),
    ):
        x = normal(batch, before, *size, device=device, dtype=dtype)
        shape = (before, after) if mirrored else (after, before)
        weight = normal(*shape, side, side, device=device, dtype=dtype) / (before * side**2) ** 0.5
        yield x, weight, normal(after, device=device, dtype=dtype), dilation, mirrored


@samples_of("same_conv2d_backward")
def same_conv2d_backward(device, dtype):
    for x, weight, bias, dilation, _ in same_conv2d(device, dtype):
        shape = torch.Size((x.shape[0], len(bias), *x.shape[2:]))
        grad = normal(*shape, device=device, dtype=dtype) / max(1, shape[2:].numel()) ** 0.5
        yield grad, x, weight.shape[-1], dilation
