"""Few-channel convolutions: torch's in double, cases that tiles could get wrong, messages."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cmrfast.models.kernels import thin_conv3d
from cmrfast.ops._op import OPS
from tests.support.convolutions import assert_refused, both, close, exported

torchs = partial(F.conv3d, padding=1)


def arguments(batch, size, before, after, dtype=torch.float32):
    torch.manual_seed(0)
    x = torch.randn(batch, before, *size, dtype=dtype)
    return x, torch.randn(after, before, 3, 3, 3, dtype=dtype), torch.randn(after, dtype=dtype)


@settings(max_examples=40)
@given(
    st.integers(0, 3),
    st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 35)),
    st.integers(1, 16),
    st.integers(1, 16),
)
def test_is_torchs_convolution(batch, size, before, after):
    close(*both(thin_conv3d, torchs, arguments(batch, size, before, after)))


@pytest.mark.parametrize(("batch", "size"), [(1, (3, 60, 150)), (520, (2, 3, 4))])
def test_of_many_bands(batch, size):
    """Of rows that do not all fit in cache; more of them than get sums of their own."""
    close(*both(thin_conv3d, torchs, arguments(batch, size, 48, 7)))


def test_slope_is_a_leaky_relu_behind():
    args = [a.requires_grad_() for a in arguments(2, (5, 6, 7), 3, 4)]
    fused, apart = thin_conv3d(*args, slope=0.1), F.leaky_relu(thin_conv3d(*args), 0.1)
    assert torch.equal(fused, apart)
    for a, b in zip(*(torch.autograd.grad(out.sum(), args) for out in (fused, apart)), strict=True):
        assert torch.equal(a, b)


def test_takes_any_strides():
    x, weight, bias = arguments(2, (5, 6, 7), 3, 4)
    strided = x.to(memory_format=torch.channels_last_3d), weight.transpose(3, 4), bias.flip(0)
    close(*both(thin_conv3d, torchs, strided))
    close(*both(thin_conv3d, torchs, (x[:, :, ::2, :, 1::3], weight, bias)))


def test_a_border_of_zeros_and_no_neighbour_across_rows():
    """A tap of one voxel's shift moves the volume; what leaves it on a side does not come back."""
    x = torch.arange(1.0, 4 * 5 * 6 + 1).view(1, 1, 4, 5, 6)
    for axis in range(3):
        for step in (-1, 1):
            weight = torch.zeros(1, 1, 3, 3, 3)
            at = [1, 1, 1]
            at[axis] -= step
            weight[0, 0, at[0], at[1], at[2]] = 1
            wanted = x.roll(step, axis + 2)
            wanted.select(axis + 2, 0 if step > 0 else -1).zero_()
            torch.testing.assert_close(thin_conv3d(x, weight, torch.zeros(1)), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_and_autocast_are_torchs(dtype):
    x, weight, bias = arguments(1, (3, 4, 5), 2, 3)
    half = [a.to(dtype) for a in (x, weight, bias)]
    wanted = F.leaky_relu(F.conv3d(*half, padding=1), 0.1)
    assert torch.equal(thin_conv3d(*half, slope=0.1), wanted)
    with torch.autocast("cpu", dtype):
        assert thin_conv3d(x, weight, bias).dtype == dtype


def test_other_programs_get_torchs():
    called = exported(thin_conv3d, arguments(1, (3, 4, 5), 2, 3), slope=0.1)
    assert called == {"aten.conv3d.default", "aten.leaky_relu.default"}


def test_compiles_to_one_graph():
    args = arguments(2, (3, 4, 5), 2, 3)
    compiled = torch.compile(thin_conv3d, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args, slope=0.1), thin_conv3d(*args, slope=0.1))


def test_messages():
    x, weight, bias = arguments(1, (3, 4, 5), 2, 3)
    shape = r"weight must be \(O, 2, 3, 3, 3\); got"
    assert_refused(
        thin_conv3d,
        [
            ((x[0], weight, bias), ValueError, r"x must be \(B, C, D, H, W\); got \(2, 3, 4, 5\)"),
            ((x, weight[:, :1], bias), ValueError, rf"{shape} \(3, 1, 3, 3, 3\)"),
            ((x, weight, bias[:2]), ValueError, r"bias must be \(3,\); got \(2,\)"),
            (
                (x, weight, bias.to("meta")),
                ValueError,
                "all tensors must lie on one device; got x on cpu",
            ),
            ((x.int(), weight, bias), TypeError, "x must be a floating tensor; got torch.int"),
        ],
    )
    with pytest.raises(ValueError, match=r"^thin_conv3d: slope must be positive; got 0\.0"):
        thin_conv3d(x, weight, bias, slope=0.0)


def test_kernel_refuses_what_does_not_fit():
    x, weight, bias = arguments(1, (3, 4, 5), 2, 3)
    for args in ((x, weight[:, :1], bias, 1.0), (x, weight.double(), bias, 1.0)):
        with pytest.raises(RuntimeError):
            OPS["thin_conv3d"](*args)
    with pytest.raises(RuntimeError):
        OPS["thin_conv3d_backward"](x[:, :, 1:], x)
