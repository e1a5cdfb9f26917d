"""A random call of any op, and what running it gives."""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.attack.ops import intensities, layers, losses, patches, sampling
from tests.attack.ops.call import Call
from tests.attack.ops.make import Make

#: Their order, and that of the numbers that each draws, decides what a numbered case is.
CALLS: tuple[Callable[[Make], Call], ...] = (
    *(patches.extract_patches, patches.window_counts, patches.merge_patches),
    *(sampling.affine_sample, sampling.warp_pair, sampling.resample, sampling.resample_argmax),
    *(intensities.augment_intensity, sampling.sample_patches),
    *(losses.dice_ce_sums, losses.nt_xent, patches.cover_starts),
    *(layers.same_conv2d, layers.thin_conv3d, layers.max_pool),
)


def run_case(numbers: random.Random) -> tuple[Call, list[Tensor] | Exception]:
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
