"""Runs every sample of every op once, for a sanitizer to watch.

Called as ``python -m tests.support.run_samples cpu|cuda|LIBRARY``.

LIBRARY: one that cuda_on_host.py built, the CUDA kernels for the CPU.
"""

import sys
from pathlib import Path

import torch

import cmrfast.ops  # noqa: F401  (declares all ops)
from cmrfast.ops._op import OPS
from tests.support.op_samples import HALVED, SAMPLES, halved


def main(where: str) -> None:
    """Print each op's name once its samples have run."""
    if where in ("cpu", "cuda"):
        device, calls = where, {name: op.call for name, op in OPS.items()}
    else:
        from tests.support import cuda_on_host

        device, calls = "cpu", vars(cuda_on_host.load(Path(where)))
    for name, samples in SAMPLES.items():
        if name not in calls or (device == "cuda" and OPS[name].cpu_only):  # no kernel there
            continue
        torch.manual_seed(0)
        runs = list(samples(device, torch.float32))
        runs += list(samples(device, torch.float64))[::5]
        takes_halves = device in OPS[name].half_devices or where not in ("cpu", "cuda")
        for dtype in (torch.float16, torch.bfloat16) if takes_halves and name in HALVED else ():
            runs += list(halved(name, device, dtype))[::5]
        for args in runs:
            calls[name](*args)
        print(name, flush=True)
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
