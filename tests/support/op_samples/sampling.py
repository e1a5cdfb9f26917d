"""Samples of the ops that interpolate: turned patches, affines, other grids."""

import torch

from tests.support.op_samples.registry import samples_of
from tests.support.op_samples.tensors import dense, normal, packed


def poses(count, shape, device, dtype):
    """Centers inside, across the border and far outside; matrices, one of them not finite."""
    axes = len(shape)
    center = torch.rand(count, axes, dtype=torch.float64) * (torch.tensor(shape) + 2) - 1.5
    matrix = (
        0.8 * torch.eye(axes, dtype=torch.float64) + 0.4 * torch.randn(count, axes, axes).double()
    )
    matrix[3::5] = torch.eye(axes, dtype=torch.float64).flip(-1)  # onto voxels, or between them
    center[3::5] = center[3::5].round() / 2
    center[5::7], center[6::7, 0] = 2.0**62, torch.nan
    matrix[4::7, 0, 0], matrix[9::11, :, 0] = -torch.inf, 1e300
    return center.to(device, dtype), matrix.to(device, dtype)


@samples_of("sample_patches")
def sample_patches(device, dtype):
    for axes, size in ((2, (3, 70)), (3, (2, 3, 7)), (3, (1, 1, 1))):
        for source in (dtype, torch.uint8, torch.int16, torch.bfloat16):
            buffer, table, shapes = packed(device, source, axes)
            for mode, count in ((0, 17), (2, 17), (3, 17), (0, 0)):
                center, matrix = poses(count, shapes[0], device, torch.float64)
                index = (torch.arange(count) % 5 - 1).to(device)  # also outside the table
                shift = torch.rand(3, 2, dtype=torch.float64, device=device)
                numbers = (index, shift, 1 + shift, 2, size, mode, 0.5, dtype)
                yield buffer, table, (), center, matrix, *numbers
    for target in (torch.uint8, torch.int16, torch.int64, torch.float16):
        center, matrix = poses(17, shapes[0], device, torch.float64)
        for mode in (0, 2):
            numbers = (index[:0], shift, 1 + shift, 2, (2, 3, 7), mode, -3.5, target)
            yield buffer, table, (), center, matrix, *numbers
    for axes, size in ((2, (3, 5)), (3, (2, 3, 7))):
        table, shape, numel = dense(device, axes)
        buffer = normal(numel, device=device, dtype=dtype)
        index = (torch.arange(17) % 4 - 1).to(device)
        for mode in (0, 2, 3):
            center, matrix = poses(17, shape, device, torch.float32)
            numbers = (index, shift[:0, 0], shift[:0, 0], 2, size, mode, 0.5, dtype)
            yield buffer, table, shape, center, matrix, *numbers


@samples_of("sample_patches_backward")
def sample_patches_backward(device, dtype):
    for axes, size in ((2, (3, 70)), (3, (2, 3, 7))):
        buffer, table, shapes = packed(device, dtype, axes)
        index = (torch.arange(17) % 5 - 1).to(device)
        scale = torch.rand(3, 2, dtype=torch.float64, device=device)
        grad = normal(17, 2, *size, device=device, dtype=dtype)
        for mode in (0, 2, 3):
            center, matrix = poses(17, shapes[0], device, torch.float64)
            yield grad, table, (), center, matrix, index, scale, len(buffer), mode
        yield grad[:0], table, (), center[:0], matrix[:0], index[:0], scale, len(buffer), 0

        table, shape, numel = dense(device, axes)
        center, matrix = poses(17, shape, device, torch.float32)
        for mode in (0, 2, 3):
            yield grad, table, shape, center, matrix, index[:0], scale[:0, 0], numel, mode


def turned(count, axes, n, size, device):
    """Matrices that turn, shrink and shift; samples fall inside and outside, none on a voxel."""
    matrix = torch.eye(axes, axes + 1, dtype=torch.float64).repeat(count, 1, 1)
    matrix += 0.2 * torch.randn(count, axes, axes + 1, dtype=torch.float64)
    matrix[:, :, :-1] *= torch.tensor(n)[:, None] / torch.tensor(size)
    return matrix.to(device)


@samples_of("vox_from_vox")
def vox_from_vox(device, dtype):
    for axes in (2, 3):
        for other in (dtype, torch.float64):
            source = torch.eye(4) + 0.2 * torch.randn(4, 4)
            target = torch.eye(4) + torch.randn(4, 4)
            yield source.to(device, dtype), target.to(device, other), axes
    yield torch.eye(4, device=device, dtype=dtype), 2 * torch.eye(4, device=device).double(), 3


