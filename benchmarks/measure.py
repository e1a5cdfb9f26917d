"""Measurements: interleaved median times, peak memory, and the rates behind the floors."""

import ctypes
import importlib.metadata
import mmap
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch

WARM_UPS, ROUNDS = 1, 9
PEERS = (
    *("torch", "numpy", "scipy", "monai", "torchio", "kornia"),
    *("pytorch-metric-learning", "SimpleITK", "batchgeneratorsv2"),
)
_STATUS = Path("/proc/self/status")


def interleaved(
    variants: dict[str, Callable[[], object]], rounds: int = ROUNDS
) -> dict[str, float]:
    """Median time of each variant in ms, run in turn so that clock drift affects all equally.

    Each turn runs a variant twice and times the second call, so that a variant does not pay for
    the state in which the previous one left caches and freed memory. This makes no difference to
    variants that take over a second, so they run once.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    short = dict.fromkeys(variants, True)
    for turn in range(WARM_UPS + rounds):
        for name, variant in variants.items():
            if short[name]:
                variant()
            start = time.perf_counter()
            variant()
            elapsed_ms = 1e3 * (time.perf_counter() - start)
            short[name] = elapsed_ms < 1000
            if turn >= WARM_UPS:
                times[name].append(elapsed_ms)
    return {name: median(values) for name, values in times.items()}


@contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """Other processes compute without a pause meanwhile, as on a machine that one does not own."""
    code = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def peak_megabytes(variant: Callable[[], object]) -> float | None:
    """Peak resident memory that one call adds, in MB; None unless on Linux."""
    if not _STATUS.exists():
        return None
    variant()
    ctypes.CDLL(None).malloc_trim(0)  # otherwise the call could reuse freed memory
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    variant()
    return max(0.0, (_status("VmHWM") - before) / 1024)


def _status(field: str) -> int:
    line = next(x for x in _STATUS.read_text().splitlines() if x.startswith(field))
    return int(line.split()[1])


def rates() -> dict[str, float]:
    """Measure copy bandwidth, first write to huge pages (GB/s), and matrix product (GFLOP/s)."""
    a, b = torch.ones(48 << 20), torch.empty(48 << 20)
    x = torch.randn(1536, 1536)

    def fill() -> None:
        fresh = mmap.mmap(-1, 192 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        fresh.madvise(mmap.MADV_HUGEPAGE)
        torch.frombuffer(fresh, dtype=torch.float32).fill_(1.0)

    elapsed_ms = interleaved({"copy": lambda: b.copy_(a), "fill": fill, "matmul": lambda: x @ x})
    return {
        "copy_gb_s": 2 * a.nbytes / elapsed_ms["copy"] / 1e6,
        "fresh_gb_s": (192 << 20) / elapsed_ms["fill"] / 1e6,
        "matmul_gflop_s": 2 * 1536**3 / elapsed_ms["matmul"] / 1e6,
    }


def machine() -> dict[str, object]:
    """Hardware, versions and commit, to interpret the results."""
    from cmrfast.ops._backend import STATUS, backends

    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    versions = {}
    for name in PEERS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_level": STATUS.cpu_level,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "gpu_kernels": {op: row["cuda"] for op, row in backends().items()},
        "versions": versions,
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit of this checkout; empty where there is no git, or no checkout."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""
