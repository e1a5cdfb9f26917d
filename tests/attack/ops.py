"""Random calls of every public op: native kernels, the reference, PyTorch where it has an equal.

Shapes, strides, dtypes and values are hostile but legal for the most part, or wrong in a way that
both backends must refuse alike. The reference runs in a process of its own, which makes the same
case from the same random numbers.
"""

import atexit
import io
import math
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrfast import ops
from cmrfast.models.kernels import max_pool, same_conv2d, thin_conv3d
from tests.attack.frame import Attack

FLOATS = (torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
INTEGERS = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64),
)


@dataclass
class Call:
    """One call of a public op.

    Args:
        run: the call, of the tensors that may have a gradient.
        inputs: those tensors.
        equal: what PyTorch makes of them, None where it has no equal.
        size: of the numbers that results are sums of, where those can cancel.
        gradient: of the numbers that gradients are sums of.
        zero_weights: whether voxels that are not finite, times a weight of 0, may count or not.
        finite: whether results are compared where the reference's overflow.
    """

    run: Callable[..., Any]
    inputs: list[Tensor] = field(default_factory=list)
    equal: Callable[..., Any] | None = None
    size: float = 0.0
    gradient: float = 0.0
    zero_weights: bool = False
    finite: bool = False


class Make:
    """Random tensors, sizes and choices of one case."""

    def __init__(self, numbers: random.Random) -> None:
        self.numbers = numbers
        self.generator = torch.Generator().manual_seed(numbers.randrange(2**31))

    def one_of(self, *options: Any) -> Any:
        return self.numbers.choice(options)

    def chance(self, probability: float) -> bool:
        return self.numbers.random() < probability

    def sizes(self, count: int, most: int = 9) -> tuple[int, ...]:
        return tuple(
            1 if self.chance(0.15) else self.numbers.randint(1, most) for _ in range(count)
        )

    def count(self, most: int) -> int:
        return 0 if self.chance(0.05) else self.numbers.randint(1, most)

    def values(self, *shape: int, dtype: torch.dtype, calm: bool = False) -> Tensor:
        """Numbers of a dtype; ``calm`` ones are normally distributed."""
        if dtype == torch.bool:
            return self.laid_out(torch.rand(shape, generator=self.generator) < 0.5)
        if not dtype.is_floating_point:
            limits = torch.iinfo(dtype)
            some = [limits.min, limits.max, limits.max - 1, 0, 1, 2, 7, 100]
            picks = torch.randint(len(some), shape, generator=self.generator)
            return self.laid_out(torch.tensor(some, dtype=dtype)[picks])
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        limits = torch.finfo(dtype)
        kind = (
            "normal" if calm else self.one_of("normal", "normal", "zero", "tiny", "huge", "mixed")
        )
        if kind == "zero":
            x *= 0
        elif kind == "tiny":
            x *= limits.smallest_normal * limits.eps * 1000
        elif kind == "huge":
            x *= 1e4 if dtype == torch.float16 else 1e30
        elif kind == "mixed":
            some = [0.0, -0.0, math.inf, -math.inf, math.nan, limits.smallest_normal / 8, 1e4]
            picks = torch.randint(len(some), shape, generator=self.generator)
            rare = torch.rand(shape, generator=self.generator) < 0.05
            x = torch.where(rare, torch.tensor(some, dtype=torch.float64)[picks], x)
        return self.laid_out(x.to(dtype))

    def laid_out(self, x: Tensor) -> Tensor:
        """The values, or some of them repeated, with strides of any kind."""
        kind = self.one_of("plain", "plain", "offset", "gaps", "turned", "expanded")
        if not x.dim():
            return x
        if kind == "offset":
            memory = x.new_zeros(x.numel() + 3)
            memory[3:] = x.flatten()
            return memory[3:].view(x.shape)
        if kind == "gaps":
            memory = x.new_zeros(*x.shape, 3)
            memory[..., 1] = x
            return memory[..., 1]
        if kind == "turned":
            axes = list(range(x.dim()))
            self.numbers.shuffle(axes)
            back = [axes.index(a) for a in range(x.dim())]
            return x.permute(axes).contiguous().permute(back)
        axis = self.numbers.randrange(x.dim())
        if kind == "expanded" and x.shape[axis]:
            return x.narrow(axis, 0, 1).expand(x.shape)
        return x

    def floating(self) -> torch.dtype:
        return self.one_of(*FLOATS, *FLOATS, *HALVES)

    def real(self) -> torch.dtype:
        return self.one_of(*FLOATS, *HALVES, *INTEGERS, torch.bool)

    def starts(self, count: int, shape: tuple[int, ...]) -> Tensor:
        rows = [
            [self.numbers.randint(-n - 2, n + 2) for n in shape]
            if self.chance(0.9)
            else [self.one_of(0, 2**62, -(2**62), 2**31) for _ in shape]
            for _ in range(count)
        ]
        start = torch.tensor(rows, dtype=torch.int64).view(count, len(shape))
        small = start.numel() == 0 or bool(start.abs().max() < 100)
        return (
            start.to(self.one_of(torch.int8, torch.int32)) if small and self.chance(0.3) else start
        )


