"""Whole jobs, compared with the same networks in plain PyTorch fed by MONAI.

pytest benchmarks/bench_jobs.py --rounds 3 --benchmark-json=benchmarks/results/jobs.json
"""

import pytest

from benchmarks.workloads.jobs import JOBS


@pytest.mark.parametrize("name", JOBS)
def test_job(run_workload, name):
    run_workload(name, *JOBS[name])
