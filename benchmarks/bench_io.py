"""Loading beside other libraries: patches and augmented slices to train on, and .nii.gz files.

pytest benchmarks/bench_io.py --benchmark-json=benchmarks/results/io.json
"""

import pytest

from benchmarks.workloads import LOADING


@pytest.mark.parametrize("name", LOADING)
def test_loading(workload, name):
    workload(name, *LOADING[name])
