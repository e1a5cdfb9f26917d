"""The measurements of measure.py on a GPU: by CUDA events, the cache flushed before each."""

from collections.abc import Callable
from statistics import median

import torch

from benchmarks.measure import ROUNDS, WARM_UPS

_FLUSHED = 256 << 20  # bytes, several times the largest cache


def _milliseconds(way: Callable[[], object], flush: torch.Tensor) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    start.record()
    way()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def interleaved(ways: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median milliseconds of each way, run in turn so that a drifting clock hits all alike."""
    flush = torch.empty(_FLUSHED, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(WARM_UPS + rounds):
        for name, way in ways.items():
            way()
            spent = _milliseconds(way, flush)
            if turn >= WARM_UPS:
                times[name].append(spent)
    return {name: median(values) for name, values in times.items()}


def replayed(way: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median milliseconds of the same work replayed from a CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        way()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        way()
    return interleaved({"graph": graph.replay}, rounds)["graph"]


def peak_megabytes(way: Callable[[], object]) -> float:
    """What one call adds to the memory that torch holds tensors in, at its highest."""
    way()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def rates() -> dict[str, float]:
    """Copy and fill bandwidth (GB/s) and matrix rates (GFLOP/s) of this moment."""
    n = 8192
    a, b = (torch.empty(1 << 30, device="cuda") for _ in range(2))
    x = torch.randn(n, n, device="cuda")
    half = x.bfloat16()
    ways = {
        "copy": lambda: b.copy_(a),
        "fill": lambda: b.fill_(1.0),
        "matmul": lambda: x @ x,
        "matmul_bf16": lambda: half @ half,
    }
    took = interleaved(ways)
    return {
        "copy_gb_s": 2 * a.nbytes / took["copy"] / 1e6,
        "fresh_gb_s": b.nbytes / took["fill"] / 1e6,
        "matmul_gflop_s": 2 * n**3 / took["matmul"] / 1e6,
        "matmul_bf16_gflop_s": 2 * n**3 / took["matmul_bf16"] / 1e6,
    }
