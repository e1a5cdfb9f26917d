"""Triton kernels compiled ahead of time, as their launchers would launch them."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

import cmrfast.ops.triton
from cmrfast.ops.triton import _launch

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may have
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Launch:
    """A kernel with the specialisation that Triton would compile for the arguments of a launch."""

    kernel: Any
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)

    def constant(self, name: str) -> Any:
        """The value of a constant argument."""
        return self.constants[(self.kernel.arg_names.index(name),)]

    def compiled(self, architecture: int) -> Any:
        source = ASTSource(self.kernel, self.signature, self.constants, self.attributes)
        return triton.compile(source, GPUTarget("cuda", architecture, 32), self.options)


@contextmanager
def recorded(patch: Any) -> Iterator[dict[str, Launch]]:
    """Record launches instead of running them; each specialisation once."""
    launches: dict[str, Launch] = {}

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launch = _as_compiled(self, args, kwargs)
        launches.setdefault(str(launch), launch)

    with patch.context() as patched:
        patched.setattr(JITFunction, "run", record)
        yield launches


def serves(row: dict[str, Any], dtype: torch.dtype, architecture: int) -> bool:
    """Whether a row of the table is for GPUs of an architecture (one by name: the newest)."""
    device = row.get("device", f"sm_{architecture}")
    named = device != "cpu" and not device.startswith("sm_") and architecture == max(SHARED_LIMIT)
    return (named or device == f"sm_{architecture}") and (
        row.get("dtype", str(dtype)[6:]) == str(dtype)[6:]
    )


@contextmanager
def on_gpu(patch: Any, architecture: int, rows: dict[str, int] | None = None) -> Iterator[None]:
    """Launchers choose the sizes of a GPU of this architecture.

    With ``rows``, kernels named there take that row of those that serve them, whatever the sizes.
    """

    def chosen(name: str, values: torch.Tensor, **sizes: int) -> Any:
        fitting = [r for r in _launch.table()[name] if serves(r, values.dtype, architecture)]
        if name in (rows or {}):
            fitting = fitting[rows[name] :]  # type: ignore[index]
        else:
            fitting = [
                row
                for row in fitting
                if all(n <= row.get("up_to", {}).get(axis, n) for axis, n in sizes.items())
            ]
        return _launch.FMA | fitting[0]["blocks"]

    with patch.context() as patched:
        for module in [_launch, *vars(cmrfast.ops.triton).values()]:
            if hasattr(module, "block_sizes"):
                patched.setattr(module, "block_sizes", chosen)
            if hasattr(module, "multiprocessors"):
                patched.setattr(module, "multiprocessors", lambda device: 132)
        yield


def stack_bytes(cubin: bytes, folder: Path) -> int:
    """Bytes a thread keeps in memory for want of registers: its stack, spills included."""
    (folder / "kernel.cubin").write_bytes(cubin)
    command = [CUOBJDUMP, "-res-usage", folder / "kernel.cubin"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return max(int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", said))


def _as_compiled(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
    given = dict(zip(kernel.arg_names, args, strict=False))
    given |= {k: v for k, v in kwargs.items() if k in kernel.arg_names}
    options = {k: v for k, v in kwargs.items() if k not in kernel.arg_names}
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}

    def specialise(value: Any, path: tuple[int, ...], annotation: str) -> Any:
        if isinstance(value, tuple):
            return tuple(specialise(v, (*path, i), "") for i, v in enumerate(value))
        plain_integer = isinstance(value, int) and not annotation
        if value is None or (plain_integer and value == 1):
            constants[path] = value
            return "constexpr"
        if isinstance(value, torch.Tensor) or (plain_integer and value % 16 == 0):
            attributes[path] = [["tt.divisibility", 16]]
        return annotation or mangle_type(value)

    for position, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[(position,)] = "constexpr", value
        else:
            signature[parameter.name] = specialise(value, (position,), parameter.annotation_type)
    return Launch(kernel, signature, constants, attributes, options)
