"""Fast, exact building blocks for deep learning on cardiac MR and MS-lesion images."""

from importlib import import_module
from typing import Any

from cmrfast.errors import CheckpointError, FileError

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "FileError",
    "__version__",
    "data",
    "infer",
    "losses",
    "methods",
    "metrics",
    "models",
    "ops",
    "runs",
    "train",
    "viz",
]


def __getattr__(name: str) -> Any:
    """Import a part of the package on first use: ``import cmrfast; cmrfast.ops.resample``."""
    if name in __all__:  # all others are there from the start
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What an editor completes."""
    return __all__