def _extract_patches(make: Make) -> Call:
    axes = make.one_of(2, 3)
    shape, size, channels = make.sizes(axes), make.sizes(axes), make.numbers.randint(1, 3)
    many, count = make.count(3), make.count(5)
    source, target = make.real(), make.real()
    volumes = make.values(many, channels, *shape, dtype=source)
    start = make.starts(count, shape)
    options: dict[str, Any] = {"dtype": target}
    if make.chance(0.5):
        low = -1 if make.chance(0.1) else 0
        index = [make.numbers.randint(low, max(many - 1, 0)) for _ in range(count)]
        options["volume_index"] = torch.tensor(index, dtype=torch.int64)
    if make.chance(0.5):
        options["flips"] = make.values(count, axes, dtype=torch.bool)
    if make.chance(0.5):
        options["shift"] = make.one_of(0.5, -3, make.values(channels, dtype=torch.float64))
    if make.chance(0.5):
        options["scale"] = make.one_of(2.0, -0.5, make.values(channels, dtype=torch.float32))
    if make.chance(0.5):
        options["fill"] = make.one_of(0.5, -1, 300, 1e30, math.inf, -math.inf, math.nan, 2**53 + 1)
    inputs = [volumes] if source.is_floating_point else []
    packed = make.one_of("tensor", "list", "store")
    into = make.chance(0.2)

    def run(*given: Tensor) -> Any:
        read = given[0] if given else volumes
        if into:
            read = read.detach()
            options["out"] = torch.full((count, channels, *size), 7).to(target)
        if packed == "tensor" or not len(read):
            return ops.extract_patches(read, start, size, **options)
        each = ops.VolumeStore(list(read)) if packed == "store" else list(read)
        return ops.extract_patches(each, start, size, **options)

    return Call(run, inputs)


def _sample_patches(make: Make) -> Call:
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

    return Call(run, inputs, size=_largest(volumes), finite=True)


def _window_counts(make: Make) -> Call:
    axes = make.one_of(2, 3)
    shape, size, many, count = make.sizes(axes), make.sizes(axes, 12), make.count(3), make.count(6)
    mask, start = make.values(many, *shape, dtype=make.real()), make.starts(count, shape)
    index = torch.tensor([make.numbers.randint(0, max(many - 1, 0)) for _ in range(count)]).long()

    def equal() -> Tensor:
        found = torch.zeros(count, dtype=torch.int64)
        for p in range(count):
            window = mask[int(index[p])]
            for axis, (s, n) in enumerate(zip(size, shape, strict=True)):
                begin = min(max(int(start[p, axis]), 0), n)
                end = min(max(int(start[p, axis]) + s, begin), n)
                window = window.narrow(axis, begin, end - begin)
            found[p] = (window != 0).sum()
        return found

    return Call(
        lambda: ops.window_counts(mask, start, size, volume_index=index),
        equal=equal if many else None,
    )


