"""Every op beside its peers: equality first, then interleaved medians as ratios of one run.

pytest benchmarks/bench_ops.py --benchmark-json=results.json
pytest benchmarks/bench_ops.py --device cuda --benchmark-json=results.json
"""

from collections.abc import Callable

import pytest
import torch

from benchmarks.workloads import GROWTH, ON_GPU, WORKLOADS, Case

STEPS = [(op, step) for op, (_, sizes) in GROWTH.items() for step in range(len(sizes))]


def check(case: Case) -> None:
    """All ways give what ours gives, to a share of its largest entry.

    No absolute part: the gradient of a mean over millions of voxels is about 1e-7, and zeros would
    pass. Ways that draw at random bring a proof of their own.
    """
    if case.proof:
        case.proof()
        return
    ours = case.ways["cmrfast"]()
    for name, way in case.ways.items():
        if name != "cmrfast":
            for a, b in zip(way(), ours, strict=True):
                assert a.shape == b.shape, (name, a.shape, b.shape)
                error = ((a - b).abs().max() / b.abs().max()).item()
                assert error <= case.tolerance, (name, error)


@pytest.fixture
def record(benchmark, meter, rounds, measured_rates):
    """Check a case, then measure all its ways."""

    def run(case: Case) -> None:
        check(case)
        benchmark.extra_info["median_ms"] = meter.interleaved(case.ways, rounds)
        benchmark.extra_info["floor_ms"] = case.floor_ms(measured_rates)
        benchmark.extra_info["rates"] = measured_rates
        benchmark.pedantic(case.ways["cmrfast"], rounds=rounds, warmup_rounds=2)

    return run


@pytest.fixture
def workload(benchmark, record, meter, device, without):
    """Build a workload on the device, measure it, and leave what the tables need."""

    def run(name: str, title: str, build: Callable[[], Case]) -> Case:
        with torch.device(device):
            case = build()
        for way in without:
            case.ways.pop(way, None)
        record(case)
        benchmark.extra_info.update(workload=name, title=title)
        benchmark.extra_info["peak_mb"] = {k: meter.peak_megabytes(w) for k, w in case.ways.items()}
        torch.compiler.reset()
        return case

    return run


@pytest.mark.parametrize("name", WORKLOADS)
def test_workload(benchmark, workload, meter, device, name):
    case = workload(name, *WORKLOADS[name])
    if device == "cuda":
        benchmark.extra_info["graph_ms"] = meter.replayed(case.ways["cmrfast"])


@pytest.mark.parametrize("name", ON_GPU)
def test_workload_that_fills_a_gpu(workload, device, name):
    if device != "cuda":
        pytest.skip("for --device cuda")
    workload(name, *ON_GPU[name])


@pytest.mark.parametrize(("op", "step"), STEPS)
def test_growth(benchmark, record, device, op, step):
    build, sizes = GROWTH[op]
    with torch.device(device):
        case = build(sizes[step])
    case.ways.pop("torch.compile", None)  # shapes of its own at every size
    record(case)
    benchmark.extra_info.update(growth=op, size=sizes[step])
