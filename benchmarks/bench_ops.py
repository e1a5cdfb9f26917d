"""Every op beside its peers: equality first, then interleaved medians as ratios of one run.

pytest benchmarks/bench_ops.py --benchmark-json=results.json
"""

import pytest
import torch

from benchmarks.measure import interleaved, peak_megabytes
from benchmarks.workloads import GROWTH, WORKLOADS, Case

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


def record(benchmark, case: Case, rounds: int, rates: dict[str, float]) -> None:
    check(case)
    benchmark.extra_info["median_ms"] = interleaved(case.ways, rounds)
    benchmark.extra_info["floor_ms"] = case.floor_ms(rates)
    benchmark.extra_info["rates"] = rates
    benchmark.pedantic(case.ways["cmrfast"], rounds=rounds, warmup_rounds=2)


@pytest.mark.parametrize("name", WORKLOADS)
def test_workload(benchmark, name, rounds, measured_rates):
    title, build = WORKLOADS[name]
    case = build()
    record(benchmark, case, rounds, measured_rates)
    benchmark.extra_info.update(workload=name, title=title)
    benchmark.extra_info["peak_mb"] = {k: peak_megabytes(w) for k, w in case.ways.items()}
    torch.compiler.reset()


@pytest.mark.parametrize(("op", "step"), STEPS)
def test_growth(benchmark, op, step, rounds, measured_rates):
    build, sizes = GROWTH[op]
    case = build(sizes[step])
    case.ways.pop("torch.compile", None)  # shapes of its own at every size
    record(benchmark, case, rounds, measured_rates)
    benchmark.extra_info.update(growth=op, size=sizes[step])