def _merge_patches(make: Make) -> Call:
    axes = make.one_of(2, 3)
    shape, size, count = make.sizes(axes), make.sizes(axes), make.count(6)
    dtype = make.floating()
    patches = make.values(count, make.numbers.randint(0, 3), *size, dtype=dtype)
    weight = (
        make.values(*size, dtype=make.floating(), calm=True).abs() if make.chance(0.5) else None
    )
    start, fill = make.starts(count, shape), make.one_of(0.0, -1.5, math.nan, math.inf)

    def run(patches: Tensor) -> Any:
        merged = ops.merge_patches(patches, start, shape, weight=weight, fill=fill)
        if not patches.shape[1]:
            return merged
        merger = ops.PatchMerger(shape, patches.shape[1], size, weight=weight)
        for rows in torch.arange(count).split(2):
            merger.add(patches[rows], start[rows])
        return merged, merger.merged(fill).float()  # its sums are float32

    return Call(run, [patches], size=_largest(patches))


def _theta(make: Make, count: int, axes: int) -> Tensor:
    theta = torch.eye(axes, axes + 1).repeat(count, 1, 1).double()
    theta += 0.3 * torch.randn(theta.shape, generator=make.generator, dtype=torch.float64)
    return theta


def _affine_sample(make: Make) -> Call:
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
        size=_largest(images),
        finite=True,
    )


def _warp_pair(make: Make) -> Call:
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
    return Call(lambda: ops.warp_pair(images, labels, theta, gamma, fill), size=_largest(images))


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


def _resample(make: Make) -> Call:
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
        size=_largest(volume),
        zero_weights=True,
        finite=True,
    )


def _resample_argmax(make: Make) -> Call:
    axes = make.one_of(2, 3)
    shape = (make.one_of(1, 2, 14), *make.sizes(axes))
    logits = make.values(*shape, dtype=torch.float64, calm=True)  # no ties but for rounding
    affine, to_affine = _grids(make)
    to_shape = make.sizes(axes, 11)
    options = {"fill": make.one_of(0, 255, -1, 2**40), "dtype": make.one_of(*INTEGERS)}
    return Call(lambda: ops.resample_argmax(logits, affine, to_affine, to_shape, **options))


def _augment_intensity(make: Make) -> Call:
    batch, channels, space = (
        make.count(3),
        make.numbers.randint(1, 3),
        make.sizes(make.one_of(2, 3)),
    )
    images = make.values(batch, channels, *space, dtype=make.floating(), calm=True)
    sample = torch.randint(-(2**62), 2**62, (batch,), generator=make.generator)
    ranges = {
        **{"noise_sd": (0.0, 0.3, 1.0), "blur_sd_vox": (0.0, 0.7, 2.6), "gain": (0.0, 0.7, -1.5)},
        **{"bias": (0.0, -0.5, 3.0), "contrast": (0.0, 0.7, 1.5), "low_res": (1e-9, 0.4, 1.0)},
        **{"gamma_inverted": (0.7, 1.0, 3.0), "gamma": (0.7, 1.0, 3.0)},
    }
    steps = {}
    for name, values in ranges.items():
        if make.chance(0.5):
            continue
        shape = [(batch,), (batch, channels), (batch, channels, len(space))]
        chosen = shape[make.numbers.randrange(3 if name in ("blur_sd_vox", "low_res") else 2)]
        few = [*values, math.nan, *([make.one_of(-1.0, 1e30)] if make.chance(0.02) else [])]
        picks = torch.randint(len(few), chosen, generator=make.generator)
        steps[name] = make.laid_out(torch.tensor(few, dtype=make.one_of(*FLOATS))[picks])
    seed = make.one_of(0, -1, 2**40, 2**63 if make.chance(0.1) else 7)
    return Call(
        lambda: ops.augment_intensity(images, seed, sample, **steps),
        size=20 * (1 + _largest(images)),
    )


