"""Few-channel convolutions: torch's in double, cases that tiles could get wrong, messages."""

import itertools
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


def wide_arguments(value):
    """A spike inside a volume and one in a corner of another."""
    x, weight, bias = arguments(2, (7, 8, 30), 3, 6)
    x[0, 1, 3, 4, 9] = x[1, 2, 0, 7, 29] = value
    return x, weight, bias


@pytest.mark.parametrize("value", [1e8, -1e37, torch.inf, torch.nan])
def test_a_spike_does_not_leave_its_receptive_field(value):
    args = wide_arguments(value)
    output, wanted = thin_conv3d(*args, slope=0.1), F.leaky_relu(torchs(*args), 0.1)
    calm = wanted.abs() < 1e3
    torch.testing.assert_close(output[calm], wanted[calm], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output[~calm], wanted[~calm], rtol=1e-4, atol=0, equal_nan=True)


def weight_gradient(x, grad):
    """Without padding: torch's, on some processors, multiplies its zeros by what is not finite."""
    taps = []
    for shifts in itertools.product((-1, 0, 1), repeat=3):
        of_x = [slice(max(0, s), n + min(0, s)) for s, n in zip(shifts, x.shape[2:], strict=True)]
        of_grad = [
            slice(max(0, -s), n - max(0, s)) for s, n in zip(shifts, x.shape[2:], strict=True)
        ]
        taps.append(torch.einsum("bodhw,bcdhw->oc", grad[:, :, *of_grad], x[:, :, *of_x]))
    return torch.stack(taps, -1).unflatten(-1, (3, 3, 3))


@pytest.mark.parametrize("value", [1e8, torch.inf, torch.nan])
@pytest.mark.parametrize("spiked", [0, 1])
def test_a_spike_does_not_leave_its_receptive_field_backward(value, spiked):
    torch.manual_seed(0)
    grad, x = torch.randn(2, 4, 5, 6, 11), torch.randn(2, 3, 5, 6, 11)
    (grad, x)[spiked][1, 2, 0, 0, 0] = value
    weight, bias = OPS["thin_conv3d_backward"](grad, x)
    wanted = weight_gradient(x, grad)
    torch.testing.assert_close(weight, wanted, rtol=1e-4, atol=1e-4, equal_nan=True)
    torch.testing.assert_close(bias, grad.sum((0, 2, 3, 4)), rtol=1e-4, atol=1e-4, equal_nan=True)


def test_error_keeps_the_bound_of_the_docstring():
    for case in range(9):
        torch.manual_seed(case)
        channels = (1, 14, 48)[case % 3]
        x, weight = torch.randn(2, channels, 6, 9, 20), torch.randn(5, channels, 3, 3, 3)
        if case // 3 == 1:
            x = 10 ** (20 * torch.rand_like(x) - 10) * x  # of very different sizes
        if case // 3 == 2:
            x, weight = x.abs(), weight.abs()  # sums that only grow
        error = (thin_conv3d(x, weight, torch.zeros(5)) - torchs(x.double(), weight.double())).abs()
        largest = F.max_pool3d(x.abs().double(), (7, 7, 3), 1, (3, 3, 1))
        bound = torch.einsum("oc,bcdhw->bodhw", weight.abs().double().sum((2, 3, 4)), largest)
        assert (error <= (channels + 20) * torch.finfo(torch.float32).eps * bound).all()


def test_same_bits_for_any_thread_count_where_rows_are_summed_directly(threads):
    args = wide_arguments(1e8)
    results = []
    for count in (1, 2, 3, 4):
        threads(count)
        grads = OPS["thin_conv3d_backward"](args[0], args[0])
        results.append([x.view(torch.int32) for x in (thin_conv3d(*args), *grads)])
    assert all(torch.equal(a, b) for r in results for a, b in zip(r, results[0], strict=True))
