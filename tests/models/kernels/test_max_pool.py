"""Pooling by blocks: torch's to the bit, with its gradient, whatever the blocks hold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cmrfast.models.kernels import max_pool
from cmrfast.ops._op import OPS
from tests.support.convolutions import assert_refused, exported


def torchs(x):
    return F.max_pool2d(x, 2) if x.dim() == 4 else F.max_pool3d(x, 2)


def assert_torchs(x):
    """Equal outputs and gradients, NaN where torch has NaN."""
    outputs, grads = [], []
    for pool in (max_pool, torchs):
        leaf = x.clone().requires_grad_()
        out = pool(leaf)
        torch.manual_seed(1)
        grads.append(torch.autograd.grad(out, leaf, torch.randn(out.shape, dtype=x.dtype))[0])
        outputs.append(out)
    torch.testing.assert_close(*outputs, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(*grads)


@settings(max_examples=60)
@given(
    st.integers(1, 3),
    st.lists(st.integers(2, 41), min_size=2, max_size=3),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 2**32),
)
def test_is_torchs_with_ties_and_nan(batch, size, dtype, seed):
    torch.manual_seed(seed)
    values = torch.tensor([0, 0, 1, -2, float("nan"), float("inf"), -float("inf")], dtype=dtype)
    assert_torchs(values[torch.randint(7, (batch, 2, *size))])
    assert_torchs(torch.randn(batch, 2, *size, dtype=dtype))


def test_rows_longer_than_what_a_gradient_takes_at_once():
    assert_torchs(torch.randn(1, 1, 2, 1035))


def test_takes_any_strides():
    x = torch.randn(2, 3, 8, 10)
    assert_torchs(x.to(memory_format=torch.channels_last))
    assert_torchs(x[:, :, ::2, 1::3])


def test_an_empty_batch_stays_empty():
    assert max_pool(torch.zeros(0, 3, 4, 6)).shape == (0, 3, 2, 3)


def test_second_derivative():
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: max_pool(x).square(), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_and_autocast_are_torchs(dtype):
    x = torch.randn(1, 3, 4, 6).to(dtype)
    assert torch.equal(max_pool(x), torchs(x))
    with torch.autocast("cpu", dtype):
        assert torch.equal(max_pool(x.float()), torchs(x.float()))


def test_other_programs_get_torchs():
    assert exported(max_pool, (torch.randn(1, 3, 4, 6),)) == {"aten.max_pool2d.default"}


def test_compiles_to_one_graph():
    x = torch.randn(1, 3, 4, 6, 8)
    compiled = torch.compile(max_pool, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), torchs(x))


def test_messages():
    x = torch.randn(1, 3, 4, 6)
    wanted = (
        r"x must be \(B, C, H, W\) or \(B, C, D, H, W\), with at least one channel and images of "
        "at least 2 along every"
    )
    assert_refused(
        max_pool,
        [
            ((x[0],), ValueError, rf"{wanted} axis; got \(3, 4, 6\)"),
            ((x[:, :, :1],), ValueError, rf"{wanted} axis; got \(1, 3, 1, 6\)"),
            ((x[:, :0],), ValueError, rf"{wanted} axis; got \(1, 0, 4, 6\)"),
            ((x.int(),), TypeError, "x must be a floating tensor; got torch.int"),
        ],
    )
    with pytest.raises(RuntimeError):
        OPS["max_pool_backward"](x, x)
