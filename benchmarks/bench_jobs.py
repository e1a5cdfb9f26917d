"""Whole jobs beside the same networks in plain torch, fed by MONAI.

pytest benchmarks/bench_jobs.py --rounds 3 --benchmark-json=benchmarks/results/jobs.json
"""

import pytest

from benchmarks.workloads import JOBS


@pytest.mark.parametrize("name", JOBS)
def test_job(workload, name):
    workload(name, *JOBS[name])
