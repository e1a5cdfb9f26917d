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
    args = arguments(batch, size, before, after, side)
    check((args[0], args[1], args[2].abs() + 5), dilation)  # no output is a difference near 0


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


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("dilation", [1, 2])
def test_error_keeps_the_bound_of_the_docstring(side, dilation):
    for case in range(12):
        torch.manual_seed(case)
        channels = (3, 16, 40, 300)[case % 4]
        x, weight = torch.randn(2, channels, 25, 24), torch.randn(17, channels, side, side)
        if case % 3 == 1:
            x = 10 ** (20 * torch.rand_like(x) - 10) * x  # of very different sizes
        if case % 3 == 2:
            x, weight = x.abs(), weight.abs()  # sums that only grow
        wanted = theirs(x.double(), weight.double(), None, dilation)
        error = (kernel(x, weight, torch.zeros(17), dilation) - wanted).abs()
        reach = 5 * dilation
        largest = F.max_pool2d(x.abs().double(), 2 * reach + 1, 1, reach)
        bound = torch.einsum("oc,bchw->bohw", weight.abs().double().sum((2, 3)), largest)
        assert (error <= (channels + 20) * torch.finfo(torch.float32).eps * bound).all()


@pytest.mark.parametrize("value", [1e8, -1e37, torch.inf, torch.nan])
@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("dilation", [1, 3])
def test_a_spike_does_not_leave_its_receptive_field(value, side, dilation):
    x, weight, bias = arguments(2, (40, 41), 16, 18, side)
    spiked = x.clone()
    spiked[0, 3, 20, 22] = spiked[1, 5, 0, 40] = value
    reached = theirs((spiked != x).float(), torch.ones(1, 16, side, side), None, dilation) > 0
    reached = reached.expand(-1, 18, -1, -1)
    output, wanted = kernel(spiked, weight, bias, dilation), theirs(spiked, weight, bias, dilation)
    torch.testing.assert_close(output[~reached], wanted[~reached], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output[reached], wanted[reached], equal_nan=True)


@pytest.mark.parametrize("value", [1e8, torch.inf, torch.nan])
@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("spiked", [0, 1])
def test_a_spike_does_not_leave_its_receptive_field_backward(value, side, spiked):
    """At the corner of an image, some taps do not see it."""
    torch.manual_seed(0)
    grad, x = torch.randn(2, 18, 9, 11), torch.randn(2, 16, 9, 11)
    (grad, x)[spiked][1, 2, 0, 0] = value
    output = OPS["same_conv2d_backward"](grad, x, side, 1)
    wanted = torch.nn.grad.conv2d_weight(x, (18, 16, side, side), grad, padding=side // 2)
    torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_huge_numbers_do_not_overflow():
    x, weight, bias = arguments(1, (9, 10), 16, 16)
    for factors in ((1e36, 1), (1, 1e36)):
        args = factors[0] * x, factors[1] * weight, bias
        torch.testing.assert_close(kernel(*args), theirs(*args), rtol=1e-4, atol=1e32)


def test_same_bits_for_any_thread_count_where_tiles_are_summed_directly(threads):
    x, weight, bias = arguments(2, (40, 41), 16, 18)
    x[0, 3, 20, 22] = 1e8
    x[1, :, 10:20] *= 1e37
    results = []
    for count in (1, 2, 3, 4):
        threads(count)
        grad = OPS["same_conv2d_backward"](x[:, :2], x, 3, 1)
        results.append((kernel(x, weight, bias).view(torch.int32), grad.view(torch.int32)))
    assert all(torch.equal(a, b) for r in results for a, b in zip(r, results[0], strict=True))


@pytest.mark.parametrize("dilation", [4, 5, 3000, 2**32, 2**62])
@pytest.mark.parametrize("channels", [2, 16])
def test_dilation_beyond_the_image_leaves_the_central_tap(dilation, channels):
    """At a cost that does not grow with the dilation."""
    x, weight, bias = arguments(2, (4, 3), channels, channels)
    wanted = F.conv2d(x, weight[..., 1:2, 1:2], bias)
    torch.testing.assert_close(
        same_conv2d(x, weight, bias, dilation=dilation), wanted, rtol=1e-5, atol=1e-5
    )
    grad = OPS["same_conv2d_backward"](x, x, 3, dilation)
    assert grad[..., 0, :].abs().max() < 1e-5 < grad[..., 1, 1].abs().max()


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
    too_few = (15, 64, 3), (64, 15, 3), (15, 32, 5), (31, 31, 5)
    for before, after, side in (*too_few, (40, 40, 1), (40, 40, 7)):
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
