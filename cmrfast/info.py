"""What this installation is made of: versions, devices, and which backend each op got."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import cmrfast
from cmrfast.ops import _native, _triton, backends


def info() -> dict[str, Any]:
    """Versions, devices, backends, and why an op has no better one, as JSON."""
    return {
        "versions": {
            "cmrfast": cmrfast.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "numpy", "nibabel", "triton")},
        },
        "devices": {
            "cpu": f"{platform.machine()}, {torch.get_num_threads()} threads",
            **{
                f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
            },
        },
        "backends": backends(),
        "because": {
            "cpu": f"{_native.cpu_level} kernels" if _native.cpu_level else _native.cpu_reason,
            "cuda": _native.cuda_reason,
            "triton": _triton.reason,
        },
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
