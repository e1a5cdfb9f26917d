"""The contract every op keeps, looped over ops, samples, devices and dtypes."""

import copy

import pytest
import torch
from torch.autograd import forward_ad

from cmrfast import ops
from cmrfast.models.kernels import max_pool, same_conv2d, thin_conv3d
from cmrfast.ops._backend import kernel_of
from cmrfast.ops._op import OPS
from tests.support.devices import every_device
from tests.support.op_calls import (
    INTERPRETED,
    TOLERANCE,
    as_tuple,
    assert_close_for_halves,
    bits,
    every_float,
    every_half,
    every_op,
    run,
    samples,
    tensors,
)
from tests.support.op_samples import HALVED


def is_float(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


@every_op
@every_device
@every_float
def test_matches_reference(op, device, dtype):
    for args in samples(op, device, dtype):
        rtol, atol = TOLERANCE.get((op.name, dtype), (1.3e-6, 1e-5))
        if dtype == torch.float64:
            rtol, atol = 1e-7, 1e-7
        output, reference = run(op, args), run(op.reference, args)
        torch.testing.assert_close(output, reference, rtol=rtol, atol=atol, equal_nan=True)


@every_device
@every_half
@pytest.mark.parametrize("name", HALVED)
def test_half_precision_is_computed_in_float(name, device, dtype):
    if device not in OPS[name].half_devices:
        pytest.skip("half precision is upcast before the kernel")
    for args in samples(OPS[name], device, dtype):
        assert_close_for_halves(run(OPS[name], args), run(OPS[name].reference, args), dtype)


@every_op
@every_device
def test_gradients(op, device):
    if not op.differentiable:
        pytest.skip("declared without a gradient")
    for args in samples(op, device, torch.float64):
        wanted = [i for i in op.gradients if args[i].dtype == torch.float64 and args[i].numel()]
        if not wanted:
            continue

        def call(*values, args=args, wanted=wanted):
            full = list(args)
            for i, value in zip(wanted, values, strict=True):
                full[i] = value
            result = op(*full)
            return result[0] if isinstance(result, tuple | list) else result

        values = [args[i].detach().clone().requires_grad_() for i in wanted]
        if sum(v.numel() for v in values) <= 400:
            many = INTERPRETED or sum(v.numel() for v in values) > 60
            assert torch.autograd.gradcheck(call, values, fast_mode=many)


def differentiable_call(op, args):
    """The op as a function of its floating tensors alone, and those."""
    wanted = [i for i, a in enumerate(args) if is_float(a) and (i in op.gradients or not i)]

    def call(*values):
        full = list(args)
        for i, value in zip(wanted, values, strict=True):
            full[i] = value
        return as_tuple(op(*full))[0]

    return call, [args[i].detach().clone() for i in wanted]


@every_op
@every_device
def test_torch_func_takes_the_same_gradients(op, device):
    if not op.differentiable:
        pytest.skip("declared without a gradient")
    for args in samples(op, device, torch.float32):
        call, values = differentiable_call(op, args)
        if not values or not is_float(call(*values)):
            continue
        leaves = [v.clone().requires_grad_() for v in values]
        output = call(*leaves)
        grad = torch.ones_like(output)
        wanted = torch.autograd.grad(output, leaves, grad)
        functional, pullback = torch.func.vjp(call, *values)
        torch.testing.assert_close(functional, output, equal_nan=True)
        torch.testing.assert_close(pullback(grad), wanted, equal_nan=True)
        total = torch.func.grad(lambda *v, call=call: call(*v).sum())(*values)
        torch.testing.assert_close(total, wanted[0], equal_nan=True)


@every_op
@every_device
def test_forward_mode_is_refused_by_name(op, device):
    args = samples(op, device, torch.float32)[0]
    call, values = differentiable_call(op, args)
    if not values or op.call._schema.is_mutable:
        pytest.skip("takes nothing that has a derivative")
    message = f"^{op.name}: has no forward-mode derivative"
    with pytest.raises(RuntimeError, match=message):
        torch.func.jvp(call, tuple(values), tuple(values))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=message):
        call(*(forward_ad.make_dual(v, v) for v in values))


@every_op
@every_device
def test_registration(op, device):
    for args in samples(op, device, torch.float32)[:: 3 if INTERPRETED else 1]:
        args = tuple(
            a.detach().clone().requires_grad_() if is_float(a) and i in op.gradients else a
            for i, a in enumerate(args)
        )
        torch.library.opcheck(op.call, args)


