"""Seeds, threads, and the folder of real images."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the processors; set before torch looks
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

try:
    from hypothesis import settings
except ModuleNotFoundError:  # the tests of GPU kernels do without
    pass
else:
    settings.register_profile("patient", deadline=None)  # a busy machine is no fault
    settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """Set torch's thread count inside a test; the old one comes back after it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def real_images() -> Path:
    """The folder of real images; the test is skipped, and counted, where none is named."""
    folder = os.environ.get("CMRFAST_TEST_DATA")
    if not folder:
        pytest.skip("CMRFAST_TEST_DATA is not set")
    return Path(folder)