@samples_of("affine_sample")
def affine_sample(device, dtype):
    for n, size in (((7, 11), (5, 101)), ((5, 4, 11), (3, 5, 13)), ((1, 5, 1), (2, 3, 1))):
        images = normal(2, 3, *n, device=device, dtype=dtype)
        matrix = turned(2, len(n), n, size, device)
        for mode in (0, 1, 2):
            for border in (0, 1, 2):
                yield images, matrix, size, 0, mode, border, 0.5 if border == 2 else 0.0
        yield images[:0], matrix[:0], size, 0, 0, 0, 0.0
        for frame in (1, 2):
            theta = turned(2, len(n), (1,) * len(n), (1,) * len(n), device)
            for thetas in (theta, theta[:1], theta.float()):
                yield images, thetas, size, frame, 0, 0, 0.0
            yield images, theta, size, frame, 1, 1, 0.0
        for bad in (torch.nan, torch.inf, -torch.inf, 1e300, 2.0**62):
            hostile = matrix.clone()
            hostile[0, 0, -1] = bad
            hostile[1, -1, 0] = bad
            for border in (0, 1, 2):
                yield images, hostile, size, 0, 1, border, 0.5 if border == 2 else 0.0
    wide = torch.diag(torch.tensor([0.5, 2.0, 0.9], dtype=torch.float64))  # axis-aligned
    wide = torch.cat((wide, torch.tensor([[-0.7], [3.1], [0.2]])), 1)[None].to(device)
    images = normal(1, 2, 5, 17, 13, device=device, dtype=dtype)
    for matrix in (wide, wide[:, [2, 0, 1]], -wide, wide * torch.tensor([-1.0])):
        yield images, matrix, (11, 7, 19), 0, 0, 2, 0.25


@samples_of("affine_sample_backward")
def affine_sample_backward(device, dtype):
    for n, size in (((7, 11), (5, 101)), ((5, 4, 11), (3, 5, 13)), ((1, 5, 1), (2, 3, 1))):
        images = normal(2, 3, *n, device=device, dtype=dtype)
        grad = normal(2, 3, *size, device=device, dtype=dtype)
        matrix = turned(2, len(n), n, size, device)
        for mode, border in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 2)):
            yield grad, images, matrix, 0, mode, border, True, True
        yield grad, images, matrix, 0, 0, 0, False, True
        yield grad[:0], images[:0], matrix[:0], 0, 0, 0, True, True
        many = torch.arange(9) % 2  # enough images for one task each
        yield grad[many], images[many], matrix[many], 0, 0, 0, True, False
        theta = turned(2, len(n), (1,) * len(n), (1,) * len(n), device)
        for frame in (1, 2):
            for thetas in (theta, theta[:1], theta.float()):
                yield grad, images, thetas, frame, 0, 0, True, True
        singular = matrix.clone()  # all samples on a plane, and all at one point
        singular[0, :, 0], singular[1, :, :-1] = 0, 0
        for border in (0, 1, 2):
            yield grad, images, singular, 0, 0, border, True, False


@samples_of("resample_argmax")
def resample_argmax(device, dtype):
    for n, size, classes in (
        ((7, 11), (5, 101), 3),
        ((5, 4, 11), (3, 5, 13), 5),
        ((1, 5, 1), (2, 3, 1), 2),
        ((3, 5, 7), (4, 3, 9), 1),
    ):
        logits = normal(classes, *n, device=device, dtype=dtype)
        matrix = turned(1, len(n), n, size, device)[0]
        yield logits, matrix, size, 9, torch.uint8
        yield logits, matrix, size, -1, torch.int64
        hostile = matrix.clone()
        hostile[0, -1], hostile[-1, 0] = torch.nan, 1e300
        yield logits, hostile, size, 7, torch.int16
    wide = torch.diag(torch.tensor([0.5, 2.0, 0.9], dtype=torch.float64))  # axis-aligned
    wide = torch.cat((wide, torch.tensor([[-0.7], [3.1], [0.2]])), 1).to(device)
    logits = normal(4, 5, 17, 13, device=device, dtype=dtype)
    logits[2, 2, 7:9] = torch.nan
    for matrix in (wide, wide[[2, 0, 1]], -wide, wide * torch.tensor([-1.0], device=device)):
        yield logits, matrix, (11, 7, 19), 6, torch.int32
    ties = torch.randint(0, 2, (3, 6, 7, 8)).to(dtype).to(device)
    yield ties, torch.eye(3, 4, dtype=torch.float64, device=device), (6, 7, 9), 5, torch.int8


@samples_of("contract_axis")
def contract_axis(device, dtype):
    for outer, n, inner, count in ((3, 7, 5, 11), (1, 1, 1, 1), (13, 5, 1, 3), (0, 3, 2, 2)):
        weights = torch.randn(count, n, dtype=torch.float64)
        weights[:, : n // 3] = 0
        yield normal(outer, n, inner, device=device, dtype=dtype), weights.to(device)