@every_op
@every_device
def test_compiles_with_dynamic_shapes(op, device):
    torch._dynamo.reset()
    compiled = torch.compile(lambda *a: op(*a), fullgraph=True, backend="aot_eager", dynamic=True)
    for args in samples(op, device, torch.float32)[:4]:
        torch.testing.assert_close(run(compiled, args), run(op, args), equal_nan=True)


@every_op
@every_device
def test_exports(op, device):
    args = samples(op, device, torch.float32)[0]

    class Call(torch.nn.Module):
        def forward(self, *given):
            given = iter(given)
            return op(*(next(given) if isinstance(a, torch.Tensor) else a for a in args))

    exported = torch.export.export(Call(), tuple(tensors(args))).module()
    torch.testing.assert_close(run(exported, tensors(args)), run(op, args), equal_nan=True)


@every_op
@every_device
@every_float
def test_same_bits_every_run_and_thread_count(op, device, dtype, threads):
    if INTERPRETED or kernel_of(op.name, device.upper()) == "reference":
        pytest.skip("torch's own sums change with the thread count")
    for args in samples(op, device, dtype):
        first = run(op, args)
        for count in (1, 2, 3, 4) * 5:
            threads(count)
            assert all(map(torch.equal, bits(first), bits(run(op, args))))


@every_op
@every_device
def test_takes_any_strides(op, device):
    if op.call._schema.is_mutable:
        pytest.skip("works in place, on volumes of its own")
    for args in samples(op, device, torch.float32):
        strided = [_strided(a) if isinstance(a, torch.Tensor) else a for a in args]
        torch.testing.assert_close(run(op, strided), run(op, args), equal_nan=True)


@every_op
@every_device
def test_leaves_inputs_unchanged(op, device):
    if op.call._schema.is_mutable:
        pytest.skip("works in place")
    for args in samples(op, device, torch.float32):
        before = copy.deepcopy(args)
        op(*args)
        for a, b in zip(tensors(args), tensors(before), strict=True):
            assert torch.equal(a.nan_to_num(), b.nan_to_num())


def _strided(x):
    """The same values in every second element of a larger tensor."""
    if x.dim() == 0:
        return x
    wide = x.new_zeros(*x.shape, 2)
    wide[..., 0] = x
    return wide[..., 0]


START = torch.tensor([[0, 1], [-1, 2]])
EYE = torch.eye(2, 3)[None]
#: Each public function of one tensor.
PUBLIC = {
    "extract_patches": lambda x: ops.extract_patches(x[0], START, (3, 3)),
    "sample_patches": lambda x: ops.sample_patches(
        x[0], START.float(), EYE[:, :, :2].repeat(2, 1, 1), (3, 3)
    ),
    "merge_patches": lambda x: ops.merge_patches(x, START, (5, 5)),
    "affine_sample": lambda x: ops.affine_sample(x, EYE),
    "warp_pair": lambda x: ops.warp_pair(x, torch.ones(2, 4, 5, dtype=torch.uint8), EYE)[0],
    "resample": lambda x: ops.resample(x[0], torch.eye(4), torch.eye(4), (3, 3), antialias=True),
    "dice_ce_sums": lambda x: ops.dice_ce_sums(x, torch.ones(2, 4, 5, dtype=torch.uint8)),
    "nt_xent": lambda x: ops.nt_xent(x[0, 0], x[1, 0], symmetric=True),
    "max_pool": max_pool,
    "same_conv2d": lambda x: same_conv2d(x, torch.ones(16, 16, 3, 3)),
    "thin_conv3d": lambda x: thin_conv3d(x[None], torch.ones(1, 2, 3, 3, 3), torch.ones(1)),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_under_torch_func(name):
    torch.manual_seed(0)
    x, call = torch.rand(2, 16, 4, 5), PUBLIC[name]
    leaf = x.clone().requires_grad_()
    call(leaf).sum().backward()
    assert torch.equal(torch.func.grad(lambda x: call(x).sum())(x), leaf.grad)
    with pytest.raises(RuntimeError, match=r"^\w+: has no forward-mode derivative; use reverse"):
        torch.func.jvp(call, (x,), (x,))
