"""Samples of the op that augments intensities."""

import torch

from tests.support.op_samples.registry import samples_of
from tests.support.op_samples.tensors import normal


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
