"""What a reference cannot show of nt_xent."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cmrfast import ops
from tests.support.ranks import on_two_ranks


def plain(anchors, candidates, temperature=0.07):
    similarity = F.normalize(anchors) @ F.normalize(candidates).T
    return F.cross_entropy(similarity / temperature, torch.arange(len(anchors)))


def test_anchors_of_the_method():
    same = torch.ones(32, 128)
    assert ops.nt_xent(same, same).item() == pytest.approx(math.log(32), abs=1e-6)
    basis = torch.eye(32, 128, dtype=torch.float64)
    assert ops.nt_xent(basis, basis).item() == pytest.approx(1.937094e-5, rel=1e-5)
    assert ops.nt_xent(basis, basis.roll(1, 0)).item() == pytest.approx(14.285734, abs=1e-5)


def test_equals_pytorch_metric_learning():
    library = pytest.importorskip("pytorch_metric_learning.losses")
    a, c, labels = torch.randn(20, 16), torch.randn(20, 16), torch.arange(20)
    loss = library.NTXentLoss(temperature=0.07)(a, labels, ref_emb=c, ref_labels=labels.clone())
    torch.testing.assert_close(ops.nt_xent(a, c), loss)


def simclr(a, c, temperature=0.07):
    """Equation 1 of Chen et al. (2020), averaged over all rows of both views."""
    rows = F.normalize(torch.cat((a, c)))
    similarity = (rows @ rows.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(similarity, torch.arange(len(rows)).roll(len(a)))


def test_negatives_of_both_views_equal_pytorch_metric_learning():
    library = pytest.importorskip("pytorch_metric_learning.losses")
    a, c, labels = torch.randn(20, 16), torch.randn(20, 16), torch.arange(20)
    loss = library.NTXentLoss(temperature=0.07)(torch.cat((a, c)), torch.cat((labels, labels)))
    torch.testing.assert_close(ops.nt_xent(a, c, negatives="both"), loss)


@pytest.mark.parametrize("temperature", [0.02, 0.07, 1.0])
@pytest.mark.parametrize("count", [1, 9, 150])
def test_loss_and_gradients_with_negatives_of_both_views(count, temperature):
    ours = [torch.randn(count, 21, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    loss = ops.nt_xent(*ours, temperature=temperature, negatives="both")
    wanted = simclr(*theirs, temperature)
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(loss, wanted)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad, y.grad)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_ignores_the_scale_of_embeddings(seed):
    torch.manual_seed(seed)
    a, c = torch.randn(9, 5), torch.randn(9, 5)
    scale = 10 ** (36 * torch.rand(9, 1) - 18)
    torch.testing.assert_close(ops.nt_xent(a * scale, c / scale), ops.nt_xent(a, c))


@pytest.mark.parametrize("size", [1e18, 1e-18, 1e30])
def test_gradients_of_extreme_rows(size):
    a, c = torch.randn(6, 8, dtype=torch.float64), torch.randn(6, 8, dtype=torch.float64)
    tiny = (a * size).float().requires_grad_()
    ops.nt_xent(tiny, c.float()).backward()
    a.requires_grad_()
    plain(a, c).backward()
    torch.testing.assert_close(tiny.grad.double() * size, a.grad, rtol=1e-3, atol=1e-5)


def test_zero_rows_have_cosine_zero_and_finite_gradients():
    a, c = torch.zeros(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    loss = ops.nt_xent(a, c)
    assert loss.item() == pytest.approx(math.log(3), abs=1e-6)
    loss.backward()
    assert a.grad.isfinite().all()
    assert c.grad.isfinite().all()


def test_symmetric_is_the_mean_of_both_directions():
    a, c = torch.randn(7, 5), torch.randn(7, 5)
    expected = (plain(a, c) + plain(c, a)) / 2
    torch.testing.assert_close(ops.nt_xent(a, c, symmetric=True), expected)


def test_gradients_equal_torch_beyond_one_block():
    a, c = torch.randn(211, 37, dtype=torch.float64), torch.randn(300, 37, dtype=torch.float64)
    a.requires_grad_()
    c.requires_grad_()
    ops.nt_xent(a, c).backward()
    ours = a.grad, c.grad
    a.grad = c.grad = None
    plain(a, c).backward()
    torch.testing.assert_close(ours, (a.grad, c.grad))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_compute_in_float32(dtype):
    a, c = torch.randn(9, 8).to(dtype), torch.randn(9, 8).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.nt_xent(a, c), ops.nt_xent(a.float(), c.float()))


def test_compiles_and_a_bad_target_gives_nan_there():
    compiled = torch.compile(
        lambda a, c, t: ops.nt_xent(a, c, targets=t),
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    a, c = torch.randn(5, 8), torch.randn(6, 8)
    torch.testing.assert_close(compiled(a, c, torch.arange(5)), ops.nt_xent(a, c))
    assert compiled(a, c, torch.full((5,), 6)).isnan()
    with pytest.raises(ValueError, match="targets must be 0 to 5; got values from 6 to 6"):
        ops.nt_xent(a, c, targets=torch.full((5,), 6))


A, C = torch.ones(4, 3), torch.ones(3, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((A.long(), A), {}, TypeError, "anchors must be a floating tensor"),
        ((A, A.double()), {}, TypeError, "must have one dtype"),
        ((A[0], A), {}, ValueError, r"anchors must be \(rows, D\)"),
        ((A, A[:, :2]), {}, ValueError, "rows of one length; got 3 and 2"),
        ((A, C), {}, ValueError, "each anchor needs its own candidate; got 4 anchors and 3"),
        ((C, A), {"symmetric": True}, ValueError, "each anchor needs its own candidate"),
        ((A, C[:0]), {}, ValueError, "at least one candidate"),
        ((A, A), {"temperature": 0.0}, ValueError, "temperature must be > 0; got 0.0"),
        ((A, A), {"targets": torch.zeros(4)}, TypeError, "targets must be an integer tensor"),
        ((A, A), {"targets": torch.arange(3)}, ValueError, r"one entry per anchor \(4\)"),
        (
            (A, A),
            {"targets": torch.arange(4), "symmetric": True},
            ValueError,
            "symmetric pairs row i with row i; leave out targets",
        ),
        (
            (A, A),
            {"targets": torch.arange(4), "negatives": "both"},
            ValueError,
            "negatives='both' pairs row i with row i; leave out targets",
        ),
        ((A, A), {"symmetric": True, "negatives": "both"}, ValueError, "leave out symmetric"),
        ((C, A), {"negatives": "both"}, ValueError, "each anchor needs its own candidate"),
        ((A, A), {"negatives": "all"}, ValueError, "must be candidates or both; got 'all'"),
    ],
)
def test_messages(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.nt_xent(*arguments, **options)


DIRECTIONS = {}, {"symmetric": True}, {"negatives": "both"}
ON_RANKS = [(options, first) for options in DIRECTIONS for first in (3, 5)]  # rows on rank 0, of 5


def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 8, generator=generator), torch.randn(5, 8, generator=generator)


def of_its_part(rank, group):
    """Some rows on rank 0 and the others on rank 1; gradients as DDP would average them."""
    found = []
    for options, first in ON_RANKS:
        own = [(x[:first] if rank == 0 else x[first:]).clone().requires_grad_() for x in data()]
        loss = ops.nt_xent(*own, **options, group=group)
        loss.backward()
        found.append((loss.item(), [x.grad / 2 for x in own]))
    return found


def test_two_ranks_give_the_loss_and_gradient_of_one(tmp_path):
    found = on_two_ranks(of_its_part, tmp_path)
    for number, (options, _) in enumerate(ON_RANKS):
        whole = [x.requires_grad_() for x in data()]
        loss = ops.nt_xent(*whole, **options)
        loss.backward()
        mean = sum(of_rank[number][0] for of_rank in found) / 2
        assert mean == pytest.approx(loss.item(), abs=1e-5)
        for side, x in enumerate(whole):
            parts = torch.cat([of_rank[number][1][side] for of_rank in found])
            torch.testing.assert_close(parts, x.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_subnormal_rows(dtype):
    """Their gradient overflows; where it is 0 it stays 0 and is never NaN."""
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    a = (tiny * torch.tensor([[1, 0, 0], [0, 3, 4]], dtype=torch.float64)).to(dtype)
    c = torch.eye(3, dtype=dtype)
    wanted = ops.nt_xent((a / tiny).double(), c.double())
    rows = [x.clone().requires_grad_() for x in (a, c)]
    loss = ops.nt_xent(*rows)
    loss.backward()
    torch.testing.assert_close(loss.double(), wanted)
    assert not any(x.grad.isnan().any() for x in rows)


@pytest.mark.parametrize(
    ("temperature", "dtype"), [(1e-40, torch.float32), (1e-310, torch.float64)]
)
def test_a_temperature_without_a_finite_inverse(temperature, dtype):
    with pytest.raises(ValueError, match=f"^nt_xent: temperature must have a .* in {dtype}, so be"):
        ops.nt_xent(A.to(dtype), A.to(dtype), temperature=temperature)
    ops.nt_xent(A.half(), A.half(), temperature=1e-37)


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"negatives": "both"}])
def test_a_second_derivative_is_refused(options):
    anchors = A.double().requires_grad_()
    loss = ops.nt_xent(anchors, A.double().flip(0), **options)
    (grad,) = torch.autograd.grad(loss, anchors, create_graph=True)
    with pytest.raises(RuntimeError, match="nt_xent_backward: has no second derivative"):
        grad.square().sum().backward()

    def penalty(anchors):
        gradient = torch.func.grad(lambda a: ops.nt_xent(a, A.double().flip(0), **options))
        return gradient(anchors).square().sum()

    with pytest.raises(RuntimeError, match="nt_xent_backward: has no second derivative"):
        torch.func.grad(penalty)(A.double())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64])
def test_targets_of_any_integer_dtype(dtype):
    targets = torch.arange(len(A)).flip(0)
    assert torch.equal(
        ops.nt_xent(A, A, targets=targets.to(dtype)), ops.nt_xent(A, A, targets=targets)
    )


def test_a_temperature_that_requires_a_gradient_is_refused():
    rows, temperature = torch.randn(4, 8), torch.tensor(0.1, requires_grad=True)
    with pytest.raises(ValueError, match=r"temperature has no gradient; give a number"):
        ops.nt_xent(rows, rows, temperature=temperature)
