"""Random calls that augment intensities."""

import math

import torch

from cmrfast import ops
from tests.attack.ops.call import Call, largest
from tests.attack.ops.make import FLOATS, Make


def augment_intensity(make: Make) -> Call:
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
        size=20 * (1 + largest(images)),
    )
