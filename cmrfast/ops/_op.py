"""How an op is declared: schema, reference, fake and backward, once, in Python."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cmrfast.ops._check import upcast

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
    #: Device types whose kernel reads half precision.
    half_devices: set[str] = field(default_factory=set, compare=False)

    @property
    def differentiable(self) -> bool:
        """Whether any input has a gradient."""
        return bool(self.gradients)

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    def implement(self, key: str, kernel: Callable[..., Any]) -> None:
        """Register ``kernel``, which reads half precision, for "CPU" or "CUDA" tensors."""
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
    op = Op(
        name,
        getattr(torch.ops.cmrfast, name).default,
        reference,
        (name,) if of is None else (of,) if isinstance(of, str) else tuple(of),
        gradients if backward else (),
        cpu_only,
    )
    OPS[name] = op
    if op.call._schema.is_mutable:  # in place, so there is no output to differentiate
        return op

    # An op without a formula is registered too: differentiating it then raises an error that names
    # the op.
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        saved = [x if isinstance(x, Tensor) else None for x in inputs]
        outputs = output if isinstance(output, tuple) else (output,)
        if saves_output:
            saved.extend(outputs)
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.save_for_backward(*saved)
        ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.set_materialize_grads(False)

    def apply(ctx: Any, grad: Tensor | None, *_: None) -> Any:
        if backward is None:
            raise RuntimeError(f"{name}: has no second derivative")
        if grad is None:
            return (None,) * len(ctx.others)
        count = len(ctx.others)
        saved, outputs = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        inputs = [o if s is None else s for s, o in zip(saved, ctx.others, strict=True)]
        return backward(inputs, outputs or None, grad, ctx.needs_input_grad)

    torch.library.register_autograd(qualified, apply, setup_context=setup, lib=_LIBRARY)
    return op


def _outside_autocast(reference: Callable[..., Any]) -> Callable[..., Any]:
    """The reference without autocast, which would round its matrix products to half precision."""

    def exact(first: Tensor, *others: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return reference(first, *others)

    return exact
