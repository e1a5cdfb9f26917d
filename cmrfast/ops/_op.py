"""How an op is declared: schema, reference, fake and backward, once, in Python."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cmrfast.ops._check import transforms_active, upcast

_LIBRARY = torch.library.Library("cmrfast", "DEF")

#: Every declared op by its name, public or not.
OPS: dict[str, "Op"] = {}

Backward = Callable[..., Sequence[Tensor | None]]


@dataclass(frozen=True)
class Op:
    """A registered operator; calling it dispatches to the kernel of the tensors' device."""

    name: str
    call: Any  # torch's OpOverload
    reference: Callable[..., Any]
    of: tuple[str, ...]
    gradients: tuple[int, ...]
    cpu_only: bool = False
    #: The autograd.Function of the op, None for one that works in place.
    derivative: Any = field(default=None, compare=False)
    #: Device types whose kernel reads half precision.
    half_devices: set[str] = field(default_factory=set, compare=False)

    @property
    def differentiable(self) -> bool:
        """Whether any input has a gradient."""
        return bool(self.gradients)

    def __call__(self, *args: Any) -> Any:
        transformed = not torch.compiler.is_compiling() and transforms_active()
        if transformed and self.derivative is not None:  # torch.func does not reach kernels in it
            return self.derivative.apply(*args)
        return self.call(*args)

    def implement(self, key: str, kernel: Callable[..., Any]) -> None:
        """Register ``kernel``, which reads half precision, for "CPU", "CUDA" or "XPU" tensors."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
            _LIBRARY.impl(self.name, kernel, key)
        self.half_devices.add(key.lower())

    def upcast(self, tensor: Tensor) -> Tensor:
        """The tensor, in float32 if it has half precision and its device's kernel cannot read it.

        Not a choice of kernel, which is the dispatcher's: CPU kernels read float32 and float64
        only, and a cast in Python is one that autograd undoes for the gradient.
        """
        return tensor if tensor.device.type in self.half_devices else upcast(tensor)


def define(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Backward | None = None,
    gradients: tuple[int, ...] = (0,),
    saves_output: bool = False,
    of: str | Sequence[str] | None = None,
    cpu_only: bool = False,
) -> Op:
    """Declare an operator of the ``cmrfast`` library.

    Args:
        schema: in PyTorch's notation, ``name(Tensor x, …) -> Tensor``.
        reference: the definition in plain PyTorch; runs on every device without a kernel.
        fake: takes the same arguments and returns an empty output of the right shape and dtype.
        backward: ``backward(inputs, outputs, grad, needs_input_grad)`` returns one gradient or None
            per input; None for an op without a gradient.
        gradients: positions of the inputs that ``backward`` returns a gradient for.
        saves_output: save the outputs for ``backward``, as a tuple (else it gets None). If there
            are several, only the first is differentiable.
        of: the public functions that run this op, as ``backends()`` lists them; default its own
            name, empty for an op that no public function runs.
        cpu_only: there are no GPU kernels to expect; the reference calls torch's, which are fast.
    """
    name = schema.partition("(")[0]
    qualified = f"cmrfast::{name}"
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, _outside_autocast(reference), "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    call = getattr(torch.ops.cmrfast, name).default
    # In place there is no output to differentiate. An op without a formula has a derivative too:
    # taking it then raises an error that names the op.
    mutable = call._schema.is_mutable
    derivative = None if mutable else _derivative(call, name, backward, saves_output)
    op = Op(
        name,
        call,
        reference,
        (name,) if of is None else (of,) if isinstance(of, str) else tuple(of),
        gradients if backward else (),
        cpu_only,
        derivative,
    )
    OPS[name] = op
    if derivative is not None:
        _LIBRARY.impl(name, _autograd_kernel(call, derivative), "Autograd", with_keyset=True)
    return op


def _derivative(
    call: Any, name: str, backward: Backward | None, saves_output: bool
) -> type[torch.autograd.Function]:
    """The op as an autograd.Function.

    ``torch.library.register_autograd`` would write most of it, but not in the form that
    ``torch.func`` needs, and it would drop forward-mode tangents without a word.
    """

    class Derivative(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return call(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            saved = [x if isinstance(x, Tensor) else None for x in inputs]
            outputs = output if isinstance(output, tuple) else (output,)
            if saves_output:
                saved.extend(outputs)
            ctx.mark_non_differentiable(*outputs[1:])
            ctx.save_for_backward(*saved)
            ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            if backward is None:
                raise RuntimeError(f"{name}: has no second derivative")
            if grads[0] is None:
                return (None,) * len(ctx.others)
            count = len(ctx.others)
            saved, outputs = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
            inputs = [o if s is None else s for s, o in zip(saved, ctx.others, strict=True)]
            return backward(inputs, outputs or None, grads[0], ctx.needs_input_grad)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            raise RuntimeError(
                f"{name}: has no forward-mode derivative; use reverse mode (torch.func.vjp)"
            )

    return type(name, (Derivative,), {})  # graphs show the name


def _autograd_kernel(call: Any, derivative: type[torch.autograd.Function]) -> Callable[..., Any]:
    """The op's kernel for tensors that may have a gradient or a tangent."""

    def kernel(keyset: Any, *args: Any) -> Any:
        reverse = torch.is_grad_enabled() and torch._C._any_requires_grad(*args)
        if reverse or forward_ad._current_level >= 0:
            return derivative.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return call.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    return kernel


def _outside_autocast(reference: Callable[..., Any]) -> Callable[..., Any]:
    """The reference without autocast, which would round its matrix products to half precision."""

    def exact(first: Tensor, *others: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return reference(first, *others)

    return exact
