"""Every op beside its peers: equality first, then interleaved medians as ratios of one run.

pytest benchmarks/bench_ops.py --benchmark-json=results.json
pytest benchmarks/bench_ops.py --device cuda --benchmark-json=results.json
"""

import pytest
import torch

from benchmarks.workloads import GROWTH, ON_GPU, WORKLOADS

STEPS = [(op, step) for op, (_, sizes) in GROWTH.items() for step in range(len(sizes))]


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
