"""Convolutions of the image's size: torch's in double, what tiles could get wrong, messages."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cmrfast.models.kernels import same_conv2d
from cmrfast.models.kernels.same_conv2d import same_conv2d_op
from cmrfast.ops._op import OPS
from tests.support.convolutions import assert_refused, both, close, exported


def arguments(batch, size, before, after, side=3, dtype=torch.float32):
    torch.manual_seed(0)
    x = torch.randn(batch, before, *size, dtype=dtype)
    return x, torch.randn(after, before, side, side, dtype=dtype), torch.randn(after, dtype=dtype)


def theirs(x, weight, bias, dilation=1):
    return F.conv2d(x, weight, bias, padding=dilation * (weight.shape[-1] // 2), dilation=dilation)


def kernel(x, weight, bias, dilation=1):
    """The kernel, also where the function would leave it to torch."""
    return same_conv2d_op(x, weight, bias, dilation, False)


def check(args, dilation=1, call=kernel):
    close(*both(partial(call, dilation=dilation), partial(theirs, dilation=dilation), args))


@settings(max_examples=40)
@given(
    st.integers(0, 3),
    st.tuples(st.integers(1, 25), st.integers(1, 40)),
    st.integers(1, 20),
    st.integers(1, 40),
    st.sampled_from((3, 5)),
    st.integers(1, 4),
)
def test_is_torchs_convolution(batch, size, before, after, side, dilation):
    check(arguments(batch, size, before, after, side), dilation)


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize(
    ("batch", "size", "before", "after"),
    [(1, (9, 400), 33, 70), (40, (6, 7), 130, 24), (2, (150, 30), 32, 32)],
)
def test_of_many_blocks(batch, size, before, after, side):
    """Of rows that do not all fit in cache, and of images of which many do."""
    check(arguments(batch, size, before, after, side), call=same_conv2d)


def test_rounds_little_more_than_torch():
    args = arguments(4, (40, 40), 64, 64)
    wanted = theirs(*(a.double() for a in args))
    ours, torchs = ((f(*args) - wanted).square().mean().sqrt() for f in (same_conv2d, theirs))
    assert 0 < ours < 4 * torchs


def test_takes_any_strides():
    x, weight, bias = arguments(2, (15, 16), 17, 18)
    strided = x.to(memory_format=torch.channels_last), weight.transpose(2, 3), bias.flip(0)
    check(strided)
    check((x[:, :, ::2, 1::3], weight, bias))


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_a_border_of_zeros_and_no_neighbour_across_rows(dilation):
    """A tap of one shift moves the image; what leaves it on a side does not come back."""
    x = torch.arange(1.0, 7 * 11 + 1, dtype=torch.float64).view(1, 1, 7, 11)
    for axis in range(2):
        for step in (-1, 1):
            weight = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
            at = [1, 1]
            at[axis] -= step
            weight[0, 0, at[0], at[1]] = 1
            wanted = x.roll(step * dilation, axis + 2)
            gone = slice(None, dilation) if step > 0 else slice(-dilation, None)
            wanted.movedim(axis + 2, 0)[gone] = 0
            torch.testing.assert_close(kernel(x, weight, weight.new_zeros(1), dilation), wanted)


def test_second_derivatives():
    x, weight, bias = (a.requires_grad_() for a in arguments(1, (4, 5), 2, 3, dtype=torch.float64))
    assert torch.autograd.gradgradcheck(partial(kernel, dilation=2), (x, weight, bias))


def test_few_channels_and_other_kernels_are_torchs():
    for before, after, side in ((15, 64, 3), (64, 15, 3), (31, 32, 5), (40, 40, 1), (40, 40, 7)):
        args = arguments(1, (9, 9), before, after, side)
        assert torch.equal(same_conv2d(*args, dilation=2), theirs(*args, dilation=2))
    x, weight, _ = arguments(1, (9, 9), 16, 16)
    assert torch.equal(same_conv2d(x, weight), kernel(x, weight, torch.zeros(16)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_and_autocast_are_torchs(dtype):
    args = arguments(1, (9, 9), 16, 16)
    half = [a.to(dtype) for a in args]
    assert torch.equal(same_conv2d(*half), theirs(*half))
    with torch.autocast("cpu", dtype):
        assert same_conv2d(*args).dtype == dtype


def test_other_programs_get_torchs():
    assert exported(same_conv2d, arguments(1, (9, 9), 16, 16)) == {"aten.conv2d.default"}


def test_compiles_to_one_graph():
    args = arguments(2, (9, 9), 16, 17)
    compiled = torch.compile(same_conv2d, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args, dilation=2), same_conv2d(*args, dilation=2))


def test_messages():
    x, weight, bias = arguments(1, (4, 5), 2, 3)
    shape = r"weight must be \(O, 2, K, K\), K odd; got"
    assert_refused(
        same_conv2d,
        [
            ((x[0], weight, bias), ValueError, r"x must be \(B, C, H, W\); got \(2, 4, 5\)"),
            ((x, weight[:, :1]), ValueError, rf"{shape} \(3, 1, 3, 3\)"),
            ((x, weight[..., :2]), ValueError, rf"{shape} \(3, 2, 3, 2\)"),
            ((x, weight[0, 0, 0, 0]), ValueError, rf"{shape} \(\)"),
            ((x, weight, bias[:2]), ValueError, r"bias must be \(3,\); got \(2,\)"),
            (
                (x, weight, bias.to("meta")),
                ValueError,
                "all tensors must lie on one device; got x on cpu",
            ),
            ((x.int(), weight, bias), TypeError, "x must be a floating tensor; got torch.int"),
        ],
    )
    with pytest.raises(ValueError, match=r"^same_conv2d: dilation must be >= 1; got 0"):
        same_conv2d(x, weight, bias, dilation=0)


def test_kernel_refuses_what_does_not_fit():
    x, weight, bias = arguments(1, (4, 5), 2, 3)
    for args in (
        (x, weight[:, :1], bias, 1, False),
        (x, weight.double(), bias, 1, False),
        (x, weight, bias, 1, True),
        (x, weight, bias, 0, False),
        (x, weight[..., :1, :1], bias, 1, False),
    ):
        with pytest.raises(RuntimeError):
            OPS["same_conv2d"](*args)
    with pytest.raises(RuntimeError):
        OPS["same_conv2d_backward"](x[:, :, 1:], x, 3, 1)