def _dice_ce_sums(make: Make) -> Call:
    batch, classes, shape = make.count(3), make.numbers.randint(1, 5), make.sizes(make.one_of(1, 3))
    logits = make.values(batch, classes, *shape, dtype=make.floating())
    activation = make.one_of("softmax", "sigmoid", "none", "softmax", "sigmoid")
    if activation == "none":
        logits = logits.sigmoid()
    ignore = make.one_of(-100, 0, 255, 156, 2**24 + 1, -(2**63), 2**63 - 1)
    labels = make.chance(0.6)
    if labels:
        dtype = make.one_of(*INTEGERS)
        target = torch.randint(classes, (batch, *shape), generator=make.generator).to(dtype)
        if make.chance(0.2):
            target = make.values(batch, *shape, dtype=dtype)
    else:
        dtype = make.one_of(*FLOATS, *INTEGERS[:5], torch.bool)
        target = make.values(*logits.shape, dtype=dtype, calm=True)
        if not dtype.is_floating_point and dtype != torch.bool:
            target = target % 2
    target = make.laid_out(target)

    def equal(logits: Tensor) -> Tensor:
        target_, wide = target.long(), logits.double()
        kept = (target_ != ignore)[:, None]
        masks = F.one_hot(target_, classes).movedim(-1, 1) * kept
        p, log_p = wide.softmax(1) * kept, wide.log_softmax(1)
        ce = torch.where(masks != 0, -log_p, 0)
        stacked = torch.stack((p * masks, p, masks.double(), ce), -1)
        sums = stacked.flatten(2, -2).sum(2)
        return sums.to(torch.promote_types(logits.dtype, torch.float32))

    known = labels and activation == "softmax" and bool(logits.isfinite().all())
    known = known and bool(((target.long() >= 0) & (target.long() < classes)).all())
    return Call(
        lambda x: ops.dice_ce_sums(x, target, activation=activation, ignore_index=ignore),
        [logits],
        equal=equal if known else None,
        size=_largest(logits),
        finite=True,
    )


def _nt_xent(make: Make) -> Call:
    n, m, depth = make.count(9), make.numbers.randint(1, 12), make.numbers.randint(1, 9)
    dtype = make.floating()
    symmetric = make.chance(0.2)
    negatives = make.one_of("candidates", "candidates", "both", "all")
    paired = (symmetric or negatives == "both") and make.chance(0.8)
    m = n if paired else m
    anchors, candidates = (make.values(k, depth, dtype=dtype) for k in (n, m))
    temperature = make.one_of(0.07, 0.5, 1.0, 100.0, 1e-40, 0.0)
    targets = None
    if not paired and make.chance(0.6):
        high = m if make.chance(0.1) else m - 1
        targets = torch.tensor([make.numbers.randint(0, high) for _ in range(n)]).long()

    def equal(anchors: Tensor, candidates: Tensor) -> Tensor:
        a, c = (F.normalize(x.double(), eps=1e-300) for x in (anchors, candidates))
        wanted = torch.arange(n) if targets is None else targets
        loss = F.cross_entropy(a @ c.T / temperature, wanted)
        return loss.to(torch.promote_types(anchors.dtype, torch.float32))

    largest = torch.cat([x.double().abs().amax(1) for x in (anchors, candidates)])
    largest = largest[largest > 0]
    slope = float((1 / largest).clamp(max=1e307).amax()) if len(largest) else 0.0
    calm = all(x.numel() and 1e-3 < x.abs().amax() < 1e3 for x in (anchors, candidates))
    return Call(
        lambda a, c: ops.nt_xent(
            *(a, c),
            temperature=temperature,
            targets=targets,
            symmetric=symmetric,
            negatives=negatives,
        ),
        [anchors, candidates],
        equal=equal if calm and not symmetric and negatives == "candidates" else None,
        size=1 / max(temperature, 1e-40),
        gradient=min(slope / max(temperature, 1e-40), 1e307),
        finite=True,
    )


