"""Loads the kernels and says which of them each op runs, and why no faster ones."""

import importlib
import importlib.util
import os
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cmrfast.ops._op import OPS

_CHOICES = ("auto", "native", "triton", "reference")
_SLOWEST_FIRST = ("reference", "triton", "native")
_PACKAGE = Path(__file__).parent.parent
_CPU_LEVELS = ("baseline", "avx2", "avx512")


@dataclass
class Status:
    """What ``load`` found: filled in once, while ``cmrfast.ops`` is imported, and then only read.

    ``cpu``, ``cuda`` and ``triton`` say in words why kernels of that kind run or do not.
    """

    backend: str  # the value of CMRFAST_BACKEND
    cpu_level: str | None = None  # of the loaded kernel library, None without one
    cpu: str = ""
    cuda: str = ""
    triton: str = ""
    #: Names of the ops that run a Triton kernel, by dispatch key.
    triton_ops: dict[str, set[str]] = field(
        default_factory=lambda: {"CPU": set(), "CUDA": set(), "XPU": set()}
    )


STATUS = Status(os.environ.get("CMRFAST_BACKEND", "auto"))
if STATUS.backend not in _CHOICES:
    raise ValueError(
        f"CMRFAST_BACKEND: must be one of {', '.join(_CHOICES)}; got {STATUS.backend!r}"
    )


def load() -> None:
    """Load all kernels. Call it once, after the ops are declared; warns about what is missing."""
    _load_native()
    _load_triton()


def _load_native() -> None:
    if STATUS.backend in ("reference", "triton"):
        STATUS.cpu = STATUS.cuda = f"CMRFAST_BACKEND={STATUS.backend}"
        return
    try:
        STATUS.cpu_level, STATUS.cpu = _load_cpu(), "native kernels"
    except (ImportError, OSError) as error:
        STATUS.cpu = str(error)
        if STATUS.backend == "native":
            raise ImportError(f"cmrfast: CMRFAST_BACKEND=native, but {STATUS.cpu}") from error
        warnings.warn(f"cmrfast: {STATUS.cpu}", RuntimeWarning, stacklevel=4)
    STATUS.cuda = _load_cuda()


def _load_cpu() -> str:
    """Load the CPU kernels; returns the level of their instruction set."""
    if not list(_PACKAGE.glob("_C.*")):
        reason = _PACKAGE / "unbuilt.txt"  # the build leaves it where it gives up
        if reason.exists():
            why = reason.read_text("utf-8").strip()
            raise ImportError(
                f"installed without native kernels: {why}; every op runs its reference"
            )
        if (_PACKAGE.parent / "setup.py").exists():  # a checkout hides an installed package
            raise ImportError(
                f"this is the source in {_PACKAGE.parent}, where no kernels are built "
                "(pip install -e . there builds them); every op runs its reference"
            )
        raise ImportError("installed as pure Python; every op runs its reference")
    try:
        module = importlib.import_module("cmrfast._C")
        level = os.environ.get("CMRFAST_CPU_LEVEL") or _widest_level(module.cpu_level())
        torch.ops.load_library(_cpu_library(level))
    except OSError as error:
        raise ImportError(
            f"the native kernels do not load beside torch {torch.__version__}; every op runs its "
            "reference; to fix it, in cmrfast's source folder: "
            f"pip install --force-reinstall --no-deps .  ({error})"
        ) from error
    return level


def _widest_level(supported: str) -> str:
    """The widest level that was built, of those that the processor supports."""
    levels = _CPU_LEVELS[: _CPU_LEVELS.index(supported) + 1]
    built = [level for level in levels if list(_PACKAGE.glob(f"_cpu_{level}.*"))]
    return built[-1] if built else supported


def _cpu_library(level: str) -> str:
    libraries = sorted(_PACKAGE.glob(f"_cpu_{level}.*"))
    if not libraries:
        built = ", ".join(sorted(p.name.split(".")[0][5:] for p in _PACKAGE.glob("_cpu_*")))
        message = f"no kernel library for CPU level {level!r}; built are: {built}"
        if level in _CPU_LEVELS:
            message += (
                "; every op runs its reference; to build it, in cmrfast's source folder: "
                f"CMRFAST_CPU_LEVELS={level} pip install --force-reinstall --no-deps ."
            )
        raise ImportError(message)
    return str(libraries[0])


