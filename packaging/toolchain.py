"""What there is to build with: the C++ compiler, torch's headers, the flags of each CPU level."""

import importlib.util
import os
import platform
import shlex
import shutil
from pathlib import Path

OLDEST_TORCH = (2, 11)
TORCH = "torch>=2.11"

#: One kernel library each; the widest that the machine runs is loaded (cpu_level() in module.cpp).
CPU_LEVELS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi2"],
    "avx512": [
        *("-mavx2", "-mfma", "-mf16c", "-mbmi2"),
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
    ],
}


def find_compiler() -> list[str] | None:
    """The C++ compiler as a command, `CXX` first; None where there is none."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(shlex.split(name)[0]):
            return shlex.split(name)
    return None


def cpu_levels() -> dict[str, list[str]]:
    """The levels worth building on this processor family, each with its compiler flags."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return CPU_LEVELS if x86 else {"baseline": []}


def torch_folder() -> Path | None:
    """Where torch is installed; None where it is not (as while pip asks for requirements)."""
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent if spec and spec.origin else None
