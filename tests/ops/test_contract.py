"""The contract every op keeps, looped over ops, samples, devices and dtypes."""

import copy

import pytest
import torch

import cmrfast.ops  # noqa: F401  (declares all ops)
from cmrfast.ops._backend import kernel_of
from cmrfast.ops._op import OPS
from tests.support.devices import every_device
from tests.support.op_calls import (
    INTERPRETED,
    TOLERANCE,
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
