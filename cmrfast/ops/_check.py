"""Argument checks that several ops share, with the same messages."""

from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HALF_DTYPES = (torch.float16, torch.bfloat16)


#: Whether torch.func transforms a function just now.
transforms_active = torch._C._are_functorch_transforms_active


def has_memory(tensor: Tensor) -> bool:
    """Whether the tensor has values: not while compiling, nor inside of a transform."""
    return not (
        torch.compiler.is_compiling() or transforms_active() or isinstance(tensor, FakeTensor)
    )


def values_readable(*tensors: Tensor | None) -> bool:
    """Whether values can be checked: those on the CPU; reading others would synchronise."""
    return all(t is None or (t.device.type == "cpu" and has_memory(t)) for t in tensors)


def upcast(tensor: Tensor) -> Tensor:
    """The tensor, in float32 if it has half precision."""
    return tensor.float() if tensor.dtype in HALF_DTYPES else tensor


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of sums over the tensor: its own, or float32 for half precision."""
    return torch.promote_types(tensor.dtype, torch.float32)


def require_floating(op: str, name: str, tensor: Tensor) -> None:
    """Raise unless the tensor is float32, float64, float16 or bfloat16."""
    if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be a floating tensor; got {kind(tensor)}")


def require_integer(op: str, name: str, tensor: Tensor) -> None:
    """Raise unless the tensor has an integer dtype (bool is none)."""
    wrong = not isinstance(tensor, Tensor) or tensor.dtype == torch.bool
    if wrong or tensor.is_floating_point() or tensor.is_complex():
        raise TypeError(f"{op}: {name} must be an integer tensor; got {kind(tensor)}")


def require_real(op: str, name: str, tensor: Tensor) -> None:
    """Raise unless the value is a tensor of a real dtype."""
    if not isinstance(tensor, Tensor) or tensor.is_complex():
        raise TypeError(f"{op}: {name} must be a real tensor; got {kind(tensor)}")


def require_one_device(op: str, **tensors: Tensor | None) -> None:
    """Raise unless all are tensors, or None, on one device."""
    for name, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor; got {kind(tensor)}")
    devices = {name: t.device for name, t in tensors.items() if t is not None}
    if len(set(devices.values())) > 1:
        where = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"{op}: all tensors must lie on one device; got {where}")


def kind(value: object) -> str:
    """The dtype of a tensor or the type of anything else, for a message."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def require_sizes(
    op: str, name: str, sizes: Sequence[int], axes: int | None = None
) -> tuple[int, ...]:
    """Return the sizes as a tuple; raise unless there is one positive integer per axis."""
    given = integers(op, name, sizes)
    if axes is not None and len(given) != axes:
        raise ValueError(f"{op}: {name} must have one entry per space axis ({axes}); got {given}")
    if any(n < 1 for n in given):
        raise ValueError(f"{op}: {name} must be at least 1 on every axis; got {given}")
    return given


def integers(op: str, name: str, values: Sequence[int]) -> tuple[int, ...]:
    """Return the values as a tuple; raise unless they are integers, symbolic ones included."""
    try:
        given = tuple(values)
    except TypeError:
        raise TypeError(f"{op}: {name} must be a sequence of integers; got {values!r}") from None
    if not all(_is_integer(n) for n in given):
        raise TypeError(f"{op}: {name} must be integers; got {given}")
    return given


def _is_integer(value: object) -> bool:
    if isinstance(value, int | torch.SymInt | Integral):
        return True
    return isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())


def require_int(op: str, name: str, value: int) -> int:
    """Return the number as an int, or as it is if symbolic; raise unless it is an integer."""
    if isinstance(value, torch.SymInt):
        return value
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be an int; got {kind(value)}")
    return int(value)


def require_number(op: str, name: str, value: float) -> float:
    """Return the number as a float, or as it is if symbolic; raise unless float64 holds it."""
    if isinstance(value, torch.SymInt | torch.SymFloat):
        return value
    if not isinstance(value, Real):
        raise TypeError(f"{op}: {name} must be a number; got {kind(value)}")
    if isinstance(value, Integral) and int(float(value)) != value:
        raise ValueError(f"{op}: {name} must be a number that float64 holds; got {value}")
    return float(value)


def value_range(tensor: Tensor) -> tuple[int, int]:
    """The least and the greatest value of a tensor of integers that is not empty."""
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch has no minimum of them
        tensor = tensor.long()
    low, high = tensor.aminmax()
    return int(low), int(high)


def require_fill(op: str, name: str, fill: float, dtype: torch.dtype) -> None:
    """Raise unless an integer dtype can hold the value; floating dtypes and bool hold any."""
    if dtype.is_floating_point or dtype == torch.bool:
        return
    limits = torch.iinfo(dtype)
    if not (limits.min <= fill <= limits.max and fill == int(fill)):
        raise ValueError(
            f"{op}: {name} must fit {dtype} ({limits.min} to {limits.max}); got {fill}"
        )


def require_starts(op: str, start_vox: Tensor, axes: int) -> Tensor:
    """Return the window positions as int64; raise unless they are integers (P, axes)."""
    require_integer(op, "start_vox", start_vox)
    if start_vox.dim() != 2 or start_vox.shape[1] != axes:
        raise ValueError(f"{op}: start_vox must be (P, {axes}); got {tuple(start_vox.shape)}")
    return start_vox.long()
