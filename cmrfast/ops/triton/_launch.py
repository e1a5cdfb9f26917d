"""What all Triton kernels share: the table they are listed in, and their block sizes."""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

#: The launching function of each op that has Triton kernels.
KERNELS: dict[str, Callable[..., Any]] = {}
#: The interpreter multiplies bfloat16 wrongly in ``tl.dot``; kernels cast to float32 for it.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

#: Products and sums may be one rounding; said aloud because Triton is changing its mind on it.
FUSED = {"enable_fp_fusion": True}
TABLE = Path(__file__).parent / "configs.json"
_ACCUMULATE = {torch.float64: tl.float64}
Launcher = TypeVar("Launcher", bound=Callable[..., Any])


def launches(name: str) -> Callable[[Launcher], Launcher]:
    """Enter the function below as the Triton implementation of the op of that name."""

    def enter(launcher: Launcher) -> Launcher:
        @functools.wraps(launcher)
        def guarded(*args: Any) -> Any:  # Triton launches on the current device
            with torch.cuda.device_of(next(a for a in args if isinstance(a, Tensor))):
                return launcher(*args)

        KERNELS[name] = guarded
        return launcher

    return enter


def accumulator(dtype: torch.dtype) -> Any:
    """Triton's type for sums of such values: double for double, else float."""
    return _ACCUMULATE.get(dtype, tl.float32)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Torch's name of the same type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def blocks(op: str, values: Tensor, **sizes: int) -> dict[str, Any]:
    """The first entry of the committed table that fits the op, the device, dtype and sizes."""
    found: dict[str, Any] = _blocks(op, values.device, str(values.dtype)[6:], tuple(sizes.items()))
    return found


@functools.lru_cache(maxsize=4096)
def _blocks(op: str, device: torch.device, dtype: str, sizes: tuple[tuple[str, int], ...]) -> Any:
    names = device_names(device)
    for row in table()[op]:
        fits = row.get("device", names[0]) in names and row.get("dtype", dtype) == dtype
        if fits and all(size <= row.get("up_to", {}).get(axis, size) for axis, size in sizes):
            return FUSED | row["blocks"]
    raise LookupError(f"{TABLE.name}: no entry for {op} on {names[0]}, {dtype}, {dict(sizes)}")


@functools.cache
def table() -> dict[str, list[dict[str, Any]]]:
    """The committed table: per op, rows of device, dtype, up_to and blocks; the first that fits."""
    rows: dict[str, list[dict[str, Any]]] = json.loads(TABLE.read_text())
    return rows


@functools.cache
def device_names(device: torch.device) -> tuple[str, ...]:
    """What a table row may call a device: its product name or its architecture."""
    if device.type != "cuda":
        return (device.type,)
    major, minor = torch.cuda.get_device_capability(device)
    return torch.cuda.get_device_name(device), f"sm_{major}{minor}"


@functools.cache
def processors(device: torch.device) -> int:
    """How many multiprocessors the device has (the interpreter: few, so that shapes split)."""
    if device.type != "cuda":
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def row_sums(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums of the rows of (R, n), in fixed order in double."""
    rows, count = values.shape
    sums = torch.empty(rows, dtype=dtype, device=values.device)
    if rows:
        tile = {"BR": 16, "BN": 128, **FUSED}
        _row_sums[(triton.cdiv(rows, tile["BR"]),)](values, sums, rows, count, **tile)
    return sums


@triton.jit
def narrowed(x, dtype: tl.constexpr):
    """Doubles in another dtype; in a half by way of float, for the interpreter knows no other."""
    if dtype == tl.float16 or dtype == tl.bfloat16:
        return x.to(tl.float32).to(dtype)
    return x.to(dtype)


@triton.jit
def _row_sums(VALUES, SUMS, rows, count, BR: tl.constexpr, BN: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    total = tl.full((BR, BN), 0, tl.float64)
    for first in range(0, count, BN):
        at = first + tl.arange(0, BN)[None, :]
        there = (row[:, None] < rows) & (at < count)
        total += tl.load(VALUES + row[:, None] * count + at, mask=there, other=0).to(tl.float64)
    tl.store(SUMS + row, tl.sum(total, 1).to(SUMS.dtype.element_ty), mask=row < rows)