def _load_cuda() -> str:
    """Load the CUDA kernels if they were built and torch has CUDA; returns the status in words."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    libraries = sorted(_PACKAGE.glob("_cuda.*"))
    if not libraries:
        if not list(_PACKAGE.glob("_C.*")):
            return f"CUDA kernels not built: {STATUS.cpu.partition(';')[0]}"
        return f"CUDA kernels {importlib.import_module('cmrfast._C').build_info()['cuda']}"
    try:
        torch.ops.load_library(str(libraries[0]))
    except OSError as error:
        reason = f"the CUDA kernels do not load beside torch {torch.__version__} ({error})"
        warnings.warn(f"cmrfast: {reason}", RuntimeWarning, stacklevel=5)
        return reason
    for op in OPS.values():
        op.half_devices.add("cuda")
    return "native kernels"


def _load_triton() -> None:
    """Register a Triton kernel for every op that has no native one."""
    interpreted = STATUS.backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    STATUS.triton = _why_no_triton(interpreted)
    if STATUS.triton:
        if STATUS.backend == "triton":
            raise ImportError(f"cmrfast: CMRFAST_BACKEND=triton, but {STATUS.triton}")
        slow = [key for key in _gpu_keys() if _without_kernel(key)]
        if slow and STATUS.backend == "auto":
            warnings.warn(
                f"cmrfast: on {slow[0]} ops run their reference: {STATUS.triton}", stacklevel=4
            )
        return
    kernels = importlib.import_module("cmrfast.ops.triton").KERNELS
    for key in ("CPU", "CUDA") if interpreted else _gpu_keys():
        for name in _without_kernel(key) & kernels.keys():
            OPS[name].implement(key, kernels[name])
            STATUS.triton_ops[key].add(name)
    STATUS.triton = "for ops without a native kernel"


def _gpu_keys() -> list[str]:
    """The dispatch keys of the GPUs that torch was built for; ROCm's tensors have CUDA's.

    No kernel has run on ROCm or XPU yet.
    """
    cuda = torch.version.cuda or torch.version.hip
    return [key for key, built in (("CUDA", cuda), ("XPU", torch.version.xpu)) if built]


def _why_no_triton(interpreted: bool) -> str:
    """Why Triton kernels cannot run, empty if they can."""
    if STATUS.backend in ("native", "reference"):
        return f"CMRFAST_BACKEND={STATUS.backend}"
    if not _gpu_keys() and not interpreted:
        return f"torch {torch.__version__} has no CUDA, ROCm or XPU"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install 'cmrfast[triton]'"
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if not (compiler or interpreted):
        return "Triton launches kernels by way of a C compiler, and there is none"
    return ""


def _without_kernel(key: str) -> set[str]:
    """Names of the ops that need a kernel for a dispatch key and have none."""
    return {op.name for op in OPS.values() if not op.cpu_only and not _has_kernel(op.name, key)}


def _has_kernel(name: str, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"cmrfast::{name}", key))


def kernel_of(name: str, key: str) -> str:
    """Which implementation an op runs for a dispatch key, "CPU", "CUDA" or "XPU"."""
    if name in STATUS.triton_ops[key]:
        return "triton"
    return "native" if _has_kernel(name, key) else "reference"


def backends() -> dict[str, dict[str, str]]:
    """Which implementation each public op runs on each device.

    A function built from several registered ops gets the slowest implementation among them.

    Returns:
        ``{op: {"cpu": "native" | "reference", "cuda": "native" | "triton" | "reference"}}``;
        "triton" for "cpu" too under Triton's interpreter.

    Example:
        >>> from cmrfast import ops
        >>> ops.backends()["dice_ce_sums"]["cpu"] in ("native", "reference")
        True
    """
    own = [op.name for op in OPS.values() if op.name in op.of]
    public = dict.fromkeys(own + [name for op in OPS.values() for name in op.of])
    return {
        name: {
            device: min(
                (kernel_of(op.name, key) for op in OPS.values() if name in op.of),
                key=_SLOWEST_FIRST.index,
            )
            for device, key in (("cpu", "CPU"), ("cuda", "CUDA"))
        }
        for name in public
    }
