"""The classes of cmrfast.compat.monai compared with MONAI's own.

pytest benchmarks/bench_compat.py --benchmark-json=benchmarks/results/compat.json
"""

import pytest

from benchmarks.workloads.compat import COMPAT

pytest.importorskip("monai", reason="needs the extra monai")


@pytest.mark.parametrize("name", COMPAT)
def test_compat(run_workload, name):
    run_workload(name, *COMPAT[name])
