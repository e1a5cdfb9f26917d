"""Versions, devices, and the backend of each op in this installation."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import cmrfast
from cmrfast.ops import backends
from cmrfast.ops._backend import STATUS


def info() -> dict[str, Any]:
    """Versions, devices, backends, and the reasons for missing backends, as JSON."""
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
            "cpu": f"{STATUS.cpu_level} kernels" if STATUS.cpu_level else STATUS.cpu,
            "cuda": STATUS.cuda,
            "triton": STATUS.triton,
        },
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
