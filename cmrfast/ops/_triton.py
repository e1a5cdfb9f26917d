"""Registers the Triton kernels where they serve, and says why they do not elsewhere."""

import importlib
import importlib.util
import os
import shutil
import warnings

import torch

from cmrfast.ops._op import OPS

#: Ops whose Triton kernel comes before a native one: matrix products, on the tensor cores there.
FIRST = {"nt_xent"}
#: Ops whose Triton kernel was registered, by dispatch key.
served: dict[str, set[str]] = {"CPU": set(), "CUDA": set()}
#: In words, why the ops outside ``served`` do not run Triton kernels.
reason: str = ""


def load(backend: str) -> None:
    """Register a Triton kernel for every op that has no native one; without Triton, say so once."""
    global reason
    interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    reason = _refusal(backend, interpreted)
    if reason:
        if backend == "triton":
            raise ImportError(f"cmrfast: CMRFAST_BACKEND=triton, but {reason}")
        if torch.version.cuda and backend == "auto" and _without_kernel("CUDA"):
            warnings.warn(f"cmrfast: on CUDA ops run their reference: {reason}", stacklevel=4)
        return
    kernels = importlib.import_module("cmrfast.ops.triton").KERNELS
    for key in ("CPU", "CUDA") if interpreted else ("CUDA",):
        for name in (_without_kernel(key) | FIRST) & kernels.keys():
            OPS[name].implement(key, kernels[name])
            served[key].add(name)
    reason = f"native kernels come first, but for {', '.join(FIRST)}"


def _refusal(backend: str, interpreted: bool) -> str:
    """Why Triton is out of the question, or nothing."""
    if backend in ("native", "reference"):
        return f"CMRFAST_BACKEND={backend}"
    if not torch.version.cuda and not interpreted:
        return f"torch {torch.__version__} has no CUDA"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install 'cmrfast[triton]'"
    found = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if not (found or interpreted):
        return "Triton launches kernels by way of a C compiler, and there is none"
    return ""


def _without_kernel(key: str) -> set[str]:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    served = (name for name, op in OPS.items() if not op.cpu_only)
    return {name for name in served if not has(f"cmrfast::{name}", key)}
