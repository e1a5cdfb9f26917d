"""Loads the native kernels and says which backend each op got, and why not another."""

import importlib
import os
import warnings
from pathlib import Path

import torch

from cmrfast.ops import _triton
from cmrfast.ops._op import OPS

_CHOICES = ("auto", "native", "triton", "reference")
_PACKAGE = Path(__file__).parent.parent

BACKEND = os.environ.get("CMRFAST_BACKEND", "auto")
if BACKEND not in _CHOICES:
    raise ValueError(f"CMRFAST_BACKEND: must be one of {', '.join(_CHOICES)}; got {BACKEND!r}")

#: The loaded CPU kernel library's level, or None; and in words why it is no better.
cpu_level: str | None = None
cpu_reason: str = ""
#: Why ops on CUDA tensors run CUDA C++ kernels or do not, in words.
cuda_reason: str = ""


def load() -> None:
    """Load all kernels once, after every op has been declared; say once what is missing."""
    _load_native()
    _triton.load(BACKEND)


def _load_native() -> None:
    global cpu_level, cpu_reason, cuda_reason
    if BACKEND in ("reference", "triton"):
        cpu_reason = cuda_reason = f"CMRFAST_BACKEND={BACKEND}"
        return
    try:
        cpu_level, cpu_reason = _load_cpu(), "native kernels"
    except (ImportError, OSError) as error:
        cpu_reason = str(error)
        if BACKEND == "native":
            raise ImportError(f"cmrfast: CMRFAST_BACKEND=native, but {cpu_reason}") from error
        warnings.warn(f"cmrfast: {cpu_reason}", RuntimeWarning, stacklevel=4)
    cuda_reason = _load_cuda()


def _load_cpu() -> str:
    if not list(_PACKAGE.glob("_C.*")):
        if (_PACKAGE.parent / "setup.py").exists():  # a checkout hides an installed package
            raise ImportError(
                f"this is the source in {_PACKAGE.parent}, where no kernels are built "
                "(pip install -e . there builds them); every op runs its reference"
            )
        raise ImportError("installed without a C++ compiler; every op runs its reference")
    try:
        module = importlib.import_module("cmrfast._C")
        level = str(os.environ.get("CMRFAST_CPU_LEVEL") or module.cpu_level())
        torch.ops.load_library(_library(level))
    except OSError as error:
        raise ImportError(
            f"the native kernels do not load beside torch {torch.__version__}; every op runs its "
            "reference; to mend it, in cmrfast's source folder: "
            f"pip install --force-reinstall --no-deps .  ({error})"
        ) from error
    return level


def _load_cuda() -> str:
    """Load the CUDA kernels where torch has CUDA and they were built; how that went, in words."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    found = sorted(_PACKAGE.glob("_cuda.*"))
    if not found:
        if not list(_PACKAGE.glob("_C.*")):
            return f"CUDA kernels not built: {cpu_reason.partition(';')[0]}"
        return f"CUDA kernels {importlib.import_module('cmrfast._C').build_info()['cuda']}"
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        reason = f"the CUDA kernels do not load beside torch {torch.__version__} ({error})"
        warnings.warn(f"cmrfast: {reason}", RuntimeWarning, stacklevel=5)
        return reason
    for op in OPS.values():
        op.half_devices.add("cuda")
    return "native kernels"


def _library(level: str) -> str:
    found = sorted(_PACKAGE.glob(f"_cpu_{level}.*"))
    if not found:
        built = ", ".join(sorted(p.name.split(".")[0][5:] for p in _PACKAGE.glob("_cpu_*")))
        raise ImportError(f"no kernel library for CPU level {level!r}; built are: {built}")
    return str(found[0])


def backends() -> dict[str, dict[str, str]]:
    """Which implementation each public op runs on each device.

    Returns:
        ``{op: {"cpu": "native" | "reference", "cuda": "native" | "triton" | "reference"}}``;
        "triton" for "cpu" too under Triton's interpreter.

    Example:
        >>> from cmrfast import ops
        >>> ops.backends()["dice_ce_sums"]["cpu"] in ("native", "reference")
        True
    """
    chosen: dict[str, dict[str, str]] = {}
    for op in OPS.values():
        if op.cpu_only:  # a model's own, nobody chooses it
            continue
        row = chosen.setdefault(op.serves, {"cpu": "native", "cuda": "native"})
        for device, key in (("cpu", "CPU"), ("cuda", "CUDA")):
            row[device] = min(row[device], kernel_of(op.name, key), key=_SLOWEST_FIRST.index)
    for public in ("warp_pair", "resample"):  # made of affine_sample's kernels
        chosen[public] = dict(chosen["affine_sample"])
    return chosen


_SLOWEST_FIRST = ("reference", "triton", "native")


def kernel_of(name: str, key: str) -> str:
    """Which implementation an op runs for a dispatch key, "CPU" or "CUDA"."""
    if name in _triton.served[key]:
        return "triton"
    has = torch._C._dispatch_has_kernel_for_dispatch_key(f"cmrfast::{name}", key)
    return "native" if has else "reference"
