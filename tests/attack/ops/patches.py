"""Random calls that place windows, extract their patches, count in them or merge them."""

import math
from typing import Any

import torch
from torch import Tensor

from cmrfast import ops
from tests.attack.ops.call import Call, largest
from tests.attack.ops.make import Make


def extract_patches(make: Make) -> Call:
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


def window_counts(make: Make) -> Call:
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


def merge_patches(make: Make) -> Call:
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

    return Call(run, [patches], size=largest(patches))


def cover_starts(make: Make) -> Call:
    shape, size = make.sizes(3, 20), make.sizes(3, 12)
    overlap = make.one_of(0, 1, 2, (0, 1, 0), 0.5, -1)
    return Call(lambda: ops.cover_starts(shape, size, overlap))
