"""The measurements of measure.py on a GPU: CUDA events, with the cache flushed before each call."""

from collections.abc import Callable
from statistics import median

import torch

from benchmarks.measure import ROUNDS, WARM_UPS

_FLUSH_BYTES = 256 << 20  # bytes, several times the largest cache


def _milliseconds(variant: Callable[[], object], flush: torch.Tensor) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    start.record()
    variant()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def interleaved(
    variants: dict[str, Callable[[], object]], rounds: int = ROUNDS
) -> dict[str, float]:
    """Median time of each variant in ms, run in turn so that clock drift affects all equally."""
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(WARM_UPS + rounds):
        for name, variant in variants.items():
            variant()
            elapsed_ms = _milliseconds(variant, flush)
            if turn >= WARM_UPS:
                times[name].append(elapsed_ms)
    return {name: median(values) for name, values in times.items()}


def graph_median_ms(variant: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median time in ms of the same work replayed from a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        variant()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        variant()
    return interleaved({"graph": graph.replay}, rounds)["graph"]


def peak_megabytes(variant: Callable[[], object]) -> float:
    """Peak memory that one call adds to torch's allocated tensors, in MiB."""
    variant()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    variant()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def rates() -> dict[str, float]:
    """Measure copy and fill bandwidth (GB/s) and matrix products (GFLOP/s)."""
    n = 8192
    a, b = (torch.empty(1 << 30, device="cuda") for _ in range(2))
    x = torch.randn(n, n, device="cuda")
    half = x.bfloat16()
    variants = {
        "copy": lambda: b.copy_(a),
        "fill": lambda: b.fill_(1.0),
        "matmul": lambda: x @ x,
        "matmul_bf16": lambda: half @ half,
    }
    elapsed_ms = interleaved(variants)
    return {
        "copy_gb_s": 2 * a.nbytes / elapsed_ms["copy"] / 1e6,
        "fresh_gb_s": b.nbytes / elapsed_ms["fill"] / 1e6,
        "matmul_gflop_s": 2 * n**3 / elapsed_ms["matmul"] / 1e6,
        "matmul_bf16_gflop_s": 2 * n**3 / elapsed_ms["matmul_bf16"] / 1e6,
    }
