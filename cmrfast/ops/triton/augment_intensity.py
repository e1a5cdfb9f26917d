"""Photometric augmentation: passes over all channels, and the statistics between them.

A pass measures each of its tiles, and ``merge`` adds these up in order. A step that a channel
leaves out passes its values on; one that all leave out is not launched.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrfast.ops.augment_intensity import LARGEST_BLUR, STEPS, TRUNCATE
from cmrfast.ops.triton._launch import NO_FMA, accumulator, block_sizes, exp2, register, three_axes
from cmrfast.ops.triton._normal import normal
from cmrfast.ops.triton._statistics import load_statistics, measure, merge

_LARGEST_BLUR, _TRUNCATE = tl.constexpr(LARGEST_BLUR), tl.constexpr(TRUNCATE)
_NONE, _CONTRAST, _POWER, _RESTORE = (tl.constexpr(step) for step in range(4))
_GAMMAS = {True: "gamma_inverted", False: "gamma"}
_TABLE = 128  # entries of a table in a program


@triton.jit
def _parameter(parameters_ptr, row, column: tl.constexpr, default, AXES: tl.constexpr):
    """A parameter of a channel, or the default if it is left out."""
    value = tl.load(parameters_ptr + row * (6 + 2 * AXES) + column)
    return tl.where(value == value, value, default)


@triton.jit
def _linear(x, parameters_ptr, row, AXES: tl.constexpr, ACC: tl.constexpr):
    gain = _parameter(parameters_ptr, row, 1 + AXES, 1.0, AXES).to(ACC)
    return x * gain + _parameter(parameters_ptr, row, 2 + AXES, 0.0, AXES).to(ACC)


@triton.jit
def _contrast(x, parameters_ptr, stats_ptr, row, AXES: tl.constexpr, ACC: tl.constexpr):
    factor = tl.load(parameters_ptr + row * (6 + 2 * AXES) + 3 + AXES).to(ACC)
    mean, _, low, high = load_statistics(stats_ptr, row)
    value = (x - mean) * factor + mean
    value = tl.where(value < low, low, value)  # NaN stays NaN
    return tl.where(factor == factor, tl.where(value > high, high, value), x)


@triton.jit
def _power(x, exponent, stats_ptr, row, INVERTED: tl.constexpr):
    _, _, low, high = load_statistics(stats_ptr, row)
    span = high - low
    unit = high - x if INVERTED else x - low
    unit *= tl.where(span > 0, 1 / tl.where(span > 0, span, 1), 0)
    unit = tl.where(unit < 0, 0, tl.where(unit > 1, 1, unit))
    return tl.where(exponent == exponent, exp2(exponent * tl.log2(unit)), x)


@triton.jit
def _restore(y, exponent, stats_ptr, powers_ptr, row, INVERTED: tl.constexpr):
    mean, sd, low, high = load_statistics(stats_ptr, row)
    power_mean, power_sd, _, _ = load_statistics(powers_ptr, row)
    usable = (power_sd > 0) & (high > low)
    factor = tl.where(usable, sd / tl.where(usable, power_sd, 1), 0)
    factor = -factor if INVERTED else factor
    return tl.where(exponent == exponent, (y - power_mean) * factor + mean, y)


@triton.jit
def _pass(
    x_ptr, out_ptr, parts_ptr, parameters_ptr, sample_ptr, stats_ptr, powers_ptr, seed: tl.int64,
    channels, numel, tiles, rows: tl.int64, NOISE: tl.constexpr, LINEAR: tl.constexpr,
    STEP: tl.constexpr, INVERTED: tl.constexpr, AXES: tl.constexpr, ACC: tl.constexpr,
    INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program takes BLOCK voxels of one channel: noise, gain and bias, or one other step.

    Without ``out_ptr`` it only measures; without ``parts_ptr`` it does not measure.
    """
    row = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    offsets = tile.to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < numel
    x = tl.load(x_ptr + row * numel + offsets, mask=mask, other=0)
    if NOISE:
        group = tile.to(INDEX) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
        sample = tl.load(sample_ptr + row // channels)
        noise = normal(seed, row % channels, sample, group, ACC)
        x += _parameter(parameters_ptr, row, 0, 0.0, AXES).to(ACC) * noise
    if LINEAR:
        x = _linear(x, parameters_ptr, row, AXES, ACC)
    if STEP == _CONTRAST:
        x = _contrast(x, parameters_ptr, stats_ptr, row, AXES, ACC)
    elif STEP != _NONE:
        column = 4 + 2 * AXES + (0 if INVERTED else 1)
        exponent = tl.load(parameters_ptr + row * (6 + 2 * AXES) + column).to(ACC)
        if STEP == _POWER:
            x = _power(x, exponent, stats_ptr, row, INVERTED)
        else:
            x = _restore(x, exponent, stats_ptr, powers_ptr, row, INVERTED)
    if out_ptr is not None:
        tl.store(out_ptr + row * numel + offsets, x, mask=mask)
    if parts_ptr is not None:
        count = tl.minimum(numel - tile.to(INDEX) * BLOCK, BLOCK).to(ACC)
        measure(x, parts_ptr, mask, row, tile, tiles, rows, count)


@triton.jit
def _blur(
    x_ptr, out_ptr, parts_ptr, parameters_ptr, n, stride, numel, tiles, rows: tl.int64, axis,
    LINEAR: tl.constexpr, AXES: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A program blurs BLOCK voxels of one channel along an axis of n voxels."""
    row = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    offsets = tile.to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < numel
    given = tl.load(parameters_ptr + row * (6 + 2 * AXES) + 1 + axis)
    sd = tl.where(given > 0, tl.minimum(given, _LARGEST_BLUR), 0)  # 0 if left out
    radius = (sd * _TRUNCATE + 0.5).to(tl.int32)
    # exp(-(t / sd)^2 / 2) as a power of two; without a radius, the only tap is the voxel itself.
    rate = (-0.7213475204444817 / tl.where(sd > 0, sd * sd, 1)).to(ACC)
    k = (offsets // stride) % n
    period = 2 * n
    at = (k - radius) % period
    at = tl.where(at < 0, at + period, at)
    step = tl.where(at < n, 1, -1)
    at = tl.where(at < n, at, period - 1 - at)
    line_ptr = x_ptr + row * numel + (offsets - k * stride)
    value = tl.full((BLOCK,), 0, ACC)
    total = tl.full((1,), 0, ACC)
    for t in range(-radius, radius + 1):
        weight = exp2(tl.full((1,), 1, ACC) * t * t * rate)
        value += weight * tl.load(line_ptr + at * stride, mask=mask, other=0)
        total += weight
        following = at + step
        turns = (following < 0) | (following >= n)  # the border voxel comes twice
        at = tl.where(turns, at, following)
        step = tl.where(turns, -step, step)
    value = value / total
    if LINEAR:
        value = _linear(value, parameters_ptr, row, AXES, ACC)
    tl.store(out_ptr + row * numel + offsets, value, mask=mask)
    if parts_ptr is not None:
        count = tl.minimum(numel - tile.to(INDEX) * BLOCK, BLOCK).to(ACC)
        measure(value, parts_ptr, mask, row, tile, tiles, rows, count)


@triton.jit
def _coarse_tables(
    parameters_ptr, left_ptr, right_ptr, fraction_ptr, size, AXES: tl.constexpr, BLOCK: tl.constexpr
):
    """A program makes BLOCK entries of the tables of one axis of one channel.

    For an output voxel: the two voxels that the coarser grid took its neighbours from, and the
    fraction between them. Tables of all axes follow one another.
    """
    row = (tl.program_id(0) // AXES).to(tl.int64)
    axis = tl.program_id(0) % AXES + (3 - AXES)
    n = tl.where(axis == 0, size[0], tl.where(axis == 1, size[1], size[2])).to(tl.int64)
    first = tl.where(axis == 0, 0, tl.where(axis == 1, size[0], size[0] + size[1]))
    k = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = 4 + 2 * AXES - 3 + axis
    zoom = tl.load(parameters_ptr + row * (6 + 2 * AXES) + column)
    wanted = n.to(tl.float64) * tl.where((zoom > 0) & (zoom < 1), zoom, 1)
    wanted = tl.where(zoom <= 0, 1, (wanted + 4503599627370496.0) - 4503599627370496.0)
    m = tl.maximum(wanted.to(tl.int64), 1)
    position = tl.maximum((2 * k + 1) * m - n, 0)
    cell = position // (2 * n)
    left = (2 * tl.minimum(cell, m - 1) + 1) * n // (2 * m)
    right = (2 * tl.minimum(cell + 1, m - 1) + 1) * n // (2 * m)
    fraction = (position % (2 * n)).to(tl.float64) / (2 * n).to(tl.float64)
    length = size[0] + size[1] + size[2]
    at = row * length + first + k
    tl.store(left_ptr + at, left.to(tl.int32), mask=k < n)
    tl.store(right_ptr + at, right.to(tl.int32), mask=k < n)
    tl.store(fraction_ptr + at, fraction.to(fraction_ptr.dtype.element_ty), mask=k < n)


@triton.jit
def _between(a, b, fraction):
    return tl.where(fraction == 0, a, a + fraction * (b - a))  # b may be NaN


@triton.jit
def _between_planes(image_ptr, front, back, fraction, offsets, mask, AXES: tl.constexpr):
    """Values between two planes of an image; an image of two axes has one plane."""
    value = tl.load(image_ptr + front + offsets, mask=mask, other=0)
    if AXES == 3:
        value = _between(value, tl.load(image_ptr + back + offsets, mask=mask, other=0), fraction)
    return value


@triton.jit
def _lower_resolution(
    x_ptr, out_ptr, parts_ptr, left_ptr, right_ptr, fraction_ptr, size, numel, tiles,
    rows: tl.int64,
    AXES: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program interpolates BLOCK voxels of one channel between those that the tables name."""
    row = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    offsets = tile.to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < numel
    line = offsets // size[2]
    table = row * (size[0] + size[1] + size[2])
    j = table + size[0] + line % size[1]
    k = table + size[0] + size[1] + offsets % size[2]
    front, back, fi = 0, 0, 0
    if AXES == 3:
        i = table + line // size[1]
        front = tl.load(left_ptr + i, mask=mask, other=0).to(INDEX) * size[1] * size[2]
        back = tl.load(right_ptr + i, mask=mask, other=0).to(INDEX) * size[1] * size[2]
        fi = tl.load(fraction_ptr + i, mask=mask, other=0)
    top = tl.load(left_ptr + j, mask=mask, other=0).to(INDEX) * size[2]
    low = tl.load(right_ptr + j, mask=mask, other=0).to(INDEX) * size[2]
    left = tl.load(left_ptr + k, mask=mask, other=0).to(INDEX)
    right = tl.load(right_ptr + k, mask=mask, other=0).to(INDEX)
    fj = tl.load(fraction_ptr + j, mask=mask, other=0)
    fk = tl.load(fraction_ptr + k, mask=mask, other=0)
    image_ptr = x_ptr + row * numel
    top_left = _between_planes(image_ptr, front, back, fi, top + left, mask, AXES)
    top_right = _between_planes(image_ptr, front, back, fi, top + right, mask, AXES)
    low_left = _between_planes(image_ptr, front, back, fi, low + left, mask, AXES)
    low_right = _between_planes(image_ptr, front, back, fi, low + right, mask, AXES)
    left_value = _between(top_left, low_left, fj)
    value = _between(left_value, _between(top_right, low_right, fj), fk)
    tl.store(out_ptr + row * numel + offsets, value, mask=mask)
    if parts_ptr is not None:
        count = tl.minimum(numel - tile.to(INDEX) * BLOCK, BLOCK).to(ACC)
        measure(value, parts_ptr, mask, row, tile, tiles, rows, count)


class _Channels:
    """All channels on their way through the steps."""

    def __init__(self, images: Tensor, parameters: Tensor) -> None:
        self._images, self._parameters = images, parameters
        self._at, self._spare = images, list[Tensor]()
        self._space = tuple(three_axes(images.shape[2:]))
        self._numel = images.shape[2:].numel()
        self._rows = images.shape[0] * images.shape[1]
        blocks = block_sizes("augment_intensity", images)
        self._tile = blocks["BLOCK"]
        self._tiles = triton.cdiv(self._numel, self._tile)
        self._options: dict[str, Any] = {
            "AXES": images.dim() - 2,
            "ACC": accumulator(images.dtype),
            "INDEX": tl.int64 if self._numel >= 2**30 else tl.int32,
            **blocks,
        }
        self._parts: Tensor | None = None

    @property
    def result(self) -> Tensor:
        """The values after the last pass."""
        return self._at

    def statistics(self) -> Tensor:
        """Mean, SD, minimum and maximum of each channel after the last pass."""
        if self._parts is None:
            self._pass(out=None, measured=True)
        assert self._parts is not None
        return merge(self._parts, self._numel, self._tile)

    def pointwise(self, **step: Any) -> None:
        """One step, or the first ones, in place except in the images."""
        out = self._unused() if self._at is self._images else self._at
        self._pass(out=out, **step)
        self._at = out

    def _pass(
        self,
        *,
        out: Tensor | None,
        noise: tuple[Tensor, int] | None = None,
        linear: bool = False,
        step: int = _NONE.value,
        inverted: bool = False,
        before: Tensor | None = None,
        powers: Tensor | None = None,
        measured: bool,
    ) -> None:
        sample, seed = noise or (None, 0)
        _pass[(self._rows * self._tiles,)](
            self._at, out, self._new_parts(measured), self._parameters, sample, before, powers,
            seed, self._images.shape[1], self._numel, self._tiles, self._rows,
            NOISE=noise is not None, LINEAR=linear, STEP=step, INVERTED=inverted, **self._options,
        )  # fmt: skip

    def blur(self, linear: bool, measured: bool) -> None:
        """One pass an axis; the last one ends with gain and bias."""
        axes = self._images.dim() - 2
        for axis in range(axes):
            last, space = axis == axes - 1, self._images.shape[2:]
            out = self._unused()
            _blur[(self._rows * self._tiles,)](
                self._at, out, self._new_parts(measured and last), self._parameters,
                space[axis], space[axis + 1 :].numel(), self._numel, self._tiles, self._rows, axis,
                LINEAR=linear and last, **self._options,
            )  # fmt: skip
            self._move(out)

    def lower_resolution(self, measured: bool) -> None:
        """Two launches: the tables of each axis, and the interpolation between their voxels."""
        axes, length = self._images.dim() - 2, sum(self._space)
        left, right = self._at.new_empty(2, self._rows, length, dtype=torch.int32)
        fraction = self._at.new_empty(self._rows, length)
        grid = (self._rows * axes, triton.cdiv(max(self._space), _TABLE))
        _coarse_tables[grid](
            self._parameters, left, right, fraction, self._space, AXES=axes, BLOCK=_TABLE,
            **NO_FMA,
        )  # fmt: skip
        out = self._unused()
        _lower_resolution[(self._rows * self._tiles,)](
            self._at, out, self._new_parts(measured), left, right, fraction, self._space,
            self._numel, self._tiles, self._rows, **self._options,
        )  # fmt: skip
        self._move(out)

    def _new_parts(self, measured: bool) -> Tensor | None:
        shape = (4, self._rows, self._tiles)
        self._parts = self._at.new_empty(shape) if measured else None
        return self._parts

    def _unused(self) -> Tensor:
        return self._spare.pop() if self._spare else torch.empty_like(self._images)

    def _move(self, out: Tensor) -> None:
        if self._at is not self._images:
            self._spare.append(self._at)
        self._at = out


@register("augment_intensity")
def augment_intensity(
    images: Tensor, seed: int, sample: Tensor, parameters: Tensor, steps: int
) -> Tensor:
    """See the op."""
    images = images.contiguous()
    if not images.numel() or not steps:
        return images.clone()
    given = {name: bool(steps >> i & 1) for i, name in enumerate(STEPS)}
    linear, blurs = given["gain"] or given["bias"], given["blur_sd_vox"]
    gammas = [inverted for inverted in (True, False) if given[_GAMMAS[inverted]]]
    # What is measured at the end of the first passes, of contrast and of the lower resolution.
    after_low = bool(gammas)
    after_contrast = after_low and not given["low_res"]
    first = given["contrast"] or after_contrast
    channels = _Channels(images, parameters.contiguous())
    if given["noise_sd"] or (linear and not blurs):
        noise = (sample.contiguous(), seed) if given["noise_sd"] else None
        channels.pointwise(noise=noise, linear=linear and not blurs, measured=first and not blurs)
    if blurs:
        channels.blur(linear, first)
    if given["contrast"]:
        before = channels.statistics()
        channels.pointwise(step=_CONTRAST.value, before=before, measured=after_contrast)
    if given["low_res"]:
        channels.lower_resolution(after_low)
    for inverted in gammas:
        before = channels.statistics()
        channels.pointwise(step=_POWER.value, inverted=inverted, before=before, measured=True)
        channels.pointwise(
            step=_RESTORE.value, inverted=inverted, before=before, powers=channels.statistics(),
            measured=inverted and len(gammas) > 1,
        )  # fmt: skip
    return channels.result
