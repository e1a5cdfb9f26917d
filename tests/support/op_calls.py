"""Calls of every op, and how their outputs are compared."""

import copy
import os

import pytest
import torch

import cmrfast.ops  # noqa: F401  (declares all ops)
from cmrfast.ops._op import OPS
from tests.support.op_samples import SAMPLES, halved

FLOATS = [torch.float32, torch.float64]
HALVES = [torch.float16, torch.bfloat16]
#: Triton's interpreter takes 0.1 s a call; test_triton.py, slow, runs it on every sample.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
#: There, one in so many samples of ops that take seconds a call; of the others, one in 7 of many.
_ONE_IN = {"sample_patches": 28, "sample_patches_backward": 5}
#: Looser than torch's own (rtol, atol), for a reason.
TOLERANCE = {
    # The gradient in the matrix sums float32 products as large as voxel index x slope.
    ("affine_sample_backward", torch.float32): (1.3e-6, 1e-3),
    # The taps of a cubic sample, here as large as 200, cancel.
    ("sample_patches", torch.float32): (1.3e-6, 1e-4),
    # Sums over every pixel, through transforms whose terms cancel.
    ("same_conv2d_backward", torch.float32): (1.3e-6, 1e-4),
}
every_op = pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
every_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)
every_half = pytest.mark.parametrize("dtype", HALVES, ids=str)


def samples(op, device, dtype):
    if op.cpu_only and device != "cpu":
        pytest.skip("runs torch's own kernels there")
    torch.manual_seed(0)
    if dtype in HALVES:
        found = list(halved(op.name, device, dtype))
    else:
        found = list(SAMPLES[op.name](device, dtype))
    return found[:: _ONE_IN.get(op.name, 7 if len(found) > 20 else 1)] if INTERPRETED else found


def run(call, args):
    """The outputs of one call; for an op that works in place, what it left in its arguments."""
    args = copy.deepcopy(args)
    output = call(*args)
    return tuple(a for a in args if isinstance(a, torch.Tensor)) if output is None else output


def tensors(args):
    return [a for a in args if isinstance(a, torch.Tensor)]


def as_tuple(output):
    return output if isinstance(output, tuple | list) else (output,)


def bits(output):
    whole = torch.contiguous_format
    return [x.flatten().clone(memory_format=whole).view(torch.uint8) for x in as_tuple(output)]


def assert_close_for_halves(outputs, references, dtype):
    """As close as halves allow: the largest entry of a result is the scale of its roundings."""
    for x, y in zip(*map(as_tuple, (outputs, references)), strict=True):
        assert x.dtype == y.dtype
        scale = y.nan_to_num(0.0).abs().amax().item() if y.numel() else 0.0
        near = max(2 * torch.finfo(dtype).eps * scale, 1e-5)
        torch.testing.assert_close(x, y, rtol=0, atol=near, equal_nan=True)
