"""Sample arguments of every registered op, edge cases included: all that a new op must add.

A sample is the argument tuple of one call. The contract in tests/ops/test_contract.py runs over
each of them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

import cmrfast.models.kernels
import cmrfast.ops  # noqa: F401  (declares all others)

Arguments = tuple[Any, ...]
Samples = Callable[[str, torch.dtype], Iterator[Arguments]]

SAMPLES: dict[str, Samples] = {}
#: Of the ops whose GPU kernels take halves as they are: the arguments that may be halves.
HALVED = {
    "dice_ce_sums": (0,),
    "dice_ce_sums_backward": (1,),
    "nt_xent": (0, 1),
    "nt_xent_symmetric": (0, 1),
    "affine_sample": (0,),
    "affine_sample_backward": (0, 1),
    "resample_argmax": (0,),
}


def samples_of(name: str) -> Callable[[Samples], Samples]:
    """Register the generator below as the samples of the op of that name."""

    def register(generator: Samples) -> Samples:
        SAMPLES[name] = generator
        return generator

    return register


def halved(name: str, device: str, dtype: torch.dtype) -> Iterator[Arguments]:
    """The samples of an op with halves where it may have them."""
    for args in SAMPLES[name](device, torch.float32):
        yield tuple(a.to(dtype) if i in HALVED[name] else a for i, a in enumerate(args))


def normal(*shape: int, device: str, dtype: torch.dtype) -> torch.Tensor:
    """Random numbers made on the CPU, so that all devices see one input."""
    return torch.randn(*shape, dtype=torch.float64).to(dtype).to(device)


@samples_of("dice_ce_sums")
def dice_ce_sums(device, dtype):
    for activation in (0, 1, 2):
        for batch, classes, n in ((2, 3, 37), (1, 1, 1), (2, 2, 0), (3, 4, 701)):
            logits = normal(batch, classes, n, device=device, dtype=dtype)
            if activation == 2:
                logits = logits.sigmoid()
            labels = torch.randint(0, classes, (batch, n))
            labels[:, ::5] = -100
            for kind in (torch.uint8, torch.int16, torch.int32, torch.int64):
                ignored = labels if kind != torch.uint8 else labels.abs()
                yield logits, ignored.to(kind).to(device), activation, -100, 1e-4, True
            masks = torch.rand(batch, classes, n)
            yield logits, (masks > 0.5).to(device), activation, -100, 1e-4, True
            yield logits, (masks > 0.5).to(torch.uint8).to(device), activation, 255, 1e-4, True
            yield logits, masks.to(dtype).to(device), activation, -100, 1e-4, True
            masks[:, :, ::3] = -1
            yield logits, masks.to(device), activation, -1, 1e-4, True
    yield 1e4 * logits, labels.to(device), 0, -100, 1e-4, True
    yield 1e4 * logits, labels.to(device), 1, -100, 1e-4, True
    yield logits, labels.to(device), 1, -100, 1e-4, False


@samples_of("dice_ce_sums_backward")
def dice_ce_sums_backward(device, dtype):
    for logits, *others, _ in dice_ce_sums(device, dtype):
        yield normal(*logits.shape[:2], 4, device=device, dtype=dtype), logits, *others


@samples_of("dice_ce_loss")
def dice_ce_loss(device, dtype):
    for batch, classes, first in ((2, 3, 1), (1, 1, 0), (7, 4, 0), (3, 1300, 1)):
        sums = torch.rand(batch, classes, 4, dtype=torch.float64).to(dtype).to(device)
        for over in (0, 1, 2):
            yield 50 * sums, over, first, 1e-6, 1e-6, 0.9, 1.0, 0.1, -1.0
            yield sums, over, first, 2.0, 1.0, 1.0, 0.0, 0.0, 1.0
            yield sums, over, first, 1e-5, 1e-5, 0.5, 1.0, 0.5, 1000.0


@samples_of("label_faults")
def label_faults(device, dtype):
    labels = torch.randint(-2, 6, (3, 1301), device=device)
    yield labels, 4, -1
    yield labels.abs().to(torch.uint8), 4, 5
    yield labels.to(torch.int16), 3, -100
    yield labels[:, :0].int(), 3, -100


@samples_of("nt_xent")
def nt_xent(device, dtype):
    for n, m, d in ((5, 7, 3), (1, 1, 1), (33, 41, 17), (101, 130, 35)):
        anchors = normal(n, d, device=device, dtype=dtype)
        candidates = normal(m, d, device=device, dtype=dtype)
        targets = torch.randint(0, m, (n,), device=device)
        yield anchors, candidates, targets, 0.07, None, True
        yield anchors, candidates, targets, 0.5, None, False
    candidates[3] = 0
    anchors[1] = 0
    yield anchors, candidates, targets, 0.07, None, True
    for n, m, d, first, temperature in (
        (4, 4, 3, 0, 0.5),
        (17, 17, 5, 0, 0.023),
        (50, 130, 35, 70, 0.07),
    ):
        candidates = normal(m, d, device=device, dtype=dtype)
        anchors = candidates[first : first + n].clone()
        targets = (torch.arange(n, device=device) + n // 2) % n + first
        yield anchors, candidates, targets, temperature, first, True
        yield anchors, candidates, targets, 2 * temperature, first, False


@samples_of("nt_xent_symmetric")
def nt_xent_symmetric(device, dtype):
    for n, d in ((7, 3), (1, 1), (70, 17)):
        rows = normal(2, n, d, device=device, dtype=dtype)
        yield rows[0], rows[1], 0.07, True
        yield rows[0], rows[1], 0.023, True
        yield rows[0], rows[1], 0.5, False


def windows(count, shape, spread=4):
    """Starts that lie inside, across the border, far outside and at the ends of int64."""
    start = torch.stack([torch.randint(-spread, n + spread, (count,)) for n in shape], 1)
    start[1::7] = 2**62
    start[2::7] = -(2**62)
    return start


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


def packed(device, dtype, axes):
    """A buffer of three volumes of two channels, and where they lie in it."""
    shapes = [(7, 11), (1, 1), (13, 5)] if axes == 2 else [(5, 7, 11), (1, 1, 1), (3, 13, 2)]
    counts = [2 * torch.Size(s).numel() for s in shapes]
    rows = [(sum(counts[:v]), *shape) for v, shape in enumerate(shapes)]
    values = 40 * torch.randn(sum(counts))
    buffer = values.abs().to(dtype) if dtype == torch.uint8 else values.to(dtype)
    return buffer.to(device), torch.tensor(rows, device=device), shapes


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


def dense(device, axes):
    """An empty table, the one shape of two volumes of two channels, and their voxels."""
    shape = (7, 11) if axes == 2 else (5, 7, 11)
    table = torch.empty(0, 1 + axes, dtype=torch.int64, device=device)
    return table, shape, 4 * torch.Size(shape).numel()


def windows_of(count, shapes, device):
    return windows(count, shapes[0]).to(device), (torch.arange(count) % len(shapes)).to(device)


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


@samples_of("augment_intensity")
def augment_intensity(device, dtype):
    nan = torch.nan
    for shape in ((3, 2, 9, 13), (2, 1, 5, 7, 11), (2, 2, 1, 1, 6), (0, 2, 4, 5)):
        batch, channels, *space = shape
        images = normal(*shape, device=device, dtype=dtype)
        sample = torch.arange(batch, device=device) * 2**33 - 5
        rows = []  # noise, blur, gain, bias, contrast, low resolution, gamma inverted, gamma
        for i in range(batch * channels):
            blur, zoom = ([0.4 + 0.9 * i] * len(space), [1 - 0.15 * i] * len(space))
            rows.append([0.3, *blur, 1.1, -0.2, 0.7 + 0.3 * i, *zoom, 0.8 + 0.2 * i, 1.4 - 0.2 * i])
        parameters = torch.tensor(rows, dtype=torch.float64, device=device)
        parameters = parameters.view(batch, channels, 6 + 2 * len(space))
        yield images, 2**40 + 3, sample, parameters, 0b11111111
        for step in range(8):
            given = torch.full_like(parameters, nan)
            at = step + (len(space) - 1) * ((step > 1) + (step > 5))
            width = len(space) if step in (1, 5) else 1
            given[..., at : at + width] = parameters[..., at : at + width]
            yield images, -7, sample, given, 1 << step
        mixed = torch.where(torch.rand(parameters.shape, device=device) < 0.5, nan, parameters)
        yield images, 0, sample, mixed, 0b11111111
        yield images, 0, sample, torch.full_like(parameters, nan), 0
        steady = parameters.clone()
        steady[..., : 1 + len(space)] = nan
        yield torch.full_like(images, 2.5), 0, sample, steady, 0b11111100  # no range


@samples_of("contract_axis")
def contract_axis(device, dtype):
    for outer, n, inner, count in ((3, 7, 5, 11), (1, 1, 1, 1), (13, 5, 1, 3), (0, 3, 2, 2)):
        weights = torch.randn(count, n, dtype=torch.float64)
        weights[:, : n // 3] = 0
        yield normal(outer, n, inner, device=device, dtype=dtype), weights.to(device)


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
