"""Data loading compared with other libraries: training patches, augmented slices, .nii.gz files.

pytest benchmarks/bench_io.py --benchmark-json=benchmarks/results/io.json
"""

import pytest

from benchmarks.workloads.loading import LOADING


@pytest.mark.parametrize("name", LOADING)
def test_loading(run_workload, name):
    run_workload(name, *LOADING[name])