def _cover_starts(make: Make) -> Call:
    shape, size = make.sizes(3, 20), make.sizes(3, 12)
    overlap = make.one_of(0, 1, 2, (0, 1, 0), 0.5, -1)
    return Call(lambda: ops.cover_starts(shape, size, overlap))


def _same_conv2d(make: Make) -> Call:
    before, after, side = make.one_of(1, 16, 33), make.one_of(2, 16, 40), make.one_of(1, 3, 3, 5, 4)
    dilation = make.one_of(1, 1, 2, 3, 40, 2**40, 0)
    x = make.values(make.count(2), before, *make.sizes(2, 24), dtype=make.one_of(*FLOATS))
    weight = make.values(after, before, side, side, dtype=x.dtype, calm=True)
    bias = make.values(after, dtype=x.dtype, calm=True) if make.chance(0.5) else None
    inputs = [x, weight] if bias is None else [x, weight, bias]
    return Call(
        lambda *given: same_conv2d(*given, dilation=dilation),
        inputs,
        size=_largest(x) * before * side**2,
        gradient=_largest(x) * 24,
        finite=True,
    )


def _thin_conv3d(make: Make) -> Call:
    before, after = make.numbers.randint(1, 7), make.numbers.randint(1, 7)
    x = make.values(make.count(2), before, *make.sizes(3, 12), dtype=make.one_of(*FLOATS))
    weight = make.values(after, before, 3, 3, 3, dtype=x.dtype, calm=True)
    slope = make.one_of(1.0, 0.1, 0.01, 0.0 if make.chance(0.3) else 1.0)
    return Call(
        lambda *given: thin_conv3d(*given, slope=slope),
        [x, weight, make.values(after, dtype=x.dtype, calm=True)],
        size=_largest(x) * before * 27,
        gradient=_largest(x) * 36,
        finite=True,
    )


def _max_pool(make: Make) -> Call:
    size = make.sizes(make.one_of(2, 3), 20)
    x = make.values(make.count(2), make.count(3), *size, dtype=make.one_of(*FLOATS))
    return Call(max_pool, [x], lambda x: F.max_pool2d(x, 2) if x.dim() == 4 else F.max_pool3d(x, 2))


_LAYERS = ("max_pool", "same_conv2d", "thin_conv3d")
CALLS: tuple[Callable[[Make], Call], ...] = (
    *(_extract_patches, _window_counts, _merge_patches, _affine_sample, _warp_pair, _resample),
    *(_resample_argmax, _augment_intensity, _sample_patches),
    *(_dice_ce_sums, _nt_xent, _cover_starts, _same_conv2d, _thin_conv3d, _max_pool),
)


def _largest(x: Tensor) -> float:
    if not x.numel():
        return 0.0
    return float(x.double().abs().nan_to_num(0.0, 0.0, 0.0).amax())


def _outcome(numbers: random.Random) -> tuple[Call, list[Tensor] | Exception]:
    """Make a case and run it: outputs, then gradients; or the exception."""
    make = Make(numbers)
    call = make.one_of(*CALLS)(make)
    backward = make.chance(0.6)
    try:
        return call, _run(call.run, call.inputs, backward, make.generator)
    except Exception as error:
        return call, error


