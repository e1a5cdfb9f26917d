"""How an op is declared: schema, reference, fake and backward, once, in Python."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("cmrfast", "DEF")

#: Every declared op by its name, public or not.
OPS: dict[str, "Op"] = {}

Backward = Callable[..., Sequence[Tensor | None]]


@dataclass(frozen=True)
class Op:
    """One operator: calling it goes through the dispatcher to the best kernel there is."""

    name: str
    call: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    serves: str
    gradients: tuple[int, ...]

    @property
    def differentiable(self) -> bool:
        """Whether any input has a gradient."""
        return bool(self.gradients)

    def __call__(self, *args: Any) -> Tensor:
        return self.call(*args)


def define(
    schema: str,
    *,
    reference: Callable[..., Tensor],
    fake: Callable[..., Tensor],
    backward: Backward | None = None,
    gradients: tuple[int, ...] = (0,),
    saves_output: bool = False,
    serves: str | None = None,
) -> Op:
    """Declare an operator of the ``cmrfast`` library.

    Args:
        schema: in torch's notation, ``name(Tensor x, …) -> Tensor``.
        reference: plain PyTorch, the definition; serves every device without a kernel.
        fake: the same signature, an empty result of the right shape and dtype.
        backward: ``backward(inputs, output, grad, needed)`` returns one gradient or None per input
            (``needed``: which inputs want one);
            None for an op that has no gradient.
        gradients: positions of the inputs that ``backward`` has a gradient for.
        saves_output: keep the output for the backward (else it gets None).
        serves: the public function that this op is a part of; default its own name.
    """
    name = schema.partition("(")[0]
    qualified = f"cmrfast::{name}"
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)

    # Without a formula an output would claim requires_grad and fail only in backward().
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensors = [x if isinstance(x, Tensor) else None for x in inputs]
        if saves_output:
            tensors.append(output)
        ctx.save_for_backward(*tensors)
        ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]

    def apply(ctx: Any, grad: Tensor) -> Any:
        if backward is None:
            raise RuntimeError(f"{name}: has no gradient (or is differentiable only once)")
        saved = list(ctx.saved_tensors)
        output = saved.pop() if saves_output else None
        inputs = [o if s is None else s for s, o in zip(saved, ctx.others, strict=True)]
        return backward(inputs, output, grad, ctx.needs_input_grad)

    torch.library.register_autograd(qualified, apply, setup_context=setup, lib=_LIBRARY)
    op = Op(
        name,
        getattr(torch.ops.cmrfast, name).default,
        reference,
        serves or name,
        gradients if backward else (),
    )
    OPS[name] = op
    return op
