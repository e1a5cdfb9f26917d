"""How an op is declared: schema, reference, fake and backward, once, in Python."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cmrfast.ops._check import wide

_LIBRARY = torch.library.Library("cmrfast", "DEF")

#: Every declared op by its name, public or not.
OPS: dict[str, "Op"] = {}

Backward = Callable[..., Sequence[Tensor | None]]


@dataclass(frozen=True)
class Op:
    """One operator: calling it goes through the dispatcher to the best kernel there is."""

    name: str
    call: Any  # torch's OpOverload
    reference: Callable[..., Any]
    serves: str
    gradients: tuple[int, ...]
    cpu_only: bool = False
    half_devices: set[str] = field(default_factory=set, compare=False)

    @property
    def differentiable(self) -> bool:
        """Whether any input has a gradient."""
        return bool(self.gradients)

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    def implement(self, key: str, kernel: Callable[..., Any]) -> None:
        """Let the dispatcher call ``kernel``, which takes halves, for "CPU" or "CUDA" tensors."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
            _LIBRARY.impl(self.name, kernel, key)
        self.half_devices.add(key.lower())

    def widened(self, tensor: Tensor) -> Tensor:
        """The tensor, a half one in float32 unless its device's kernel takes halves."""
        return tensor if tensor.device.type in self.half_devices else wide(tensor)


def define(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Backward | None = None,
    gradients: tuple[int, ...] = (0,),
    saves_output: bool = False,
    serves: str | None = None,
    cpu_only: bool = False,
) -> Op:
    """Declare an operator of the ``cmrfast`` library.

    Args:
        schema: in torch's notation, ``name(Tensor x, …) -> Tensor``.
        reference: plain PyTorch, the definition; serves every device without a kernel.
        fake: the same signature, an empty result of the right shape and dtype.
        backward: ``backward(inputs, outputs, grad, needed)`` returns one gradient or None per input
            (``needed``: which inputs want one);
            None for an op that has no gradient.
        gradients: positions of the inputs that ``backward`` has a gradient for.
        saves_output: keep the outputs for the backward, as a tuple (else it gets None). Of several
            outputs only the first has a gradient.
        serves: the public function that this op is a part of; default its own name.
        cpu_only: other devices have no kernel of their own: the reference is torch's fast path.
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
        serves or name,
        gradients if backward else (),
        cpu_only,
    )
    OPS[name] = op
    if op.call._schema.is_mutable:  # works in place: there is nothing to differentiate
        return op

    # Without a formula an output would claim requires_grad and fail only in backward().
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        kept = [x if isinstance(x, Tensor) else None for x in inputs]
        outputs = output if isinstance(output, tuple) else (output,)
        if saves_output:
            kept.extend(outputs)
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.save_for_backward(*kept)
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
    """The reference as exact as a kernel: autocast would round its products to half."""

    def exact(first: Tensor, *others: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return reference(first, *others)

    return exact