def _run(
    run: Callable[..., Any], inputs: list[Tensor], backward: bool, generator: torch.Generator
) -> list[Tensor]:
    leaves = [x.detach().requires_grad_(backward) for x in inputs]
    outputs = run(*leaves)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    differentiable = [y for y in outputs if y.requires_grad]
    if not differentiable:
        return outputs
    grads = [
        torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
        for y in differentiable
    ]
    found = torch.autograd.grad(differentiable, leaves, grads, allow_unused=True)
    return [y.detach() for y in outputs] + [g for g in found if g is not None]


_TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 2e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}


def _assert_alike(ours: list[Tensor], theirs: list[Tensor], call: Call, whose: str) -> None:
    assert len(ours) == len(theirs)
    for number, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        where = f"result {number} against {whose}"
        assert (x.shape, x.dtype) == (y.shape, y.dtype), f"{where}: {x.shape} {x.dtype}, {y.shape}"
        if not x.dtype.is_floating_point:
            assert torch.equal(x, y), f"{where}: {x}\n{y}"
            continue
        near = _TOLERANCE[x.dtype]
        least = 8 * torch.finfo(x.dtype).smallest_normal if x.dtype != torch.float16 else 1e-7
        if call.finite:  # sums may overflow in another order
            both = x.isfinite() & y.isfinite()
            alike = both | (~x.isfinite() & ~y.isfinite()) | (y.abs() > 1e37)
            assert call.zero_weights or alike.all(), f"{where}: {x}\n{y}"
            x, y = torch.where(both, x, 0), torch.where(both, y, 0)
        scale = max(_largest(y), call.gradient if number else call.size)
        torch.testing.assert_close(
            x,
            y,
            rtol=near,
            atol=near * scale + least,
            equal_nan=True,
            msg=lambda m, w=where: f"{w}: {m}",
        )


class _Reference:
    """The process whose ops run their references; started by the first case."""

    process: subprocess.Popen[bytes] | None = None

    @classmethod
    def outcome(cls, state: Any) -> list[Tensor] | Exception:
        if cls.process is None or cls.process.poll() is not None:
            cls.process = subprocess.Popen(
                [sys.executable, "-m", "tests.attack.ops"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "CMRFAST_BACKEND": "reference"},
            )
            atexit.register(cls.process.kill)
        assert cls.process.stdin is not None
        assert cls.process.stdout is not None
        try:
            pickle.dump(state, cls.process.stdin)
            cls.process.stdin.flush()
            saved = io.BytesIO(pickle.load(cls.process.stdout))
        except BaseException:  # also a time-out: the answer would go to the next case
            cls.process.kill()
            cls.process = None
            raise
        outcome: list[Tensor] | Exception = torch.load(saved, weights_only=False)
        return outcome


def one(numbers: random.Random, _: Path) -> str:
    """One call; the outcome is ``equal`` or ``refused``."""
    state = numbers.getstate()
    call, ours = _outcome(numbers)
    theirs = _Reference.outcome(state)
    if isinstance(ours, Exception):
        if not isinstance(ours, ValueError | TypeError):
            raise ours
        assert type(ours) is type(theirs), f"only one backend refuses: {ours!r}; {theirs!r}"
        assert str(ours) == str(theirs)
        name = str(ours).partition(":")[0].partition(".")[0]
        assert name in (*ops.__all__, *_LAYERS), f"by no name: {ours!r}"
        return "refused"
    assert not isinstance(theirs, Exception), f"only the reference raises: {theirs!r}"
    _assert_alike(ours, theirs, call, "the reference")
    if call.equal is not None:
        with torch.no_grad():
            _assert_alike(ours[:1], [call.equal(*call.inputs)], call, "PyTorch")
    return "equal"


#: The first case starts the process of the reference, which takes seconds.
ATTACK = Attack("ops", one, seconds=20.0)


def main() -> None:
    """Serve outcomes: random states come in, results go out."""
    while True:
        try:
            state = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        numbers = random.Random()
        numbers.setstate(state)
        saved = io.BytesIO()
        torch.save(_outcome(numbers)[1], saved)
        pickle.dump(saved.getvalue(), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
