"""Random calls that interpolate images and labels: turned patches, affines, other grids."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrfast import ops
from tests.attack.ops.call import Call, largest
from tests.attack.ops.make import INTEGERS, Make


def _theta(make: Make, count: int, axes: int) -> Tensor:
    theta = torch.eye(axes, axes + 1).repeat(count, 1, 1).double()
    theta += 0.3 * torch.randn(theta.shape, generator=make.generator, dtype=torch.float64)
    return theta


def sample_patches(make: Make) -> Call:
    axes = make.one_of(2, 3)
    shape, size, channels = make.sizes(axes), make.sizes(axes), make.numbers.randint(1, 3)
    many, count = make.count(3), make.count(5)
    source, on_grid, mode = make.real(), make.chance(0.3), make.one_of("linear", "nearest", "cubic")
    # Where values are interpolated, rounding decides which integer is next to a tie.
    target = make.real() if on_grid or mode == "nearest" else make.floating()
    volumes = make.values(many, channels, *shape, dtype=source)
    center = torch.tensor(shape) * torch.rand(count, axes, generator=make.generator)
    matrix = _theta(make, count, axes)[..., :-1]
    if on_grid:
        turn = torch.randperm(axes, generator=make.generator)
        matrix = torch.eye(axes, dtype=torch.float64)[turn].expand_as(matrix).clone()
        center = center.floor() + (matrix @ (torch.tensor(size) - 1.0).double()) / 2
    if make.chance(0.15) and count:
        matrix[0, 0, -1] = make.one_of(math.nan, -math.inf, 1e300)
        center[-1, 0] = make.one_of(math.nan, math.inf, 2.0**62, -(2.0**62))
    options: dict[str, Any] = {"dtype": target, "mode": mode}
    if make.chance(0.5):
        index = [make.numbers.randrange(max(many, 1)) for _ in range(count)]
        options["volume_index"] = torch.tensor(index, dtype=torch.int64)
    if make.chance(0.5):
        options["shift"] = make.one_of(0.5, -3, make.values(channels, dtype=torch.float64))
    if make.chance(0.5):
        options["scale"] = make.one_of(2.0, -0.5, make.values(channels, dtype=torch.float32))
    if make.chance(0.5):
        options["fill"] = make.one_of(0.5, -1, 300, math.inf, math.nan)
    inputs = [volumes] if source.is_floating_point else []
    packed = make.one_of("tensor", "list", "store")

    def run(*given: Tensor) -> Any:
        read = given[0] if given else volumes
        if packed == "tensor" or not len(read):
            return ops.sample_patches(read, center.double(), matrix, size, **options)
        each = ops.VolumeStore(list(read)) if packed == "store" else list(read)
        return ops.sample_patches(each, center.double(), matrix, size, **options)

    return Call(run, inputs, size=largest(volumes), finite=True)


def affine_sample(make: Make) -> Call:
    axes = make.one_of(2, 3)
    batch, shape, size = make.count(3), make.sizes(axes), make.sizes(axes, 11)
    images = make.values(batch, make.numbers.randint(1, 3), *shape, dtype=make.floating())
    theta = _theta(make, make.one_of(1, batch), axes)
    hostile = make.chance(0.15) and theta.numel() > 0
    if hostile:
        theta[0, 0, -1] = make.one_of(math.nan, math.inf, 1e300, 2.0**62)
    options = {
        "mode": make.one_of(
            "linear", "nearest", "linear", "cubic" if make.chance(0.1) else "linear"
        ),
        "padding": make.one_of("zeros", "border"),
        "align_corners": make.chance(0.5),
    }

    def equal(images: Tensor) -> Tensor:
        wanted = theta.expand(batch, -1, -1)
        align = options["align_corners"]
        grid = F.affine_grid(wanted, [batch, 1, *size], align_corners=align)
        mode = "bilinear" if options["mode"] == "linear" else "nearest"
        return F.grid_sample(images.double(), grid, mode, options["padding"], align).to(
            images.dtype
        )

    calm = batch > 0 and not hostile and options["mode"] == "linear" and images.isfinite().all()
    return Call(
        lambda images: ops.affine_sample(images, theta, size, **options),
        [images],
        equal=equal if calm else None,
        size=largest(images),
        finite=True,
    )


def warp_pair(make: Make) -> Call:
    axes = make.one_of(2, 3)
    batch, shape = make.count(3), make.sizes(axes)
    images = make.values(
        batch, make.numbers.randint(1, 3), *shape, dtype=make.floating(), calm=True
    )
    dtype = make.one_of(*INTEGERS)
    limits = torch.iinfo(dtype)
    labels = make.values(batch, *([2] if make.chance(0.5) else []), *shape, dtype=dtype)
    fill = make.one_of(0, 1, limits.max, limits.min, limits.max + (1 if make.chance(0.3) else 0))
    theta = _theta(make, make.one_of(1, batch), axes)
    gamma = torch.rand(batch, generator=make.generator) + 0.5 if make.chance(0.5) else None
    return Call(lambda: ops.warp_pair(images, labels, theta, gamma, fill), size=largest(images))


def _grids(make: Make) -> tuple[Tensor, Tensor]:
    """Affines of two grids, oblique or not."""
    affine, to_affine = torch.eye(4).double(), torch.eye(4).double()
    oblique = make.chance(0.5)
    for matrix in (affine, to_affine):
        if oblique:
            matrix[:3] += 0.2 * torch.randn(3, 4, generator=make.generator, dtype=torch.float64)
        else:
            for a in range(3):
                matrix[a, a] = make.one_of(1.0, 0.7, -1.3, 2.5)
                matrix[a, 3] = make.one_of(0.0, 1.5, -2.0)
    if make.chance(0.05):
        affine[0, 0] = make.one_of(math.nan, math.inf)
    return affine, to_affine


def resample(make: Make) -> Call:
    axes = make.one_of(2, 3)
    dtype = make.real()
    volume = make.values(make.numbers.randint(1, 3), *make.sizes(axes), dtype=dtype)
    affine, to_affine = _grids(make)
    options = {
        "mode": make.one_of("linear", "nearest"),
        "fill": make.one_of(0, -1, 300, 0.5, 1e30, math.inf, math.nan),
        "antialias": make.chance(0.2),
    }
    to_shape = make.sizes(axes, 11)
    return Call(
        lambda *given: ops.resample(*(given or (volume,)), affine, to_affine, to_shape, **options),
        [volume] if dtype.is_floating_point else [],
        size=largest(volume),
        zero_weights=True,
        finite=True,
    )


def resample_argmax(make: Make) -> Call:
    axes = make.one_of(2, 3)
    shape = (make.one_of(1, 2, 14), *make.sizes(axes))
    logits = make.values(*shape, dtype=torch.float64, calm=True)  # no ties but for rounding
    affine, to_affine = _grids(make)
    to_shape = make.sizes(axes, 11)
    options = {"fill": make.one_of(0, 255, -1, 2**40), "dtype": make.one_of(*INTEGERS)}
    return Call(lambda: ops.resample_argmax(logits, affine, to_affine, to_shape, **options))
