"""Loading beside other libraries: patches and augmented slices to train on, and .nii.gz files.

pytest benchmarks/bench_io.py --benchmark-json=benchmarks/results/io.json
"""

import pytest

from benchmarks.bench_ops import record
from benchmarks.measure import peak_megabytes
from benchmarks.workloads import LOADING


@pytest.mark.parametrize("name", LOADING)
def test_loading(benchmark, name, rounds, measured_rates):
    title, build = LOADING[name]
    case = build()
    record(benchmark, case, rounds, measured_rates)
    benchmark.extra_info.update(workload=name, title=title)
    benchmark.extra_info["peak_mb"] = {k: peak_megabytes(w) for k, w in case.ways.items()}
