"""Samples of the ops that extract patches, count in windows or merge patches."""

import torch

from tests.support.op_samples.registry import samples_of
from tests.support.op_samples.tensors import dense, normal, packed


def windows(count, shape, spread=4):
    """Starts that lie inside, across the border, far outside and at the ends of int64."""
    start = torch.stack([torch.randint(-spread, n + spread, (count,)) for n in shape], 1)
    start[1::7] = 2**62
    start[2::7] = -(2**62)
    return start


def windows_of(count, shapes, device):
    return windows(count, shapes[0]).to(device), (torch.arange(count) % len(shapes)).to(device)


@samples_of("merge_patches")
def merge_patches(device, dtype):
    for shape, size in (((7, 11), (3, 5)), ((1, 1), (1, 1)), ((5, 7, 11), (2, 3, 5))):
        for count in (0, 1, 13):
            start = windows(count, shape).to(device)
            patches = normal(count, 2, *size, device=device, dtype=dtype)
            weight = torch.rand(size).to(dtype).to(device)
            weight.view(-1)[::4] = 0
            yield patches, start, None, shape, 0.5
            yield patches, start, weight, shape, -1.0


@samples_of("merge_add")
def merge_add(device, dtype):
    for patches, start, weight, shape, _ in merge_patches(device, dtype):
        sums = normal(2, *shape, device=device, dtype=dtype)
        yield sums, normal(*shape, device=device, dtype=dtype), patches, start, weight


@samples_of("extract_patches")
def extract_patches(device, dtype):
    for axes, size in ((2, (3, 5)), (3, (2, 3, 7)), (3, (1, 1, 1))):
        for source in (dtype, torch.uint8, torch.int16, torch.bfloat16):
            buffer, table, shapes = packed(device, source, axes)
            for count in (17, 0):
                start = windows(count, shapes[0]).to(device)
                index = (torch.arange(count) % 5 - 1).to(device)  # also outside the table
                flips = (torch.rand(count, axes) < 0.5).to(device)
                if count == 17 and source == torch.int16:
                    flips = flips[:0]
                shift = torch.rand(3, 2, dtype=torch.float64, device=device)
                scale = 1 + shift
                yield buffer, table, (), start, index, flips, shift, scale, 2, size, 0.5, dtype
    for target in (torch.uint8, torch.int16, torch.int64, torch.float16):
        yield (
            buffer,
            table,
            (),
            *windows_of(17, shapes, device),
            flips,
            shift,
            scale,
            2,
            size,
            -3.5,
            target,
        )
    for axes, size in ((2, (3, 5)), (3, (2, 3, 7))):
        table, shape, numel = dense(device, axes)
        start = windows(17, shape).to(device)
        buffer = normal(numel, device=device, dtype=dtype)
        index = (torch.arange(17) % 4 - 1).to(device)
        flips, none = flips[:0, :axes], shift[:0, 0]
        yield buffer, table, shape, start, index, flips, none, none, 2, size, 0.5, dtype
        numbers = torch.rand(2, 2, dtype=torch.float64, device=device)
        yield buffer, table, shape, start, index[:0], flips, numbers, none, 2, size, 0.5, dtype


@samples_of("extract_patches_into")
def extract_patches_into(device, dtype):
    for *source, channels, size, fill, result in extract_patches(device, dtype):
        shape = len(source[3]), channels, *size
        yield *source, fill, torch.full(shape, 7, dtype=result, device=device)


@samples_of("extract_patches_backward")
def extract_patches_backward(device, dtype):
    for axes, size in ((2, (3, 5)), (3, (2, 3, 7))):
        buffer, table, shapes = packed(device, dtype, axes)
        start, index = windows_of(17, shapes, device)
        flips = (torch.rand(17, axes) < 0.5).to(device)
        scale = torch.rand(3, 2, dtype=torch.float64, device=device)
        grad = normal(17, 2, *size, device=device, dtype=dtype)
        yield grad, table, (), start, index, flips, scale, len(buffer)
        yield grad[:0], table, (), start[:0], index[:0], flips[:0], scale, len(buffer)

        table, shape, numel = dense(device, axes)
        start = windows(17, shape).to(device)
        yield grad, table, shape, start, index[:0], flips[:0], scale[:0, 0], numel


@samples_of("window_counts")
def window_counts(device, dtype):
    for axes, size in ((2, (3, 5)), (3, (2, 3, 7)), (3, (100, 100, 100))):
        mask, table, shapes = packed(device, dtype, axes)
        table[:, 0] //= 2
        start, index = windows_of(29, shapes, device)
        yield mask > 0, table, (), start, index - 1, size
        yield mask > 0, table, (), start[:0], index[:0], size
    for axes, size in ((2, (3, 5)), (3, (2, 3, 7))):
        table, shape, numel = dense(device, axes)
        mask = torch.rand(numel // 2, device=device) > 0.5
        start = windows(29, shape).to(device)
        yield mask, table, shape, start, start.new_empty(0), size
        yield mask, table, shape, start, (torch.arange(29) % 4 - 1).to(device), size
