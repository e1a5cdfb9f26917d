"""Whole jobs beside the same networks in plain torch, fed by MONAI.

pytest benchmarks/bench_jobs.py --benchmark-json=benchmarks/results/jobs.json
"""

import pytest

from benchmarks.bench_ops import check
from benchmarks.workloads import JOBS


@pytest.mark.parametrize("name", JOBS)
def test_job(benchmark, name, meter, rounds, measured_rates):
    title, build = JOBS[name]
    case = build()
    check(case)
    median_ms = meter.interleaved(case.ways, rounds)
    alone = {way: ms for way, ms in median_ms.items() if way.endswith("data alone")}
    benchmark.extra_info.update(
        workload=name,
        title=title,
        median_ms={way: ms for way, ms in median_ms.items() if way not in alone},
        data_ms=alone,
        floor_ms=case.floor_ms(measured_rates),
        rates=measured_rates,
        peak_mb={k: meter.peak_megabytes(w) for k, w in case.ways.items() if k not in alone},
    )
    benchmark.pedantic(case.ways["cmrfast"], rounds=1)
