"""What the Triton kernels share: their registration, and the table of block sizes."""

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
from triton.language.extra import libdevice

#: The launcher of each op that has Triton kernels.
KERNELS: dict[str, Callable[..., Any]] = {}
#: The interpreter's ``tl.dot`` is wrong for bfloat16, so kernels upcast it there.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

#: Allow fused multiply-adds. Explicit because the default differs between versions of Triton.
FMA = {"enable_fp_fusion": True}
#: Forbid them, where results must round as the reference's do.
NO_FMA = {"enable_fp_fusion": False}
TABLE = Path(__file__).parent / "configs.json"
Launcher = TypeVar("Launcher", bound=Callable[..., Any])


def register(name: str) -> Callable[[Launcher], Launcher]:
    """Make the decorated function the Triton implementation of the op ``name``."""

    def decorate(launcher: Launcher) -> Launcher:
        @functools.wraps(launcher)
        def on_device(*args: Any) -> Any:  # Triton launches on the current device
            first = next(a for a in args if isinstance(a, Tensor))
            backend = torch.xpu if first.device.type == "xpu" else torch.cuda
            with backend.device_of(first):
                return launcher(*args)

        KERNELS[name] = on_device
        return launcher

    return decorate


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums of such values: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def accumulator(dtype: torch.dtype) -> Any:
    """``sum_dtype`` as a Triton type."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def as_bytes(x: Tensor) -> Tensor:
    """The tensor, contiguous and with bool as uint8, as Triton has no pointer to bool."""
    return x.contiguous().view(torch.uint8) if x.dtype == torch.bool else x.contiguous()


def three_axes(sizes: Any) -> list[int]:
    """The sizes of two or three axes as three, the first 1."""
    return [1] * (3 - len(sizes)) + list(sizes)


def block_sizes(op: str, values: Tensor, **sizes: int) -> dict[str, Any]:
    """The first row of the committed table that fits the op, device, dtype and sizes."""
    row: dict[str, Any] = _blocks(op, values.device, str(values.dtype)[6:], tuple(sizes.items()))
    return row


def line_tiles(op: str, values: Tensor, lines: int, length: int) -> tuple[dict[str, Any], int]:
    """Block sizes for tiles of BL lines x BK voxels, and the number of tiles."""
    chosen = dict(block_sizes(op, values))
    tile = chosen.pop("tile")
    chosen["BK"] = min(triton.next_power_of_2(length), tile)
    chosen["BL"] = tile // chosen["BK"]
    return chosen, triton.cdiv(lines, chosen["BL"]) * triton.cdiv(length, chosen["BK"])


@functools.lru_cache(maxsize=4096)
def _blocks(op: str, device: torch.device, dtype: str, sizes: tuple[tuple[str, int], ...]) -> Any:
    names = device_names(device)
    for row in table()[op]:
        fits = row.get("device", names[0]) in names and row.get("dtype", dtype) == dtype
        if fits and all(size <= row.get("up_to", {}).get(axis, size) for axis, size in sizes):
            return FMA | row["blocks"]
    raise LookupError(f"{TABLE.name}: no entry for {op} on {names[0]}, {dtype}, {dict(sizes)}")


@functools.cache
def table() -> dict[str, list[dict[str, Any]]]:
    """The committed table: rows of device, dtype, up_to and blocks per op; the first that fits."""
    rows: dict[str, list[dict[str, Any]]] = json.loads(TABLE.read_text())
    return rows


@functools.cache
def device_names(device: torch.device) -> tuple[str, ...]:
    """The names of a device in the table: its product name or its architecture."""
    if device.type == "cpu":  # of the interpreter
        return (device.type,)
    if device.type == "xpu":
        return (torch.xpu.get_device_name(device),)
    if torch.version.hip:
        return torch.cuda.get_device_name(device), torch.cuda.get_device_properties(
            device
        ).gcnArchName
    major, minor = torch.cuda.get_device_capability(device)
    return torch.cuda.get_device_name(device), f"sm_{major}{minor}"


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """The number of multiprocessors; the interpreter gets a few, so that kernels split work."""
    if device.type == "cpu":
        return 4
    if device.type == "xpu":
        return int(torch.xpu.get_device_properties(device).max_compute_units)
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def row_sums(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums of the rows of (R, n), in a fixed order and in float64."""
    rows, count = values.shape
    sums = torch.empty(rows, dtype=dtype, device=values.device)
    if rows:
        tile = {"BR": 16, "BN": 128, **FMA}
        _row_sums[(triton.cdiv(rows, tile["BR"]),)](values, sums, rows, count, **tile)
    return sums


@triton.jit
def exp2(x):
    """2 to the power of x; float32 results below 1e-38 are 0, which saves scaling the others."""
    if INTERPRETED or x.dtype == tl.float64:
        return tl.exp2(x)
    return libdevice.exp2(x)


@triton.jit
def cast_from_double(x, dtype: tl.constexpr):
    """Cast float64; to half precision by way of float32, as the interpreter has no direct cast."""
    if dtype == tl.float16 or dtype == tl.bfloat16:
        return x.to(tl.float32).to(dtype)
    return x.to(dtype)


@triton.jit
def _row_sums(x_ptr, sums_ptr, rows, count, BR: tl.constexpr, BN: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    total = tl.full((BR, BN), 0, tl.float64)
    for first in range(0, count, BN):
        column = first + tl.arange(0, BN)[None, :]
        mask = (row[:, None] < rows) & (column < count)
        offsets = row[:, None] * count + column
        total += tl.load(x_ptr + offsets, mask=mask, other=0).to(tl.float64)
    tl.store(sums_ptr + row, tl.sum(total, 1).to(sums_ptr.dtype.element_ty), mask=row < rows)
