"""Every op compared with its peers: equal results first, then interleaved median times.

pytest benchmarks/bench_ops.py --benchmark-json=results.json
pytest benchmarks/bench_ops.py --device cuda --record results.jsonl
"""

import pytest
import torch

from benchmarks.workloads import GROWTH, ON_GPU, WORKLOADS

STEPS = [(op, step) for op, (_, sizes) in GROWTH.items() for step in range(len(sizes))]


@pytest.mark.parametrize("name", WORKLOADS)
def test_workload(benchmark, run_workload, meter, device, name):
    workload = run_workload(name, *WORKLOADS[name])
    if device == "cuda":
        benchmark.extra_info["graph_ms"] = meter.graph_median_ms(workload.variants["cmrfast"])


@pytest.mark.parametrize("name", ON_GPU)
def test_workload_that_fills_a_gpu(run_workload, device, name):
    if device != "cuda":
        pytest.skip("for --device cuda")
    run_workload(name, *ON_GPU[name])


@pytest.mark.parametrize(("op", "step"), STEPS)
def test_growth(benchmark, measure_variants, device, op, step):
    build, sizes = GROWTH[op]
    with torch.device(device):
        workload = build(sizes[step])
    workload.variants.pop("torch.compile", None)  # would recompile for every size
    benchmark.extra_info.update(growth=op, size=sizes[step])
    measure_variants(workload)
